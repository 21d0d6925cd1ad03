"""The flagfiles under experiments/, unmodified, where the caches hold what they name."""

import hashlib
import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import make_flower_folder
from tests.helpers.processes import run_program
from tests.record.events import scalars
from trainer.cli import flags
from trainer.store.files import read_json

ROOT = Path(__file__).parent.parent
EXPERIMENTS = sorted(ROOT.glob("experiments/*.flags"))
HANDLE = "https://tfhub.dev/google/imagenet/inception_v3/feature_vector/4"
CLASSES = ("dandelion", "daisy", "tulips", "sunflowers", "roses")
WIDTH = 2048


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_flagfile_is_readable_and_has_a_notebook(path):
    line = flags.parse(["trainer", f"--flagfile={path}"])
    assert line.command == "train"
    assert line.given["source"]
    header = path.read_text().split("\n--")[0]
    assert "python -m trainer.main" in header
    assert all(text.startswith("#") for text in header.splitlines() if text)


def test_canonical_splits():
    config = flags.parse(["trainer", f"--flagfile={ROOT}/experiments/flowers_inception_v3.flags"]).config
    from trainer.data.sources import MemorySource
    from trainer.data.splits import make_splits

    labels = np.arange(3670) % 5
    source = MemorySource("x", CLASSES, [str(i) for i in range(3670)], labels, [b""] * 3670)
    splits = make_splits(source, config.data.splits, order=config.data.split_order)
    train, validation, test = splits.indices.values()
    np.testing.assert_array_equal(train, np.arange(1835))
    np.testing.assert_array_equal(validation, np.arange(1835, 1835 + 918))
    np.testing.assert_array_equal(test, np.arange(1835 + 918, 3670))


class Stand(tf.Module):
    """Has the interface of the real module: any size, 2,048 features, L2 losses, BatchNorm means."""

    def __init__(self):
        super().__init__()
        kernel = tf.Variable(tf.random.stateless_normal([3, WIDTH], [1, 2]), name="Conv2d_1a/weights")
        beta = tf.Variable(tf.zeros([WIDTH]), name="Conv2d_1a/BatchNorm/beta")
        mean = tf.Variable(tf.zeros([WIDTH]), trainable=False, name="Conv2d_1a/BatchNorm/moving_mean")
        self.all = [kernel, beta, mean]

        def call(inputs, training=False, batch_norm_momentum=0.99):
            maps = tf.reduce_mean(inputs, [1, 2]) @ kernel
            if training:
                mean.assign(
                    batch_norm_momentum * mean + (1.0 - batch_norm_momentum) * tf.reduce_mean(maps, 0)
                )
            return tf.nn.relu(maps - mean + beta)

        self.function = tf.function(call)
        images = tf.TensorSpec([None, None, None, 3], tf.float32, "inputs")
        for training in (True, False):
            self.function.get_concrete_function(images, training, tf.TensorSpec([], tf.float32))
        self.loss = tf.function(lambda: 4e-5 * tf.nn.l2_loss(kernel))
        self.loss.get_concrete_function()


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    """Folder of a tfds cache with tf_flowers, made by its own builder, and of a hub cache."""
    import tensorflow_datasets as tfds

    root = tmp_path_factory.mktemp("caches")
    photos = make_flower_folder(root / "photos", n=12)
    archive = root / "flower_photos.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        for k, name in enumerate(CLASSES):
            for file in sorted((photos / ("red", "green", "blue")[k % 3]).iterdir()):
                # Other bytes for each class, so that no picture is in two splits.
                data = file.read_bytes() + name.encode()
                member = tarfile.TarInfo(f"flower_photos/{name}/{file.name}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    builder = tfds.builder("tf_flowers", data_dir=str(root / "tfds"))
    url = next(iter(builder.url_infos))
    info = tfds.core.download.checksums.compute_url_info(archive)
    with pytest.MonkeyPatch.context() as patch:
        # The table belongs to the class, so that other tests of this process would see it.
        patch.setitem(builder.url_infos, url, info)
        builder.download_and_prepare(
            download_dir=str(root / "downloads"),
            download_config=tfds.download.DownloadConfig(manual_dir=str(root)),
        )
    stand, module = Stand(), tf.train.Checkpoint()
    module.__call__, module.variables, module.trainable_variables = stand.function, stand.all, stand.all[:2]
    module.regularization_losses = [stand.loss]
    tf.saved_model.save(module, str(root / "hub" / hashlib.sha1(HANDLE.encode()).hexdigest()))
    return root, {v.name.removesuffix(":0"): v.numpy() for v in stand.all}


def saved_backbone(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """Returns {name in the module: value} of a checkpoint and of its base, read without our own code."""
    found = {}
    phase = "phase-1" if (workdir / "checkpoints/base/phase-1.index").exists() else "phase-0"
    for file in (f"base/{phase}", f"ckpt-{step}"):
        reader = tf.train.load_checkpoint(str(workdir / "checkpoints" / file))
        for key in reader.get_variable_to_shape_map():
            if "model.Sbackbone.S" in key:
                name = key.split("model.Sbackbone.S")[1].split("/.ATTR")[0].replace(".S", "/")
                assert name not in found
                found[name] = reader.get_tensor(key)
    return found


# The second one begins with the phase that the first one is.
@pytest.mark.parametrize(
    "name", [pytest.param("flowers_inception_v3", marks=pytest.mark.slow), "flowers_inception_v3_finetune"]
)
def test_canonical_experiment_from_caches(name, caches, tmp_path):
    root, initial = caches
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    environment = {
        **os.environ,
        "TFDS_DATA_DIR": str(root / "tfds"),
        "TFHUB_CACHE_DIR": str(root / "hub"),
        "PYTHONPATH": str(ROOT),
    }
    done = run_program([f"--flagfile=experiments/{name}.flags"], cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert "test accuracy" in done.stdout
    workdir = tmp_path / "runs" / name
    sizes = {split: len(rows) for split, rows in read_json(workdir / "splits.json")["splits"].items()}
    assert sizes == {"train": 30, "validation": 15, "test": 15}
    # 30 pictures are one padded batch of 32: a step an epoch.
    total = 15 if name.endswith("finetune") else 10
    assert [step for step, _ in scalars(workdir / "validation")["accuracy"]] == list(range(1, total + 1))
    assert [step for step, _ in scalars(workdir / "train")["loss"]] == sorted({10, total})
    rates = dict(scalars(workdir / "train")["learning_rate"])
    assert rates[10] == pytest.approx(1e-3)
    end = saved_backbone(workdir, total)
    assert end.keys() == initial.keys()
    moved = {key for key in initial if not np.array_equal(end[key], initial[key])}
    if name.endswith("finetune"):
        assert rates[15] == pytest.approx(1e-5)
        # Everything that trains has moved; the statistics of BatchNorm have not.
        assert moved == {"Conv2d_1a/weights", "Conv2d_1a/BatchNorm/beta"}
    else:
        assert moved == set()
