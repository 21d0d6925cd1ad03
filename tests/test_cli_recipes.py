"""Every entry of every registry through the door, alone and together, and what does not go together."""

import itertools
import json
import re

import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import make_flower_folder
from tests.helpers.feature_runs import tiny_net
from tests.helpers.undrawn import PLAIN
from tests.record.events import scalars, steps_of
from trainer.data.augment import AUGMENTATIONS
from trainer.loop.averages import AVERAGES
from trainer.loop.losses import LOSSES
from trainer.loop.optimizers import OPTIMIZERS
from trainer.loop.schedules import SCHEDULES
from trainer.report import figures
from trainer.run import introduction, session
from trainer.store.files import read_json

pytestmark = pytest.mark.usefixtures("figures_undrawn")

REGISTRIES = {
    "augment": list(AUGMENTATIONS),
    "lr_schedule": list(SCHEDULES),
    "loss": list(LOSSES),
    "average": ["", *AVERAGES],
    "optimizer": list(OPTIMIZERS),
    "class_weights": ["balanced", "red=2"],
    "clip_norm": ["0.5", "0"],
    "accumulate": ["1", "2"],
}
ROWS = max(map(len, REGISTRIES.values()))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    for split, n in (("train", 6), ("validation", 2)):
        make_flower_folder(root / split, n=n)
    return root


@pytest.fixture
def run(pictures, tiny_backbone, run_main, tmp_path):
    """run(*flags) -> (status, output, errors, workdir) of a small run."""

    def small(*flags):
        workdir = tmp_path / "run"
        return *run_main(
            f"--source=folder:{pictures}", f"--backbone=savedmodel:{tiny_backbone}", "--image_size=8",
            "--head=linear", "--splits=train,validation", "--batch_size=6", "--log_every=1steps",
            "--schedule=two_phase", "--precision=float32", f"--workdir={workdir}", *PLAIN, *flags,
        ), workdir  # fmt: skip

    return small


def lines_of(workdir, split):
    lines = (json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["split"] == split]


# The first through the door; `make test-slow` has all.
@pytest.mark.parametrize(
    "row", [row if row == 0 else pytest.param(row, marks=pytest.mark.slow) for row in range(ROWS)]
)
def test_every_entry_of_every_registry_trains(row, run):
    values = {name: entries[row % len(entries)] for name, entries in REGISTRIES.items()}
    # For labels that exclude one another there is nothing asymmetric.
    task = "multi_label" if values["loss"] == "asymmetric" else "single_label"
    status, _, err, workdir = run(
        f"--task={task}", "--schedule=finetune", "--finetune_for=4epochs", "--finetune_learning_rate=0.01",
        *(f"--{name}={value}" for name, value in values.items()),
    )  # fmt: skip
    assert (status, err) == (0, "")
    lines = lines_of(workdir, "train")
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert all(np.isfinite(line["loss"]) for line in lines)
    config = read_json(workdir / "run.json")["config"]
    assert {name: str(config[name]) for name in values} == {
        name: "0.0" if value == "0" else value for name, value in values.items()
    }


def test_the_rows_above_hold_every_entry():
    for entries in REGISTRIES.values():
        assert {entries[row % len(entries)] for row in range(ROWS)} == set(entries)


def test_the_rate_in_the_event_files_is_that_of_the_schedule(run):
    status, _, _, workdir = run(
        "--schedule=frozen", "--frozen_for=4steps", "--frozen_learning_rate=0.08", "--lr_schedule=linear",
        "--lr_multiplier=head/logits/bias=0.5",
    )  # fmt: skip
    assert status == 0
    rates = [value for _, value in scalars(workdir / "train")["learning_rate"]]
    assert rates == pytest.approx([0.08, 0.06, 0.04, 0.02])


@pytest.mark.slow
def test_an_average_is_what_is_scored_and_kept(run):
    flags = ("--schedule=frozen", "--frozen_for=3epochs", "--frozen_learning_rate=0.5", "--optimizer=sgd")
    status, _, _, workdir = run(*flags, "--average=ema(0.9)", "--save_every=1steps")
    assert status == 0
    reader = tf.train.load_checkpoint(str(workdir / "checkpoints" / "ckpt-9"))
    shapes = reader.get_variable_to_shape_map()
    raw = next(name for name in shapes if "model.Shead.Slogits.Skernel" in name)
    average = next(name for name in shapes if "average.Shead.Slogits.Skernel" in name)
    assert np.abs(reader.get_tensor(raw) - reader.get_tensor(average)).max() > 1e-3
    with_average = [line["loss"] for line in lines_of(workdir, "validation")]
    status, _, _, workdir = run(*flags, f"--workdir={workdir}-plain")
    assert status == 0
    plain = [line["loss"] for line in lines_of(workdir.with_name("run-plain"), "validation")]
    trained = [lines_of(folder, "train") for folder in (workdir, workdir.with_name("run-plain"))]
    # The updates are the same; what is scored is not.
    assert [line["loss"] for line in trained[0]] == [line["loss"] for line in trained[1]]
    assert np.abs(np.subtract(with_average, plain)).max() > 1e-3


