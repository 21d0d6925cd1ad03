"""What a run tells of the time left, and what the next one remembers. No time is asserted."""

import json
import re
import shutil

import pytest

from tests.conftest import changed, make_flower_folder
from tests.helpers.feature_runs import tiny_net
from tests.helpers.undrawn import PLAIN
from trainer.cli.flags import parse
from trainer.model.cuts import WHOLE
from trainer.precision import openvino
from trainer.record import progress
from trainer.record.progress import Speed
from trainer.run import fitting, foresight
from trainer.run import stages as stages_module
from trainer.run.experiment import Experiment
from trainer.run.fitting import PretrainedFeatures
from trainer.run.run_times import RunTimes
from trainer.run.session import make_stages

pytestmark = pytest.mark.usefixtures("figures_undrawn")

STEPS = 6
LINE = re.compile(r"^step (\d+)/12 \((frozen|finetune), .*, (at least )?\d\d:\d\d left$", re.MULTILINE)


@pytest.fixture
def arguments(tmp_path, tiny_backbone, monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_EVERY_SECS", 0.0)
    pictures = make_flower_folder(tmp_path / "pictures")
    return [
        f"--source=folder:{pictures}", f"--backbone=savedmodel:{tiny_backbone}", "--image_size=8",
        "--head=linear", "--splits=60%,40%", "--batch_size=4", "--schedule=two_phase",
        f"--frozen_for={STEPS}steps",
        f"--finetune_for={STEPS}steps", "--log_every=1steps", "--progress=plain", "--precision=float32",
        *PLAIN, f"--cache_dir={tmp_path / 'cache'}",
    ]  # fmt: skip


@pytest.mark.slow
def test_the_next_run_knows_what_is_to_come(arguments, tmp_path, run_main):
    status, out, err = run_main(*arguments, f"--workdir={tmp_path / 'first'}")
    assert (status, err) == (0, "")
    told = {int(step): bool(least) for step, _, least in LINE.findall(out)}
    # As long as no step of the second phase is measured, it takes nobody knows how long.
    assert told == {step: step <= STEPS + 1 for step in range(2, 2 * STEPS + 1)}
    kept = [json.loads(path.read_text()) for path in (tmp_path / "cache" / "speeds").iterdir()]
    # How long a picture takes through the network is kept beside the phases and the end.
    [picture] = [one for one in kept if "picture" in one["key"]]
    assert picture["step_secs"] > 0
    kept.remove(picture)
    assert sorted((one["key"]["cut"], "end" in one["key"]) for one in kept) == [
        ("", False), ("", True), ("features", False),
    ]  # fmt: skip
    for one in kept:
        assert one["start_secs"] > 0
        assert ("end" in one["key"]) == (one["step_secs"] is None)
    status, out, err = run_main(*arguments, f"--workdir={tmp_path / 'second'}", "--seed=1")
    assert (status, err) == (0, "")
    assert {int(step): bool(least) for step, _, least in LINE.findall(out)} == dict.fromkeys(told, False)


@pytest.fixture
def stages_of(arguments):
    """stages_of(*flags) -> the stages of a run that has not begun."""

    def make(*flags):
        config = parse(["trainer", *changed(arguments, *flags), "--workdir=none"]).config
        return make_stages(Experiment(config), decided={})

    return make


def times_of(stages):
    """The times of a run whose updates take next to nothing."""
    phases = stages.experiment.plan.phases
    return RunTimes(stages, foreseen=[Speed(0.001, 0.001, 1.0) for _ in phases])


def counts_of(stages):
    return {split: len(at) for split, at in stages.experiment.splits.indices.items()}


def test_features_that_are_computed_anew_are_in_the_time_that_is_told(stages_of, tmp_path):
    first = stages_of()
    first.take({}, picture_secs=60.0)
    assert times_of(first).describe() == "about 18 min"
    for split in counts_of(first):
        first.current().batches(split)
    first.take({}, picture_secs=60.0)
    times_of(first).remember()
    # They are there, however long they took.
    assert times_of(stages_of("--seed=1")).describe() == "about 10 s"
    # Of other splits they are not; how long they will take is remembered.
    other = times_of(stages_of("--split_seed=3"))
    assert (other.is_known, other.describe()) == (True, "about 18 min")
    # Of other pictures nobody knows that.
    shutil.copytree(tmp_path / "pictures", tmp_path / "others")
    others = times_of(stages_of(f"--source=folder:{tmp_path / 'others'}", "--split_seed=4"))
    assert not others.is_known


def test_each_view_of_a_picture_that_is_kept_is_counted(stages_of):
    stages = stages_of("--schedule=frozen", "--augment=flip", "--feature_views=8")
    stages.take({}, picture_secs=60.0)
    count = counts_of(stages)
    # What the report is compared with takes the pictures of train as they are.
    passes = 8 * count["train"] + count["train"] + count["validation"]
    hours, minutes = divmod(passes, 60)
    assert times_of(stages).describe() == f"about {hours} h {minutes} min"
    assert foresight.work(stages.experiment) == pytest.approx(passes * 8 * 8 / 224**2)
    # Each of the other phases that keep something keeps its own.
    top = "--phase=for=1epochs; train=all; augment=flip"
    both = stages_of("--phase=name=head; for=1epochs; train=head", top)
    both.take({}, picture_secs=60.0)
    assert times_of(both).describe() == "about 18 min"


def test_what_the_report_is_compared_with_is_in_the_time_that_is_told(stages_of, monkeypatch):
    stages = stages_of("--schedule=finetune")
    assert not times_of(stages).is_known
    # It is measured where it is foreseen, and where it is done.
    foreseen = foresight.foresee(stages.experiment, decided={})
    assert foreseen.picture_secs > 0
    assert foreseen.speeds[0].evaluation_secs == counts_of(stages)["validation"] * foreseen.picture_secs
    PretrainedFeatures(stages).of("train")
    assert stages.picture_secs > 0
    stages.take({}, picture_secs=60.0)
    assert times_of(stages).describe() == "about 18 min"
    monkeypatch.setattr(fitting, "ALWAYS_CHEAP", 0)
    monkeypatch.setattr(fitting, "CHEAP_SHARE", 0.1)
    assert times_of(stages).describe() == "about 10 s"
    assert foresight.foresee(stages.experiment, decided={}).picture_secs is None


def test_to_know_how_long_a_run_takes_no_split_is_computed(stages_of, tmp_path):
    top = "--phase=name=top; for=1epochs; train=head backbone/last.*"
    with tiny_net():
        stages = stages_of("--backbone=keras:TinyNet", "--weights=none", top)
        assert foresight.foresee(stages.experiment, decided={}).picture_secs > 0
    assert stages.current().cut.name != WHOLE
    assert not (tmp_path / "cache" / "features").exists()


@pytest.mark.parametrize("ask", ["step_secs", "picture_secs"])
def test_what_openvino_cannot_run_is_measured_in_tensorflow(stages_of, monkeypatch, caplog, ask):
    def unusable(*args, **options):
        raise openvino.UnusableError("no such operation")

    monkeypatch.setattr(openvino, "version", lambda: "1.2")
    monkeypatch.setattr(openvino, "precisions", lambda: ("float32",))
    monkeypatch.setattr(openvino, "require_installed", lambda *, flag: None)
    monkeypatch.setattr(stages_module, "compiled", unusable)
    stage = stages_of("--engine=openvino").current()
    assert stage.engine == "openvino-float32"
    assert getattr(stage, ask)() > 0
    assert stage.engine == "tensorflow"
    assert caplog.text.count("OpenVINO cannot run this network, TensorFlow does (no such operation)") == 1


def test_what_is_remembered_of_other_pictures_is_not_told(stages_of, tmp_path):
    def of_each_phase(*flags):
        times = times_of(stages_of("--feature_cache=auto", *flags))
        return [times.left.speed(number).step_secs for number in range(2)]

    first = times_of(stages_of("--feature_cache=auto"))
    first.left.measured = lambda at: Speed(step_secs=1.0, start_secs=1.0)
    first.remember()
    assert of_each_phase() == [1.0, 1.0]
    others = make_flower_folder(tmp_path / "others")
    # Features that are kept are read as fast, whatever they are of.
    assert of_each_phase(f"--source=folder:{others}")[0] == 1.0
    assert of_each_phase(f"--source=folder:{others}")[1] != 1.0
    assert of_each_phase("--picture_cache=off")[1] != 1.0
