"""What a run may be made of, trained by two workers or three: each step and the report are those of one.

All but one are slow: three processes that start and trace take most of a minute. `test_cluster.py` has what
`make test` tries.
"""

import csv
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import pytest

from tests.conftest import make_flower_folder
from tests.data.trees import age
from tests.helpers.alone import assert_scored_alone, assert_steps_alone
from tests.helpers.feature_runs import assert_same_numbers
from tests.helpers.plugins import forget_plugins
from tests.helpers.undrawn import PLAIN
from tests.helpers.workers import Workers

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("figures_undrawn", "without_plugins")]
HELPERS = Path(__file__).parent / "helpers"
EVERY_KIND, LAMPS = (f"--plugin={HELPERS / name}" for name in ("every_kind.py", "several_labels.py"))
SMALL = (
    "--backbone=tiny:4", "--image_size=8", "--head=linear", "--precision=float32", "--log_every=1steps",
    "--save_every=1steps", "--keep_checkpoints=100", "--evaluate_every=3steps", "--progress=plain",
    "--wait_for_workers_secs=300", EVERY_KIND, *PLAIN,
)  # fmt: skip


SCALED = '''
import tensorflow as tf

import trainer
from trainer.loop.objectives import Terms


@trainer.register.objective("noisy_scale")
class NoisyScale:
    """The loss of noisy features, times a factor that is learnt; with a count of the calls."""

    metric_names = ("scaled",)

    def __init__(self, weight: float = 1.0, *, loss):
        self._loss, self._weight = loss, weight
        first = tf.VariableAggregation.ONLY_FIRST_REPLICA
        self.variables = {
            "calls": tf.Variable(0, trainable=False, dtype=tf.int64, aggregation=first),
            "log_scale": tf.Variable(0.5),
        }

    def __call__(self, forward, batch, seed):
        self.variables["calls"].assign_add(1)

        def noise(place):
            own = tf.random.experimental.stateless_fold_in(seed, place)
            return tf.random.stateless_normal([width], own)

        def score(features, labels):
            logits = forward.logits(features)
            return logits, self._loss(logits, labels, None)

        features = forward.features(batch["image"])
        width = features.shape[-1]
        # By the place of an example, so that it is the same on any number of devices.
        features += 0.01 * tf.map_fn(noise, batch["place"], fn_output_signature=tf.float32)
        logits, losses = forward.float32(score, features, batch["label"])
        scale = self.variables["log_scale"]
        scaled = self._weight * tf.exp(-scale) * losses + scale
        return Terms(scaled, logits, {"scaled": scaled})
'''


class Case(NamedTuple):
    """A run, and how many workers train it."""

    count: int
    flags: tuple[str, ...]
    num_steps: int
    alone: Mapping[str, object] = MappingProxyType({})
    """Options of one worker that does the same."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three classes of six pictures, one class of one; and a table of the same, with owners and weights."""
    folder = make_flower_folder(tmp_path_factory.mktemp("matrix") / "photos")
    make_flower_folder(folder, n=1, classes=("red", "green", "blue", "grey"))
    make_flower_folder(folder.parent / "more", n=2, classes=("green", "black"))
    lines = ["file,colour,owner,weight"]
    for path in sorted(folder.rglob("*.jpg")):
        number = int(path.stem)
        name = path.parent.name
        lines.append(f"photos/{name}/{path.name},{name},{name}-{number // 2},{1 + number}")
    (folder.parent / "photos.csv").write_text("\n".join(lines))
    (folder.parent / "noisy_scale.py").write_text(SCALED)
    age(folder.parent)
    return folder