@pytest.mark.slow
def test_a_run_that_begins_with_another_takes_its_averages(run, tmp_path):
    flags = ("--schedule=frozen", "--frozen_for=3epochs", "--optimizer=sgd", "--average=ema(0.9)")
    assert run(*flags, "--frozen_learning_rate=0.5")[0] == 0
    best = next((tmp_path / "run" / "checkpoints" / "best").glob("ckpt-*.index")).with_suffix("")
    first = tf.train.load_checkpoint(str(best))
    next_one = tmp_path / "next"
    begun = run(
        *flags, "--frozen_learning_rate=0", f"--init_from={tmp_path / 'run'}", f"--workdir={next_one}"
    )
    assert begun[0] == 0
    second = tf.train.load_checkpoint(str(next_one / "checkpoints" / "ckpt-9"))

    def kernel(reader, kind):
        names = reader.get_variable_to_shape_map()
        return reader.get_tensor(next(name for name in names if f"{kind}.Shead.Slogits.Skernel" in name))

    np.testing.assert_array_equal(kernel(second, "model"), kernel(first, "average"))
    # Its own averages begin there, too, and not with the weights before.
    np.testing.assert_allclose(kernel(second, "average"), kernel(first, "average"), rtol=1e-5)
    assert np.abs(kernel(first, "model") - kernel(first, "average")).max() > 1e-3


def test_early_stopping_ends_a_phase_and_the_next_begins(run):
    status, out, err, workdir = run(
        "--frozen_for=6epochs", "--finetune_for=2epochs", "--frozen_learning_rate=0", "--early_stop=loss",
        "--patience=2",
    )  # fmt: skip
    assert (status, err) == (0, "")
    said = (
        "step 9: validation loss has been no better for 2 evaluations; phase frozen ends here, 9 steps early"
    )
    assert said in out.splitlines()
    assert [line["step"] for line in lines_of(workdir, "train")] == [*range(1, 10), *range(19, 25)]
    assert [line["phase"] for line in lines_of(workdir, "validation")] == ["frozen"] * 3 + ["finetune"] * 2
    # Started again, it is done at once, and says the same.
    files = [workdir / "report" / "metrics.json", workdir / "metrics.jsonl"]
    before = [file.read_bytes() for file in files]
    status, out, err, workdir = run(
        "--frozen_for=6epochs", "--finetune_for=2epochs", "--frozen_learning_rate=0", "--early_stop=loss",
        "--patience=2",
    )  # fmt: skip
    assert (status, err) == (0, "")
    assert before == [file.read_bytes() for file in files]


@pytest.mark.slow
def test_a_plateau_lowers_the_rate(run):
    status, out, _, workdir = run(
        "--schedule=frozen", "--frozen_for=5epochs", "--frozen_learning_rate=1e-12",
        "--lr_schedule=plateau(0.5,1)",
    )  # fmt: skip
    assert status == 0
    rates = [line["learning_rate"] for line in lines_of(workdir, "train")]
    assert min(rates) < 1e-12 * 0.6
    assert "the validation loss has not fallen in 1 evaluations; learning rate" in out


def test_an_accuracy_that_is_asked_for(run):
    flags = ("--schedule=frozen", "--frozen_for=1steps")
    status, _, err, workdir = run(*flags, "--assert_accuracy_at_least=1")
    accuracy = read_json(workdir / "report" / "metrics.json")["accuracy"]
    assert accuracy < 1
    message = f"trainer: validation accuracy {accuracy:.4f} is below --assert_accuracy_at_least=1\n"
    assert (status, err) == (1, message)
    # All is there, and a lower bar is passed without training again.
    assert (workdir / "report" / "learning_curves.png").exists()
    assert run(*flags, f"--assert_accuracy_at_least={accuracy - 0.01}")[0] == 0


