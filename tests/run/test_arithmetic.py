"""The precision of a phase: as asked for, as an earlier start decided, or measured, and all put back."""

import contextlib
import json
import logging
import math
import time

import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import make_flower_folder
from tests.helpers.undrawn import PLAIN
from tests.loop.toys import plan_of
from tests.precision.test_rewriter import options_here
from trainer.cli.config import Config
from trainer.precision import choice as choice_module
from trainer.precision import supported
from trainer.run import arithmetic as arithmetic_module
from trainer.run.arithmetic import (
    TIMED_STEPS,
    Arithmetic,
    forward_step,
    speed_key,
    timed_step,
    train_step,
)
from trainer.run.experiment import Experiment
from trainer.run.session import make_stages
from trainer.runtime import StopSignal
from trainer.values import TrainerError

pytestmark = pytest.mark.usefixtures("figures_undrawn")
HERE = {"cpu": "an abacus"}
PHASES = plan_of("name=top; for=1steps; train=head", "name=all; for=1steps; train=head").phases


@pytest.fixture
def three(monkeypatch):
    """A machine that computes in all of them."""
    for module in (choice_module, arithmetic_module):
        monkeypatch.setattr(module, "supported", lambda: ("float32", "bfloat16", "float16"))
    monkeypatch.setattr(choice_module, "machine", lambda: HERE)


@pytest.fixture
def two(monkeypatch):
    """A machine that computes in float32 and bfloat16, whatever this one is."""
    for module in (choice_module, arithmetic_module):
        monkeypatch.setattr(module, "supported", lambda: ("float32", "bfloat16"))
    monkeypatch.setattr(choice_module, "machine", lambda: HERE)


class Step:
    """A step that takes 1 ms in one arithmetic and 20 ms in the other, and counts."""

    def __init__(self, fastest="bfloat16"):
        self.fastest, self.entered, self.left, self.made = fastest, 0, 0, 0

    @contextlib.contextmanager
    def __call__(self):
        self.entered += 1
        yield self.once
        self.left += 1

    def once(self):
        self.made += 1
        options = options_here()
        is_bfloat16 = options.auto_mixed_precision_onednn_bfloat16 == options.ON
        now = "bfloat16" if is_bfloat16 else "float32"
        time.sleep(0.001 if now == self.fastest else 0.02)


def arithmetic_of(asked, cache_dir, *, decided=None):
    """Returns it with the list of all that `on_decision` was told."""
    told = []
    made = Arithmetic(
        asked,
        decided=decided or {},
        cache_dir=str(cache_dir),
        on_decision=lambda decided: told.append(json.loads(json.dumps(decided))),
    )
    return made, told


def decide(arithmetic, step, *, phase=PHASES[0], key=None, **options):
    return arithmetic.decide(phase, "train step", step=step(), key=key or {"network": "abc"}, **options)


def test_what_is_asked_for_is_taken_and_no_step_is_made(tmp_path):
    arithmetic, told = arithmetic_of("float32", tmp_path, decided={"0-top": "whatever"})
    step = Step()
    assert decide(arithmetic, step) == "float32"
    assert (step.entered, told, list(tmp_path.iterdir())) == (0, [], [])


@pytest.mark.parametrize("fastest", ["float32", "bfloat16"])
def test_auto_measures_once_and_tells(two, tmp_path, fastest):
    arithmetic, told = arithmetic_of("auto", tmp_path)
    step = Step(fastest)
    assert decide(arithmetic, step) == fastest
    # One function for both arithmetics, and it is put away.
    assert (step.entered, step.left) == (1, 1)
    assert list(arithmetic.decided) == ["0-top"]
    assert arithmetic.decided["0-top"]["what"] == "train step of phase top"
    assert set(arithmetic.decided["0-top"]["step_secs"]) == {"float32", "bfloat16"}
    assert told == [json.loads(json.dumps(arithmetic.decided))]
    made = step.made
    assert decide(arithmetic, step) == fastest
    assert (step.entered, step.made, len(told)) == (1, made, 1)