def cases(pictures):
    """{name: a run}."""
    folder = f"--source=folder:{pictures}"
    return {
        # Batches of 3, 3, 3 and 1: of the last, two workers have nothing. One picture in validation; no test.
        "few": Case(
            3,
            (
                folder, "--splits=10,1", "--batch_size=3", "--dropout=0.5",
                "--phase=name=kept; for=1epochs; train=head; lr=0.1; optimizer=sgd",
                "--phase=name=moving; for=1epochs; train=all; bn=batch; lr=0.05; optimizer=sgd",
                "--phase=name=mixed; for=1epochs; train=all; augment=flip,crop(0.6),mixup(1); "
                "average=ema(0.9); lr=0.05; optimizer=sgd",
            ),
            12,
        ),
        # Batches of 6 and 5 in two parts each: BatchNorm has seen six parts.
        "parts": Case(
            3,
            (
                folder, "--splits=11,4,4", "--batch_size=6", "--accumulate=2", "--head=mlp(4)",
                "--dropout=0.3", "--class_weights=balanced", "--label_smoothing=0.1", "--clip_norm=0.5",
                "--phase=name=moving; for=2epochs; train=all; bn=batch; lr=0.05; optimizer=sgd",
                "--phase=name=mean; for=4epochs; train=all; augment=rotate(0.2),cutmix(1); average=swa(0.5); "
                "lr=0.05; optimizer=sgd",
            ),
            12,
            {"accumulate": 6},
        ),
        # By the first seed, one channel is 0.66 with a deviation of 0.065: BatchNorm in float32 is then off
        # by 2e-6 from float64 on one worker, and as far on two.
        "balanced": Case(
            2,
            (
                folder, "--splits=11,4,4", "--batch_size=4", "--sampling=balanced", "--loss=focal(2)",
                "--seed=1", "--metrics=confidence", "--layer_decay=0.8", "--feature_views=2",
                "--phase=name=views; for=2epochs; train=head; augment=flip; lr=0.1; optimizer=sgd",
                "--phase=name=moving; for=1epochs; train=all; bn=batch; lr=0.05; optimizer=sgd",
            ),
            9,
        ),
        # A state, a callback, a metric, and gradients that are asked for twice.
        "plugin": Case(
            2,
            (
                folder, "--splits=11,4,4", "--batch_size=4", "--objective=noisy_scale(2)",
                f"--plugin={pictures.parent / 'noisy_scale.py'}",
                "--metrics=top(2)", "--callbacks=kernel_norm(2)", "--gradient_rule=sam(0.05,0.001)",
                "--head=narrow",
                "--phase=name=kept; for=1epochs; train=head; lr=0.05; optimizer=sgd; lr_schedule=saw(0.5)",
                "--phase=name=all; for=1epochs; train=all; bn=batch; augment=dim(0.5); lr=0.05; "
                "optimizer=sgd",
            ),
            6,
        ),
        "labels": Case(
            3,
            (
                LAMPS, "--task=multi_label", "--source=lamps:24", "--splits=14,5,5", "--batch_size=6",
                "--phase=name=kept; for=1epochs; train=head; lr=0.1; optimizer=sgd",
                "--phase=name=all; for=1epochs; train=all; bn=batch; augment=flip,mixup(0.5); lr=0.05; "
                "optimizer=sgd",
            ),
            6,
        ),
        "table": Case(
            2,
            (
                f"--source=table:{pictures.parent / 'photos.csv'}", "--label_column=colour",
                "--group_column=owner", "--weight_column=weight", "--folds=3", "--fold=2", "--batch_size=4",
                "--phase=name=kept; for=3steps; train=head; lr=0.1; optimizer=sgd",
                "--phase=name=all; for=3steps; train=all; lr=0.05; optimizer=sgd",
            ),
            6,
        ),
        "joined": Case(
            2,
            (
                folder, f"--source=folder:{pictures.parent / 'more'}", "--splits=13,5,5", "--batch_size=4",
                "--phase=name=all; for=1epochs; train=all; bn=batch; lr=0.05; optimizer=sgd",
            ),
            4,
        ),
    }  # fmt: skip


