"""What a phase runs on: which part is computed once, anew after any change, with the numbers of pictures."""

import contextlib
import dataclasses
import functools
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.conftest import changed, make_flower_folder
from tests.helpers.feature_runs import tiny_net
from tests.model.modules import save_tiny, save_with_signature
from trainer.cli import flags
from trainer.data.augment import make_augment
from trainer.data.features import FeatureBatches
from trainer.precision import in_precision, supported
from trainer.run import feature_cache
from trainer.run import stages as stages_module
from trainer.run.experiment import Experiment
from trainer.run.feature_cache import why_uncached
from trainer.run.session import make_stages
from trainer.run.stages import Stages
from trainer.values import UsageError

TOP = "--phase=name=top; for=2epochs; train=head backbone/last.*"
HEAD = "--phase=name=head; for=2epochs; train=head"
NET = "--backbone=keras:TinyNet"
COUNT = 10  # Pictures of the training split; three batches, the last one padded.


@pytest.fixture(scope="module", autouse=True)
def with_tiny_net():
    with tiny_net():
        yield


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Eighteen, of which one lies on its side, as its EXIF orientation says."""
    folder = make_flower_folder(tmp_path_factory.mktemp("stages") / "pictures")
    noise = np.random.default_rng(9).integers(0, 256, (10, 12, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise).save(folder / "red" / "000.jpg", quality=95, exif=exif)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("stages") / "cache"


@pytest.fixture(scope="module")
def open_stages(pictures, cache):
    """open(*options) -> the stages of a run; later options win over these."""

    def open_(*options):
        usual = (
            "trainer", f"--source=folder:{pictures}", NET, "--weights=none", "--image_size=5",
            "--head=linear", f"--splits={COUNT},4,4", "--batch_size=4", "--precision=float32",
            "--schedule=two_phase", "--workdir=none", f"--cache_dir={cache}",
        )  # fmt: skip
        return make_stages(Experiment(flags.parse(changed(usual, *options)).config), decided={})

    return open_


@contextlib.contextmanager
def counted():
    """Gives a list to which each computation of a split's features adds."""
    with pytest.MonkeyPatch.context() as patch:
        made, compute = [], feature_cache.compute_features

        def count(*args, **options):
            made.append(1)
            return compute(*args, **options)

        patch.setattr(feature_cache, "compute_features", count)
        yield made


def in_order(dataset, change=lambda image: image):
    parts = [change(batch["image"]).numpy()[batch["mask"].numpy() > 0] for batch in dataset]
    return np.concatenate(parts)


def kept(stages, split="train", epoch=0):
    """The features of a split, and how often they were computed for that."""
    with counted() as made:
        batches = stages.current().batches(split)
    return in_order(batches.once(stages.experiment.splits.indices[split], epoch=epoch)), len(made)


def plain(stages, split="train", **changes):
    """What the network makes of the pictures themselves, up to the same place."""
    experiment, stage = stages.experiment, stages.current()
    below = in_precision(tf.function(stage.cut.below, autograph=False), stage.precision)
    return in_order(experiment.pipeline.once(experiment.splits.indices[split], **changes), below)


def assert_close(one, other):
    assert one.shape == other.shape
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max())


@pytest.mark.parametrize("train", ["head", "all"])
def test_a_phase_is_traced_once_for_batches_that_begin_where_the_run_is(open_stages, monkeypatch, train):
    made = []
    real = stages_module.make_train_run

    def make(*args, **options):
        made.append(real(*args, **options))
        return made[-1]

    monkeypatch.setattr(stages_module, "make_train_run", make)
    stages = open_stages(f"--phase=name=one; for=3epochs; train={train}")
    stage = stages.current()
    stages.state.step_variable.assign(4)
    run = stage.make_run()
    ids = [batch["id"].numpy().tolist() for batch in stage.training(4)]
    assert ids == [batch["id"].numpy().tolist() for batch in stage.training(0)][4:]
    run(iter(stage.training(4)), tf.constant(2))
    assert (len(made), made[0].experimental_get_tracing_count()) == (1, 1)
    assert stages.state.step == 6