class FastInFloat16(Step):
    """One that takes 1 ms in float16 and 20 ms in all others."""

    def once(self):
        self.made += 1
        time.sleep(0.001 if options_here().auto_mixed_precision == options_here().ON else 0.02)


def test_what_cannot_be_chosen_is_neither_measured_nor_remembered(three, tmp_path, caplog):
    """Updates in float16 scale the loss on one device only."""
    arithmetic, _ = arithmetic_of("auto", tmp_path)
    assert decide(arithmetic, FastInFloat16()) == "float16"
    decided = dict(arithmetic.decided)
    on_several, _ = arithmetic_of("auto", tmp_path)
    step = FastInFloat16()
    assert decide(on_several, step, never=("float16",)) in ("float32", "bfloat16")
    assert step.entered == 1
    assert set(on_several.decided["0-top"]["step_secs"]) == {"float32", "bfloat16"}
    # A run that an earlier version has left with it goes on.
    goes_on, _ = arithmetic_of("auto", tmp_path, decided=decided)
    with caplog.at_level(logging.WARNING, logger="trainer"):
        assert decide(goes_on, FastInFloat16(), never=("float16",)) == "float32"
    assert "phase top began in float16" in caplog.text


def test_every_phase_is_a_matter_of_its_own(two, tmp_path):
    arithmetic, told = arithmetic_of("auto", tmp_path)
    assert decide(arithmetic, Step("bfloat16"), key={"train": "head"}) == "bfloat16"
    assert decide(arithmetic, Step("float32"), phase=PHASES[1], key={"train": "all"}) == "float32"
    assert [list(decided) for decided in told] == [["0-top"], ["0-top", "1-all"]]
    assert [choice["precision"] for choice in told[-1].values()] == ["bfloat16", "float32"]


def test_a_forward_and_a_train_step_are_measured_apart(two, tmp_path):
    for kind, fastest in (("forward", "bfloat16"), ("train step", "float32")):
        arithmetic, _ = arithmetic_of("auto", tmp_path)
        assert arithmetic.decide(PHASES[0], kind, step=Step(fastest)(), key={}) == fastest


def test_the_next_run_remembers(two, tmp_path):
    assert decide(arithmetic_of("auto", tmp_path)[0], Step("bfloat16")) == "bfloat16"
    arithmetic, told = arithmetic_of("auto", tmp_path)
    step = Step("float32")
    assert decide(arithmetic, step) == "bfloat16"
    assert (step.entered, len(told)) == (0, 1)


def test_what_an_earlier_start_decided_counts_more_than_what_is_remembered(two, tmp_path):
    first, _ = arithmetic_of("auto", tmp_path / "one")
    decide(first, Step("bfloat16"))
    decide(arithmetic_of("auto", tmp_path / "other")[0], Step("float32"))
    recorded = json.loads(json.dumps(first.decided))
    again, told = arithmetic_of("auto", tmp_path / "other", decided=recorded)
    step = Step("float32")
    assert decide(again, step) == "bfloat16"
    assert (step.entered, told, again.decided) == (0, [], recorded)


def test_where_there_is_only_float32_a_run_goes_on_too(tmp_path, monkeypatch):
    for module in (choice_module, arithmetic_module):
        monkeypatch.setattr(module, "supported", lambda: ("float32",))
    first, told = arithmetic_of("auto", tmp_path)
    step = Step()
    assert decide(first, step) == "float32"
    assert (step.entered, told[-1]["0-top"]["precision"]) == (0, "float32")
    assert decide(first, step) == "float32"
    again, told = arithmetic_of("auto", tmp_path, decided=told[-1])
    assert (decide(again, step), told) == ("float32", [])


def test_a_step_that_fails_is_put_away(two, tmp_path):
    put_away = []

    @contextlib.contextmanager
    def failing():
        try:
            yield lambda: 1 / 0
        finally:
            put_away.append(True)

    arithmetic, told = arithmetic_of("auto", tmp_path)
    with pytest.raises(ZeroDivisionError):
        decide(arithmetic, failing)
    assert (put_away, told, arithmetic.decided) == ([True], [], {})


# On a tiny network: 18 pictures of three colours, batches of 8.