@pytest.mark.slow
def test_mixed_labels_are_shown_as_they_are_trained_on(run, monkeypatch):
    drawn, draw = [], figures.picture_grid

    def picture_grid(pictures, titles, **of_a_report):
        drawn.extend([] if of_a_report else titles)
        return draw(pictures, titles, **of_a_report)

    monkeypatch.setattr(figures, "picture_grid", picture_grid)
    monkeypatch.setattr(session, "show_pictures", introduction.show_pictures)
    status, _, err, workdir = run("--schedule=frozen", "--frozen_for=1steps", "--augment=flip,mixup(0.9)")
    assert (status, err) == (0, "")
    assert steps_of(workdir / "train")["train_images/frozen"] == [1]
    shares = [[float(share) for share in re.findall(r"[\d.]+", title)] for title in drawn]
    assert [sum(share) for share in shares] == pytest.approx([1.0] * 6, abs=0.02)
    assert any(len(share) == 2 for share in shares)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--augment=flip,blurr"], r"--augment=blurr is not one of .*"),
        (["--augment=mixup,flip"], r"phase frozen: .*mixup.*last.*"),
        (
            ["--augment=mixup(0.2)", "--feature_views=2"],
            r".*--feature_views keeps views of single pictures.*",
        ),
        (["--lr_schedule=cosin"], r"--lr_schedule=cosin.*cosine.*"),
        (["--lr_schedule=one_cycle", "--warmup=1steps"], r"phase frozen: lr_schedule=one_cycle.*warm-up.*"),
        (["--loss=focall"], r".*focall.*focal.*"),
        (["--class_weights=rde=2"], r"--class_weights=.*rde.*red.*"),
        (["--class_weights=red"], r"--class_weights=.*"),
        (["--average=emma"], r"--average=emma.*"),
        (["--average=swa", "--frozen_for=1epochs"], r".*average=swa.*"),
        (
            ["--average=swa", "--bn=batch", "--schedule=finetune", "--finetune_for=40epochs"],
            r"phase finetune: swa with bn=batch.*",
        ),
        (["--early_stop=auc"], "--early_stop=auc is for two classes, and there are 3"),
        (["--logits=one"], "--logits=one tells two classes apart, and there are 3"),
        (["--layer_decay=0.5"], r"--layer_decay=0[.]5.*--lr_multiplier.*"),
        (["--lr_multiplier=nothing=2"], r"--lr_multiplier=nothing=2.*"),
        (["--lr_multiplier=head"], r"--lr_multiplier=head.*"),
        (["--from_layer=conv1"], r".*from_layer=conv1.*order.*"),
        (["--schedule=gradual(3)"], r"top_share=0[.]5: the order of layers .* is not recorded.*"),
        (["--accumulate=4"], "--accumulate=4 must divide --batch_size=6 into equal parts"),
    ],
)
def test_what_does_not_go_together_is_refused(flags, message, run):
    status, _, err, workdir = run(*flags)
    assert status == 2, err
    assert re.fullmatch(f"trainer: {message}\n", err), err
    assert not (workdir / "run.json").exists()


@pytest.mark.slow
def test_small_batches_under_moving_statistics_are_warned_of(run):
    status, out, _, _ = run("--schedule=finetune", "--finetune_for=1steps", "--bn=batch", "--accumulate=2")
    assert status == 0
    assert "bn=batch takes the statistics of BatchNorm from 3 pictures at a time" in out
    assert out.count("bn=batch normalises each 3 of the 6 images of a batch by their own statistics") == 1


@pytest.mark.slow
def test_gradual_unfreezing_and_rates_by_depth_on_a_network_with_layers(pictures, run_main, tmp_path):
    common = (
        f"--source=folder:{pictures}", "--splits=train,validation", "--batch_size=6", "--image_size=8",
        "--backbone=keras:TinyNet", "--weights=none", "--head=linear", "--schedule=gradual(3)",
        "--frozen_for=1steps", "--finetune_for=2steps", "--layer_decay=0.5", "--precision=float32", *PLAIN,
    )  # fmt: skip
    with tiny_net():
        _train_gradually(common, run_main, tmp_path / "run")


def _train_gradually(common, run_main, workdir):
    status, out, err = run_main("inspect", "--verbose", *common)
    assert (status, err) == (0, "")
    counts = [int(n.replace(",", "")) for n in re.findall(r"^phase \S+ ([\d,]+) of", out, re.M)]
    assert len(counts) == 3
    assert all(a < b for a, b in itertools.pairwise(counts))
    rates = dict(re.findall(r"^  train +backbone/(\S+)/(?:kernel|gamma) .* x(\S+)$", out, re.MULTILINE))
    assert rates == {"stem": "0.0625", "stem_bn": "0.125", "middle": "0.25", "last": "0.5"}
    status, out, err = run_main("train", *common, f"--workdir={workdir}")
    assert (status, err) == (0, "")
    assert [line["phase"] for line in lines_of(workdir, "validation")] == [
        "frozen", "gradual2", "gradual3",
    ]  # fmt: skip