# --- Which part of the network


def test_what_is_computed_once_and_what_is_not(open_stages, tiny_backbone):
    top, batch = "train=head backbone/last.*", "phase one uses the batch's BatchNorm statistics"
    from_the_first = "phase one trains the network from its first layers on"
    augmented = "phase one augments its pictures, so nothing is computed once; --feature_views=K keeps"
    module = (f"--backbone=savedmodel:{tiny_backbone}", "--weights=imagenet")
    for phase, options, expected in (
        ("train=head", (), "features"),
        (top, (), "middle_relu"),
        ("train=all", (), from_the_first),
        ("train=head backbone/stem/.*", (), from_the_first),
        ("train=head; bn=batch", (), batch),
        ("train=head; augment=flip", (), augmented),
        (f"{top}; augment=flip", (), augmented),
        ("train=head; augment=flip", ("--feature_views=2",), "features"),
        (f"{top}; augment=flip", ("--feature_views=1",), "middle_relu"),
        ("train=head", module, "features"),
        (
            "train=head backbone/bn/beta",
            module,
            "phase one trains a part of a SavedModel",
        ),
    ):
        stages = open_stages(f"--phase=name=one; for=1epochs; {phase}", *options)
        stage, why = stages.current(), why_uncached(stages.experiment, stages.state.phase.spec)
        found = stage.cut.name if stage.cut else why
        assert found.startswith(expected), phase
        assert bool(why) == (stage.cut is None)
        assert stage.only_head == (expected == "features")


def test_off_means_off(open_stages):
    stages = open_stages(HEAD, "--feature_cache=off")
    stage = stages.current()
    assert (stage.cut, stage.cut_of("train"), stage.batches("train")) == (
        None,
        None,
        stages.experiment.pipeline,
    )


def test_where_no_phase_can_use_it_require_fails_at_once(open_stages):
    phases = (
        "--phase=name=a; for=1epochs; train=all",
        "--phase=name=b; for=1epochs; train=head; augment=flip",
    )
    message = (
        "^--feature_cache=require: phase a trains the network from its first layers on; "
        "phase b augments its pictures, so nothing is computed once; --feature_views=K keeps K augmented"
    )
    with pytest.raises(UsageError, match=message):
        open_stages(*phases, "--feature_cache=require")
    open_stages(*phases, HEAD, "--feature_cache=require")


@pytest.mark.parametrize(
    ("options", "is_refused"),
    [
        ((HEAD,), False),
        ((HEAD, "--feature_cache=off"), True),
        ((f"{HEAD}; augment=flip",), True),
        ((f"{HEAD}; augment=flip", "--feature_views=1"), False),
        ((TOP,), True),
    ],
)
def test_updates_of_a_network_in_float16_are_refused_on_several_devices(open_stages, options, is_refused):
    one = open_stages(*options)
    one.experiment.strategy = SimpleNamespace(num_replicas_in_sync=2)
    arithmetic = SimpleNamespace(asked="float16", decided={})
    message = (
        r"^--precision=float16 scales the loss on one device only, and phase (head|top) runs the network"
    )
    with pytest.raises(UsageError, match=message) if is_refused else contextlib.nullcontext():
        Stages(one.experiment, one.state, arithmetic=arithmetic, watch=None)


# --- The same numbers


@pytest.mark.parametrize("phase", [HEAD, TOP], ids=["whole", "part"])
def test_scores_are_those_of_the_pictures(open_stages, phase):
    stages, pictures = open_stages(phase), open_stages(phase, "--feature_cache=off")
    for split in ("train", "validation", "test"):
        found, expected = (each.current().evaluate(split) for each in (stages, pictures))
        np.testing.assert_array_equal(found.ids, expected.ids)
        np.testing.assert_allclose(found.logits, expected.logits, rtol=0, atol=1e-5)
        assert np.ptp(expected.logits, axis=0).min() > 1e-3  # No two pictures are alike to it.
        assert found.loss == pytest.approx(expected.loss, abs=1e-5)
        assert found.metrics == expected.metrics
    stage = stages.current()
    assert stage.cut_of("train") is stage.cut is not None