def own_folders(folder, count):
    """A workdir and a cache for each worker."""
    workdirs = ["run", *(f"nobody{index}" for index in range(1, count))]
    return [
        [f"--workdir={folder / workdir}", f"--cache_dir={folder / f'cache{index}'}"]
        for index, workdir in enumerate(workdirs)
    ]


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory):
    """trained(name) -> the folder of a run that workers have trained, once for all tests."""
    found = {}

    def train(name):
        if name not in found:
            folder, case = tmp_path_factory.mktemp(name), cases(pictures)[name]
            flags, own = [*SMALL, *case.flags], own_folders(folder, case.count)
            ended = Workers(flags, count=case.count, own=own).ended()
            assert [status for status, _, _ in ended] == [0] * case.count, ended
            found[name] = folder
        return found[name]

    return train


@pytest.mark.parametrize("name", ["few", "parts", "balanced", "plugin", "labels", "table", "joined"])
def test_each_step_and_the_report_are_those_of_one_worker(name, pictures, trained, tmp_path):
    workdir, cache_dir = trained(name) / "run", tmp_path / "alone"
    case = cases(pictures)[name]
    assert assert_steps_alone(workdir, cache_dir, **case.alone) == case.num_steps
    forget_plugins()
    assert_scored_alone(workdir, tmp_path / "scored", f"--cache_dir={cache_dir}")


def test_what_three_have_trained_predicts_explains_and_is_exported(trained, pictures, tmp_path, run_main):
    folder = trained("few")
    run, cache = f"--workdir={folder / 'run'}", f"--cache_dir={tmp_path / 'alone'}"
    with open(folder / "run" / "report" / "predictions.csv", newline="") as file:
        [row] = csv.DictReader(file)
    picture = pictures / row["id"]
    status, out, err = run_main("predict", run, cache, "--format=jsonl", str(picture))
    assert status == 0, err
    assert json.loads(out)["label"] == row["prediction"]
    assert run_main("explain", run, cache, f"--output={tmp_path / 'explained'}", str(picture))[0] == 0
    formats = ("--formats=saved_model,float32", f"--export_dir={tmp_path / 'export'}")
    status, out, err = run_main("export", run, cache, *formats)
    assert status == 0, err
    again = tmp_path / "again"
    alone = (*SMALL, *cases(pictures)["few"].flags, "--seed=1", f"--workdir={again}")
    assert run_main("train", *alone, cache)[0] == 0
    status, out, err = run_main("compare", str(folder / "run"), str(again))
    assert status == 0, err
    assert "again" in out


def run_alone(run_main, folder, *flags):
    """Trains in this process, and returns the workdir."""
    forget_plugins()
    status, out, err = run_main("train", *flags, f"--workdir={folder / 'run'}", f"--cache_dir={folder}/cache")
    assert status == 0, (out, err)
    return folder / "run"


def test_another_number_of_workers_goes_on(pictures, tmp_path, run_main):
    """Two until their time is up, three until one is told to stop, then one; the last phase ends early."""
    copy = tmp_path / "elsewhere"
    shutil.copytree(pictures, copy)
    source = f"--source=folder:{pictures}"
    flags = [
        *SMALL, "--splits=12,4,3", "--batch_size=6", "--dropout=0.5", "--save_every=1epochs",
        "--early_stop=loss", "--patience=2", "--min_change=9",
        "--phase=name=kept; for=4steps; train=head; lr=0.1; optimizer=sgd; lr_schedule=plateau(0.5,1)",
        "--phase=name=moving; for=20steps; train=all; bn=batch; augment=flip,mixup(1); average=ema(0.9); "
        "lr=0.05; optimizer=sgd",
    ]  # fmt: skip
    own = own_folders(tmp_path, 3)
    # The same pictures, at another place.
    own = [
        [*folders, source if index == 0 else f"--source=folder:{copy}"] for index, folders in enumerate(own)
    ]
    ended = Workers([*flags, "--max_minutes=0.0001"], own=own[:2]).ended()
    assert [status for status, _, _ in ended] == [75, 75], ended
    assert all("--max_minutes" in err for _, _, err in ended), ended
    clock = ("--save_every_secs=0.001",)
    ended = Workers([*flags, *clock], count=3, own=own, env={2: {"WORKER_ENDS": "7 SIGTERM"}}).ended()
    assert [status for status, _, _ in ended] == [75, 75, 75], ended
    assert "goes on from step" in ended[0][1]
    [at] = {err.partition("stopped at step ")[2].partition(" ")[0] for _, _, err in ended}
    forget_plugins()
    status, out, err = run_main("train", *flags, *own[0])
    assert (status, err) == (0, ""), out
    assert f"goes on from step {at} of 24" in out
    assert "ends here" in out
    assert_same_numbers(tmp_path / "run", run_alone(run_main, tmp_path / "alone", *flags, source))