RECIPES = ("name=top; for=2steps; train=head; lr=0.1", "name=all; for=2steps; train=all; lr=0.1; bn=batch")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return make_flower_folder(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def stages(pictures, tiny_backbone, tmp_path):
    config = Config().replace(
        source=f"folder:{pictures}", backbone=f"savedmodel:{tiny_backbone}", image_size=8, head="linear",
        splits="60%,40%", batch_size=8, dropout=0.5, phase=RECIPES, precision="float32",
        cache_dir=str(tmp_path),
    )  # fmt: skip
    return make_stages(Experiment(config), decided={})


def all_values(state):
    variables = {**state.variables(), "unfit": state.unfit.step}
    return {name: variable.numpy().tobytes() for name, variable in variables.items()}


def measured(stages, run):
    """Returns the names of what has changed after two steps, and after all was put back."""
    state, stage = stages.state, stages.current()
    before = all_values(state)

    def changed():
        now = all_values(state)
        return {name for name in before if now[name] != before[name]}

    with train_step(stages.experiment, state, run, stage.cut) as step:
        assert [isinstance(step(), float) for _ in range(2)] == [True, True]
        meanwhile = changed()
    return meanwhile, changed()


@pytest.mark.parametrize(
    ("step", "moves"), [(0, "model/head/logits/kernel"), (2, "model/backbone/bn/moving_mean")]
)
def test_a_measured_train_step_leaves_nothing_behind(stages, step, moves):
    stages.state.jump(step)
    stage = stages.current()
    assert (stage.cut is not None) == (step == 0)
    meanwhile, after = measured(stages, stage._make_run(stage.cut, "bfloat16"))
    assert {moves, "step", "metrics/loss/total", "optimizer/0000/iteration"} <= meanwhile
    assert after == set()


def test_whatever_a_step_changes_is_put_back(stages):
    state = stages.state
    variables = [*state.variables().values(), *state.unfit.variables()]

    def spoil(iterator, num_steps):
        next(iterator)
        for variable in variables:
            variable.assign(variable + tf.ones_like(variable))
        return tf.zeros([])

    meanwhile, after = measured(stages, spoil)
    # What is infinite stays so.
    assert set(all_values(state)) - meanwhile == {
        "best/accuracy",
        "best/loss",
        "plateau/best",
        "early/best",
    }
    assert after == set()


def test_it_is_put_back_after_a_failure_too(stages):
    state = stages.state
    before = all_values(state)

    def fail(iterator, num_steps):
        state.step_variable.assign(77)
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError), train_step(stages.experiment, state, fail, None) as step:
        step()
    assert all_values(state) == before


def test_every_step_that_is_measured_is_an_update(stages):
    """Above --max_loss each time, and with the batches of the first two steps left out."""
    experiment, state = stages.experiment, stages.state
    experiment.config = experiment.config.replace(max_loss=1e-9)
    stages.left_out = [0, 1]
    stage = stages.current()
    before, made = all_values(state), state.optimizer.iterations
    with train_step(experiment, state, stage._make_run(stage.cut, "bfloat16"), stage.cut) as step:
        for count in (1, 2, 3):
            step()
            assert (int(made), state.step) == (count, 2 + count)
            assert int(state.unfit.step) == 1 + count
    assert all_values(state) == before


def test_a_step_that_makes_no_update_is_no_measurement(stages):
    def nothing(iterator, num_steps):
        return tf.zeros([])

    with (
        pytest.raises(TrainerError, match="no update of phase top was made, so none can be measured"),
        train_step(stages.experiment, stages.state, nothing, None) as step,
    ):
        step()


def test_a_measured_forward_step_is_of_the_first_training_pictures(stages):
    experiment = stages.experiment
    with forward_step(experiment, stages.current()._below) as step:
        [features] = step()
    # A quarter of a batch of 8, in the order of the split; features are red + blue and green + blue.
    first = experiment.splits.indices["train"][:2]
    batch = next(iter(experiment.pipeline.once(first)))["image"].numpy()[:2]
    red, green, blue = batch.mean(axis=(1, 2)).T
    np.testing.assert_allclose(features, np.stack([red + blue, green + blue], axis=1), rtol=1e-5)