def test_scores_are_of_pictures_as_they_are_where_views_are_kept(open_stages):
    head = f"{HEAD}; augment=flip,crop(0.3)"
    stages, pictures = open_stages(head, "--feature_views=2"), open_stages(HEAD, "--feature_cache=off")
    for score in (stages.evaluate, stages.evaluate_at_end, lambda split: stages.current().scorer(split)()):
        found, expected = score("train"), pictures.evaluate("train")
        np.testing.assert_array_equal(found.ids, expected.ids)
        np.testing.assert_allclose(found.logits, expected.logits, rtol=0, atol=1e-5)
    assert isinstance(stages.current().batches("train"), FeatureBatches)


# --- Anew after any change, and only then


@pytest.mark.parametrize(
    "options",
    [
        ("--seed=1", "--head=mlp(7)", "--dropout=0.5", "--label_smoothing=0.1"),
        ("--batch_size=3", "--optimizer=sgd", "--memory_budget_mb=0"),
        ("--phase=name=longer; for=9epochs; train=head; lr=0.5",),
        ("--feature_views=2",),  # Of pictures that are not augmented there is one view.
    ],
    ids=" ".join,
)
def test_what_does_not_change_the_features_shares_them(open_stages, options):
    first, _ = kept(open_stages(HEAD))
    phase = () if options[0].startswith("--phase") else (HEAD,)
    rows, made = kept(open_stages(*phase, *options))
    assert made == 0
    np.testing.assert_array_equal(rows, first)


CHANGES = {
    "size": ("--image_size=6",),
    "orientation": ("--exif=ignore",),
    "decoding": ("--decode=scaled",),
    "fewer pictures": ("--splits=9,4,5",),
    "other pictures": ("--split_seed=1",),
}
if "bfloat16" in supported():
    CHANGES["arithmetic"] = ("--precision=bfloat16",)


# Those that are one argument of the decoder; `make test` has the others.
SLOW = ("orientation", "decoding", "fewer pictures")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in CHANGES]
)
def test_a_change_of_options_computes_anew(open_stages, name):
    base, _ = kept(open_stages(HEAD))
    stages = open_stages(HEAD, *CHANGES[name])
    rows, made = kept(stages)
    assert made == 1
    assert_close(rows, plain(stages))
    # It matters.
    assert rows.shape != base.shape or np.abs(rows - base).max() > 1e-4 * np.abs(base).max()


def test_another_place_in_the_network_computes_anew(open_stages, tmp_path):
    for phase, shape in ((HEAD, (COUNT, 5)), (TOP, (COUNT, 3, 3, 6))):
        stages = open_stages(phase, f"--cache_dir={tmp_path}")
        rows, made = kept(stages)
        assert (made, rows.shape) == (1, shape)
        assert_close(rows, plain(stages))
    # Two places may have the same variables below them, and the same shape.
    stages = open_stages(TOP, f"--cache_dir={tmp_path}")
    stages.current().cut = dataclasses.replace(stages.current().cut, name="middle")
    assert kept(stages)[1] == 1


def test_another_range_of_values_computes_anew(open_stages, tiny_backbone):
    module = (HEAD, f"--backbone=savedmodel:{tiny_backbone}", "--weights=imagenet")
    low, _ = kept(open_stages(*module))
    stages = open_stages(*module, "--value_range=-1,1")
    rows, made = kept(stages)
    assert made == 1
    assert_close(rows, plain(stages))
    assert_close(rows, 2 * low - 2)  # Each feature is a sum of two colours.