def test_what_two_have_begun_is_extended(pictures, tmp_path, run_main):
    flags = [*SMALL, f"--source=folder:{pictures}", "--splits=11,4,4", "--batch_size=4"]
    phase = "--phase=name=all; for={}steps; train=all; bn=batch; augment=flip; lr=0.05; optimizer=sgd"
    own = own_folders(tmp_path, 2)
    for more in ([phase.format(3)], [phase.format(7), "--extend"]):
        ended = Workers([*flags, *more], own=own).ended()
        assert [status for status, _, _ in ended] == [0, 0], ended
    assert "extended from 3 to 7 steps" in ended[0][1]
    assert_same_numbers(tmp_path / "run", run_alone(run_main, tmp_path / "alone", *flags, phase.format(7)))


ALLERGIC = '''
import tensorflow as tf

import trainer


@trainer.register.loss("allergic")
def allergic(label: int = 0):
    """Of one class it is no number."""

    def loss(logits, labels, targets):
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        return tf.where(labels == label, float("nan"), losses)

    return loss
'''


def test_batches_that_one_worker_finds_bad_are_left_out_by_all(pictures, tmp_path, run_main):
    (tmp_path / "allergic.py").write_text(ALLERGIC)
    flags = [
        *SMALL, f"--source=folder:{pictures}", f"--plugin={tmp_path / 'allergic.py'}", "--loss=allergic(2)",
        "--splits=11,4,4", "--batch_size=4", "--on_nonfinite=rollback",
        "--phase=name=kept; for=1epochs; train=head; lr=0.1; optimizer=sgd",
        "--phase=name=all; for=1epochs; train=all; bn=batch; lr=0.05; optimizer=sgd",
    ]  # fmt: skip
    ended = Workers(flags, own=own_folders(tmp_path, 2)).ended()
    assert [status for status, _, _ in ended] == [0, 0], ended
    noted = json.loads((tmp_path / "run" / "run.json").read_text())["rollbacks"]
    # The one grey picture, once in each epoch.
    assert [rollback["step"] // 3 for rollback in noted] == [0, 1]
    alone = run_alone(run_main, tmp_path / "alone", *flags)
    assert json.loads((alone / "run.json").read_text())["rollbacks"] == noted
    assert_same_numbers(tmp_path / "run", alone)


def test_two_train_by_the_default_schedule(tmp_path, run_main):
    flags = [
        "--source=synthetic:flowers", "--synthetic_examples=40", "--backbone=tiny:4", "--image_size=8",
        "--head=mlp(8)", EVERY_KIND, "--progress=plain", "--wait_for_workers_secs=300",
    ]  # fmt: skip
    ended = Workers(flags, own=own_folders(tmp_path, 2)).ended()
    assert [status for status, _, _ in ended] == [0, 0], ended
    assert "recommended for 32 pictures" in ended[0][1]
    alone = run_alone(run_main, tmp_path / "alone", *flags)
    assert_same_numbers(tmp_path / "run", alone)
    was, now = ({path.name for path in (run / "report").iterdir()} for run in (tmp_path / "run", alone))
    assert was == now