def test_the_key_tells_apart_what_differs_in_speed(stages):
    experiment, (top, everything) = stages.experiment, stages.experiment.plan.phases
    cut = experiment.cut(top.spec)
    keys = [speed_key(experiment, top, cut), speed_key(experiment, top, None)]
    keys.append(speed_key(experiment, everything, None))
    assert len({json.dumps(key, sort_keys=True) for key in keys}) == 3
    assert (keys[0]["batch_size"], keys[0]["cut"], keys[1]["cut"]) == (8, "features", "")


# Through the door.


def arguments(pictures, backbone, workdir, *more, cache_dir):
    return [
        f"--source=folder:{pictures}", f"--backbone=savedmodel:{backbone}", "--image_size=8",
        "--head=linear", "--splits=60%,40%", "--batch_size=8", "--schedule=two_phase",
        "--frozen_for=2steps", "--finetune_for=2steps",
        "--progress=plain", f"--workdir={workdir}", f"--cache_dir={cache_dir}", *PLAIN, *more,
    ]  # fmt: skip


def recorded(workdir):
    return json.loads((workdir / "run.json").read_text())["precision"]


@pytest.fixture
def used(monkeypatch):
    """The precisions that functions were made for."""
    from trainer.run import stages as stages_module

    seen, in_precision = [], stages_module.in_precision

    def note(function, precision):
        seen.append(precision)
        return in_precision(function, precision)

    monkeypatch.setattr(stages_module, "in_precision", note)
    return seen


def stop_after_one_step(patch):
    from trainer.loop.standard_callbacks import Stop

    looks, look = [], Stop.__call__

    def counted(self, state):
        looks.append(state.step)
        look(self, state)

    patch.setattr(Stop, "__call__", counted)
    patch.setattr(StopSignal, "requested", lambda self: len(looks) == 1)
    patch.setattr(Stop, "next_due", lambda self, step: step + 1)


def turn_round(choice):
    """Makes the contrary of what is remembered on this machine."""
    found = json.loads(choice.read_text())
    found["precision"] = {"float32": "bfloat16", "bfloat16": "float32"}[found["precision"]]
    choice.write_text(json.dumps(found))


@pytest.mark.slow
def test_a_run_keeps_its_precision(two, pictures, tiny_backbone, tmp_path, run_main, used):
    cache, workdir = tmp_path / "cache", tmp_path / "run"
    command = arguments(pictures, tiny_backbone, workdir, "--schedule=finetune", cache_dir=cache)
    with pytest.MonkeyPatch.context() as patch:
        stop_after_one_step(patch)
        status, out, err = run_main(*command)
    assert (status, out.count("\nprecision:   ")) == (75, 1)
    assert err == "True: stopped at step 1 of 2; everything is saved. Run the same command to continue\n"
    before = recorded(workdir)
    assert (list(before), before["0-finetune"]["what"]) == (["0-finetune"], "train step of phase finetune")
    precision = before["0-finetune"]["precision"]
    assert set(used) == {precision}
    [choice] = (cache / "precision").iterdir()
    turn_round(choice)
    used.clear()
    status, out, err = run_main(*command)
    assert (status, err, "\nprecision:" in out) == (0, "", False)
    assert (set(used), recorded(workdir)) == ({precision}, before)
    # Another run takes what is remembered.
    other = arguments(pictures, tiny_backbone, tmp_path / "other", "--schedule=finetune", cache_dir=cache)
    assert run_main(*other)[0] == 0
    assert {recorded(tmp_path / "other")["0-finetune"]["precision"], precision} == {"float32", "bfloat16"}