def test_changed_pictures_compute_anew(open_stages, pictures, tmp_path):
    folder = shutil.copytree(pictures, tmp_path / "pictures")
    open_here = functools.partial(open_stages, HEAD, f"--source=folder:{folder}")
    stages = open_here()
    base, _ = kept(stages)
    at = int(
        np.flatnonzero(stages.experiment.source.labels[stages.experiment.splits.indices["train"]] == 1)[0]
    )
    name = stages.experiment.source.ids[stages.experiment.splits.indices["train"][at]]
    assert kept(open_here())[1] == 0

    # Darker or brighter, by the same number of bytes.
    data = bytearray((folder / name).read_bytes())
    data[data.index(b"\xff\xdb") + 5] += 3
    (folder / name).write_bytes(data)
    stages = open_here()
    rows, made = kept(stages)
    assert made == 1
    assert_close(rows, plain(stages))
    assert np.flatnonzero(np.abs(rows - base).max(axis=1) > 1e-4).tolist() == [at]

    # Renamed, the classes come in another order.
    (folder / "blue").rename(folder / "yellow")
    stages = open_here()
    rows, made = kept(stages)
    assert (made, stages.experiment.source.class_names) == (1, ("green", "red", "yellow"))
    assert_close(rows, plain(stages))


@pytest.mark.slow
def test_a_changed_module_under_the_same_path_computes_anew(open_stages, tmp_path):
    path = tmp_path / "module"
    double = [[2.0, 0.0], [0.0, 2.0], [2.0, 2.0]]
    first = None
    for number, (save, options, times) in enumerate((
        (save_tiny, {}, 1),
        (save_tiny, {"kernel": double}, 2),
        (save_tiny, {"output": "squares"}, None),
        (save_with_signature, {}, 1),
        (save_with_signature, {"kernel": double}, 2),
    )):  # fmt: skip
        graph = (path / "saved_model.pb").read_bytes() if path.exists() else b""
        shutil.rmtree(path, ignore_errors=True)
        save(path, **options)
        if "kernel" in options:
            # A program that only trains on writes the same graph.
            (path / "saved_model.pb").write_bytes(graph)
        stages = open_stages("--image_size=8", f"--backbone=savedmodel:{path}", "--weights=imagenet", HEAD)
        rows, made = kept(stages)
        assert made == 1, number
        assert_close(rows, plain(stages))
        first = rows if first is None else first
        assert_close(rows, times * first if times else first**2)


def test_a_changed_file_of_weights_under_the_same_path_computes_anew(open_stages, tmp_path):
    path = tmp_path / "net.weights.h5"
    found = []
    kept(open_stages(HEAD))
    for factor in (1.0, 2.0):
        stages = open_stages(HEAD)
        network = stages.experiment.backbone._network
        network.set_weights([factor * value for value in network.get_weights()])
        network.save_weights(path)
        stages = open_stages(HEAD, f"--weights={path}")
        rows, made = kept(stages)
        assert_close(rows, plain(stages))
        found.append((rows, made))
    # The first file holds what --weights=none stands for.
    assert [made for _, made in found] == [0, 1]
    assert np.abs(found[1][0] - found[0][0]).max() > 0.01


def test_weights_that_an_earlier_phase_trained_compute_anew(open_stages):
    stages = open_stages("--phase=name=all; for=1epochs; train=all", HEAD)
    assert stages.current().cut is None
    before, _ = kept(open_stages(HEAD))
    kernel = stages.experiment.backbone.variables["stem/kernel"]
    kernel.assign_add(0.1 * tf.ones_like(kernel))
    stages.state.jump(stages.state.phase.stop_step)
    rows, made = kept(stages)
    assert made == 1
    assert_close(rows, plain(stages))
    assert np.abs(rows - before).max() > 1e-3


def test_the_last_step_of_a_phase_is_scored_as_the_phase_does(open_stages):
    stages = open_stages(HEAD, "--phase=name=all; for=1epochs; train=all")
    scored, states = [], []
    # Evaluations of the phase: of features. The state has then moved on to the phase of pictures.
    kept(stages)
    last = stages.state.phase.stop_step
    for step in (last - 1, last, last + 1):
        stages.state.jump(step)
        scored.append(stages.evaluate("validation").loss)
        states.append(stages.current().phase.spec.name)
    assert states == ["head", "all", "all"]
    assert scored[1] == scored[0]  # To the last bit, which a pass over pictures need not be.
    stages.state.jump(last)
    with counted() as made:
        stages.evaluate("train")
    assert not made
    assert isinstance(stages.stage_of(stages.experiment.plan.phases[0]).batches("train"), FeatureBatches)


def test_a_step_that_was_measured_is_not_traced_again(open_stages, monkeypatch):
    traced = []
    monkeypatch.setattr(stages_module, "make_train_run", lambda *a, **k: traced.append(k) or (lambda *_: 0))
    stage = open_stages(HEAD).current()
    first = stage._make_run(stage.cut, "bfloat16")
    assert stage._make_run(stage.cut, "bfloat16") is first
    assert stage._make_run(None, "bfloat16") is not first
    assert [(run["cut"], run["precision"]) for run in traced] == [
        (stage.cut, "bfloat16"),
        (None, "bfloat16"),
    ]
    # A fresh optimizer is another state to update.
    stage._all.state.jump(0)
    stage._make_run(None, "bfloat16")
    # In float32 head and loss stand in the graph of the network.
    stage._make_run(None, "float32")
    assert [run["precision"] for run in traced[2:]] == ["bfloat16", "float32"]


# --- Augmented views


@pytest.mark.slow
def test_views_are_of_the_seed_and_the_epoch_and_of_training_alone(open_stages):
    flip = f"{HEAD}; augment=flip,crop(0.3)"
    two = open_stages(flip, "--feature_views=2")
    assert kept(two)[1] == 2
    views = [kept(two, epoch=epoch)[0] for epoch in range(4)]
    for epoch, view in enumerate(views):
        assert_close(view, plain(two, augment=make_augment("flip,crop(0.3)"), epoch=epoch % 2))
    assert np.abs(views[0] - views[1]).max() > 1e-2
    # Validation sees its pictures as they are: those of any run.
    kept(open_stages(HEAD), "validation")
    assert kept(two, "validation")[1] == 0
    # A third view is one more; of another seed, all are others.
    assert kept(open_stages(flip, "--feature_views=3"))[1] == 1
    other = open_stages(flip, "--feature_views=2", "--seed=1")
    rows, made = kept(other)
    assert made == 2
    assert_close(rows, plain(other, augment=make_augment("flip,crop(0.3)"), epoch=0))
    assert np.abs(rows - views[0]).max() > 1e-2


def test_how_long_features_take_and_what_is_done_once(open_stages, monkeypatch, tmp_path):
    """A batch takes 2 s, and the first, which traces, 30 s more."""
    fresh = f"--cache_dir={tmp_path}"
    stages = open_stages(HEAD, fresh)
    clock, stage = SimpleNamespace(now=0.0), stages.current()
    monkeypatch.setattr(stages_module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    before = stages.once_secs
    with stages.watched("features of train", 10) as done:
        for secs, count in ((32, 4), (2, 4), (2, 2)):
            clock.now += secs
            done(count)
    assert stages.once_secs - before == 36
    assert stages.picture_secs == 4 / 6
    # Of its one phase none are asked for yet: 10 + 4 + 4 pictures.
    assert stage.awaits("train")
    assert stages.once_secs_left() == pytest.approx(18 * 4 / 6)
    # What another has kept since is read: of train all, of validation nothing.
    again = open_stages(HEAD, fresh)
    again.take({}, picture_secs=1.0)
    stage.batches("train")
    assert again.once_secs_left() == 0.0
    assert again.current().missing("train") == 0
    assert again.once_secs_left() == 8.0
    # Of 10 pictures, pieces of them.
    shards = open_stages(HEAD, fresh, "--split_seed=3")
    assert shards.current().missing("train", "validation") == 14
    monkeypatch.setattr(feature_cache, "pieces_of", lambda count: [slice(0, 6), slice(6, count)])
    shards.current().compute_shard("train", number=1, count=2)
    assert open_stages(HEAD, fresh, "--split_seed=3").current().missing("train") == 4