@pytest.mark.slow
def test_both_phases_are_decided_and_scored_alike(two, pictures, tiny_backbone, tmp_path, run_main):
    cache, workdir = tmp_path / "cache", tmp_path / "run"
    status, out, err = run_main(*arguments(pictures, tiny_backbone, workdir, cache_dir=cache))
    assert (status, err, out.count("\nprecision:   ")) == (0, "", 2)
    decided = recorded(workdir)
    assert {name: choice["what"] for name, choice in decided.items()} == {
        "0-frozen": "forward of phase frozen", "1-finetune": "train step of phase finetune",
    }  # fmt: skip
    for choice in (cache / "precision").iterdir():
        turn_round(choice)
    metrics = workdir / "report" / "metrics.json"
    scored = metrics.read_bytes()
    metrics.unlink()
    status, out, err = run_main(
        "evaluate", f"--workdir={workdir}", "--eval_split=validation", f"--cache_dir={cache}"
    )
    assert (status, err, "precision:" in out) == (0, "", False)
    assert (metrics.read_bytes(), recorded(workdir)) == (scored, decided)


@pytest.fixture
def bfloat16():
    if "bfloat16" not in supported():
        pytest.skip("TensorFlow does not convert to bfloat16 on this machine")


def test_bfloat16_trains_and_rounds(bfloat16, pictures, tiny_backbone, tmp_path, run_main):
    losses = {}
    for precision in ("float32", "bfloat16"):
        workdir, options = tmp_path / precision, ("--schedule=finetune", f"--precision={precision}")
        status, out, err = run_main(
            *arguments(pictures, tiny_backbone, workdir, *options, cache_dir=tmp_path / "cache")
        )
        assert (status, err, recorded(workdir), "precision:" in out) == (0, "", {}, False)
        lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        losses[precision] = [line["loss"] for line in lines if line["split"] == "validation"]
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)


def save_means(folder):
    """A module whose features are the means of the three colours: no convolution, no product of matrices."""
    module, scale = tf.train.Checkpoint(), tf.Variable([1.0, 1.0, 1.0], name="scale")

    @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 3])])
    def call(inputs):
        return tf.reduce_mean(inputs, [1, 2]) * scale

    module.__call__, module.variables, module.trainable_variables = call, [scale], [scale]
    tf.saved_model.save(module, str(folder))
    return folder


NO_EFFECT = (
    "trainer: --precision={} has no effect on this machine: TensorFlow's rewriter leaves the graph as it is "
    "({}): use --precision=float32 or --precision=auto\n"
)


@pytest.mark.parametrize("cache", ["auto", pytest.param("off", marks=pytest.mark.slow)])
def test_where_nothing_can_be_converted_bfloat16_is_refused(bfloat16, cache, pictures, tmp_path, run_main):
    """A head stays float32, whether it is given features or computes on images."""
    backbone = save_means(tmp_path / "means")
    options = ("--schedule=frozen", "--precision=bfloat16", f"--feature_cache={cache}")
    command = arguments(pictures, backbone, tmp_path / "run", *options, cache_dir=tmp_path / "cache")
    status, _, err = run_main(*command)
    why = "it found nothing in this network that it could convert"
    assert (status, err) == (2, NO_EFFECT.format("bfloat16", why))
    # The corrected command runs in the same folder.
    assert run_main(*command, "--precision=float32")[0] == 0


def test_what_a_machine_does_not_compute_in_is_refused(
    pictures, tiny_backbone, tmp_path, run_main, monkeypatch
):
    missing = [p for p in ("bfloat16", "float16") if p not in supported()]
    if not missing:
        pytest.skip("this machine computes in every precision")
    here = " and ".join(supported())
    for precision in missing:
        workdir, more = tmp_path / precision, f"--precision={precision}"
        status, _, err = run_main(
            *arguments(pictures, tiny_backbone, workdir, more, cache_dir=tmp_path / "cache")
        )
        assert (status, err) == (2, NO_EFFECT.format(precision, f"here it does {here}"))
        assert not workdir.exists()


@pytest.mark.parametrize(("enough_secs", "expected"), [(math.inf, 1 + TIMED_STEPS), (0.01, 2), (0.05, 3)])
def test_a_step_is_timed_as_often_as_is_needed(enough_secs, expected, monkeypatch):
    calls = []
    # The first one traces, which takes a second.
    monkeypatch.setattr(time, "perf_counter", lambda: min(len(calls), 1) + 0.03 * len(calls))
    assert timed_step(lambda: calls.append(None), enough_secs=enough_secs) == pytest.approx(0.03)
    assert len(calls) == expected
