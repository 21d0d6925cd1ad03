"""A sweep without its door: what it is known by, and when it ends by itself."""

import pytest
import tensorflow as tf

from tests.conftest import make_flower_folder
from trainer.cli.flags import parse
from trainer.cli.search import read_space
from trainer.plugins import PluginFailure, load_plugins
from trainer.record.workdir import Workdir
from trainer.run.head_trials import Outcome
from trainer.values import CommonError, MachineError, TrainerError, UsageError

pytest.importorskip("optuna")

from trainer.run.study import Taken
from trainer.run.sweep import Asked, Sweep


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return make_flower_folder(tmp_path_factory.mktemp("sweep") / "pictures", n=2)


@pytest.fixture
def sweep_of(pictures, tmp_path):
    """sweep_of(train, *flags) -> a sweep in a folder, whose trials are what `train` makes of a Config."""

    def make(train, *flags, trials=4, requested=str):
        search = f"--search=seed={','.join(map(str, range(trials)))}"
        usual = ["trainer", "sweep", f"--source=folder:{pictures}", f"--workdir={tmp_path / 'sweep'}"]
        line = parse([*usual, "--sampler=grid", "--repeat_seeds=0", search, *flags])
        (tmp_path / "sweep").mkdir(exist_ok=True)
        space = read_space(line.config.sweep.search, "")

        def trained(config, *, told, requested):
            requested()
            return Outcome({"loss": 1.0, "accuracy": train(config)}, step=1)

        return Sweep(Asked(line.config, line.given, space), heads=None, train=trained, requested=requested)

    return make


def test_a_sweep_is_known_by_the_code_of_its_plugins(sweep_of, tmp_path, without_plugins):
    plugin = tmp_path / "mine.py"
    plugin.write_text("NUMBER = 1\n")
    sweep_of(lambda config: 0.5, f"--plugin={plugin}").work()
    # Under another name it is the same.
    plugin.rename(tmp_path / "moved.py")
    sweep_of(lambda config: 0.5, f"--plugin={tmp_path / 'moved.py'}").work()
    plugin.write_text("NUMBER = 2\n")
    for flags in ([f"--plugin={plugin}"], []):
        now = "SHA-256 [0-9a-f]{64}" if flags else "none"
        told = rf"holds a sweep of something else: plugins was SHA-256 [0-9a-f]{{64}}, now {now}\. Choose"
        with pytest.raises(TrainerError, match=told):
            sweep_of(lambda config: 0.5, *flags)


def states(sweep):
    return [(trial.number, trial.state.name) for trial in sweep.study.trials()]


def test_what_lets_two_trials_fail_alike_before_they_begin_ends_the_sweep(sweep_of, tmp_path):
    tried = []

    def fail(config):
        tried.append(config.run.seed)
        raise TrainerError(f"no network for {config.run.workdir}: nothing answers")

    sweep = sweep_of(fail)
    with pytest.raises(
        TrainerError, match=r"nothing answers\. Every other .* this one, trial 2, and trial 1 "
    ):
        sweep.work()
    assert tried == [0, 1]
    # The sweep goes on with these two, and has all four in the end.
    again = sweep_of(lambda config: tried.append(config.run.seed) or 0.5)
    again.work()
    assert sorted(tried[2:]) == [0, 1, 2, 3]
    assert [state for _, state in states(again)] == ["COMPLETE"] * 4
    assert not any("why" in trial.user_attrs for trial in again.study.trials())


def test_a_full_disk_ends_the_sweep_at_once(sweep_of):
    def fail(config):
        if config.run.seed == 1:
            raise MachineError("checkpoint of step 10 was not saved: no room")
        return 0.5

    sweep = sweep_of(fail)
    with pytest.raises(
        TrainerError, match=r"no room\. Every other trial would fail, too, .* this one counts no"
    ):
        sweep.work()
    assert states(sweep) == [(0, "COMPLETE"), (1, "RUNNING")]
    again = sweep_of(lambda config: 0.5)
    again.work()
    assert [state for _, state in states(again)] == ["COMPLETE"] * 4


@pytest.mark.parametrize("of_tensorflow", [False, True])
def test_a_trial_for_which_there_is_no_memory_has_failed_and_the_others_go_on(sweep_of, of_tensorflow):
    def fail(config):
        if config.run.seed == 1:
            oom = tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[9]")
            raise oom if of_tensorflow else MemoryError("no 9 GB")
        return 0.5

    sweep = sweep_of(fail)
    sweep.work()
    assert [state for _, state in states(sweep)] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert sweep.study.trials()[1].user_attrs["why"].startswith("out of memory: ")


def test_a_trial_of_which_a_plugin_makes_an_error_has_failed_and_the_others_go_on(
    sweep_of, tmp_path, without_plugins
):
    plugin = tmp_path / "mine.py"
    plugin.write_text("def half(seed):\n    return [0.5, None, 0.5, 0.5][seed] / 1\n")

    def train(config):
        load_plugins(config.run.plugin)
        exec(compile(plugin.read_text(), plugin, "exec"), made := {})
        return made["half"](config.run.seed)

    sweep = sweep_of(train, f"--plugin={plugin}")
    sweep.work()
    assert [state for _, state in states(sweep)] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert f"the plugin failed at {plugin}, line 2: TypeError" in sweep.study.trials()[1].user_attrs["why"]


@pytest.mark.parametrize("kind", ["of options", "of each its own", "after it began", "not in a row"])
def test_what_is_of_a_trial_alone_counts_as_a_trial(sweep_of, kind):
    def fail(config):
        if kind == "not in a row" and config.run.seed % 2:
            return 0.5
        if kind == "after it began":
            Workdir(config.run.workdir).run_json.parent.mkdir(parents=True)
            Workdir(config.run.workdir).run_json.write_text("{}")
        told = str(config.run.seed) if kind == "of each its own" else "always"
        raise (UsageError if kind == "of options" else TrainerError)(told)

    sweep = sweep_of(fail)
    sweep.work()
    states_of = [state for _, state in states(sweep)]
    assert states_of == (["FAIL", "COMPLETE"] * 2 if kind == "not in a row" else ["FAIL"] * 4)


class Killed(BaseException):
    """What takes a process away, so that it says nothing more."""


@pytest.mark.parametrize("kind", ["dies", "comes further", "is stopped"])
def test_a_trial_whose_process_dies_each_time_has_failed_after_the_third(sweep_of, monkeypatch, kind):
    tried = []

    def train(config):
        tried.append(config.run.seed)
        if config.run.seed == 1 and tried.count(1) <= 4:
            if kind == "comes further":
                metrics = Workdir(config.run.workdir).metrics_jsonl
                metrics.parent.mkdir(parents=True, exist_ok=True)
                metrics.write_text("{}\n" * len(tried))
            raise Killed
        return 0.5

    if kind != "is stopped":
        monkeypatch.setattr(Taken, "leave", lambda taken: None)
    for _ in range(3 if kind == "dies" else 4):
        with pytest.raises(Killed):
            sweep_of(train).work()
    sweep = sweep_of(train)
    sweep.work()
    is_dead = kind == "dies"
    assert [state for _, state in states(sweep)] == ["COMPLETE", "FAIL" if is_dead else "COMPLETE"] + [
        "COMPLETE"
    ] * 2
    assert tried.count(1) == (3 if is_dead else 5)
    told = sweep.study.trials()[1].user_attrs.get("why", "")
    assert told.startswith("its process was killed 3 times" if is_dead else "")
    assert bool(told) == is_dead


def test_a_trial_that_is_killed_after_it_was_asked_to_stop_has_not_died(sweep_of, monkeypatch):
    asked, die = [], [True]

    def train(config):
        if die[0]:
            raise Killed
        return 0.5

    def requested():
        asked.append(1)
        # Between trials it is not.
        return "SIGTERM" if len(asked) == 2 and die[0] else ""

    real = Taken.leave
    for _ in range(4):
        asked.clear()
        sweep = sweep_of(train, requested=requested)
        with monkeypatch.context() as patched:
            # Who is killed says nothing more.
            patched.setattr(Taken, "leave", lambda taken: real(taken) if len(asked) == 2 else None)
            with pytest.raises(Killed):
                sweep.work()
    die[0] = False
    sweep = sweep_of(train, requested=requested)
    sweep.work()
    assert [state for _, state in states(sweep)] == ["COMPLETE"] * 4


def test_options_that_differ_are_named(sweep_of):
    sweep_of(lambda config: 0.5)
    told = r"else: options was --splits=auto --batch_size=32, now --splits=50%,50% --batch_size=8\. Choose"
    with pytest.raises(TrainerError, match=told):
        sweep_of(lambda config: 0.5, "--batch_size=8", "--splits=50%,50%")


def test_a_sweep_goes_on_over_the_pictures_that_it_began_with(sweep_of):
    began = {"train": (6, "aa"), "validation": (2, "bb"), "test": (2, "cc")}
    for _ in range(2):
        sweep_of(lambda config: 0.5).study.require_pictures(began)
    told = (
        r"/sweep began with: train has 7, and had 6; test has 2, but not the same\. Restore them, or choose"
    )
    with pytest.raises(TrainerError, match=told):
        sweep_of(lambda config: 0.5).study.require_pictures({**began, "train": (7, "dd"), "test": (2, "ee")})


def test_the_best_three_that_are_repeated_are_three_recipes(sweep_of):
    begun = []

    def train(config):
        begun.append((config.model.dropout, config.run.seed))
        return 1 - config.model.dropout

    # Each dropout with each of two seeds.
    sweep = sweep_of(train, "--search=dropout=0,0.1,0.2,0.3", "--repeat_seeds=2", trials=2)
    sweep.work()
    begun.clear()
    sweep.repeat()
    assert sorted(begun) == [(dropout, seed) for dropout in (0, 0.1, 0.2) for seed in (1, 2)]
    result = sweep.result()
    assert [result.texts(number)["dropout"] for number in result.repeats] == ["0", "0.1", "0.2"]


@pytest.mark.parametrize(
    ("error", "has_begun", "passes"),
    [
        (TrainerError("there is no network"), False, True),
        (TrainerError("somebody else is at it"), True, True),
        (PluginFailure("no module"), False, True),
        (PluginFailure("no number"), True, False),
        (UsageError("too much"), False, False),
        (CommonError("it is not the batch"), True, False),
        (MemoryError("no 9 GB"), False, False),
    ],
)
def test_a_repeat_that_failed_by_what_passes_is_made_when_the_sweep_goes_on(
    sweep_of, error, has_begun, passes
):
    begun, is_away = [], [True]

    def train(config):
        begun.append(config.run.seed)
        if config.run.seed == 2 and is_away[0]:
            if has_begun:
                Workdir(config.run.workdir).make()
                Workdir(config.run.workdir).run_json.write_text("{}")
            raise error
        return 0.5

    def repeats():
        sweep = sweep_of(train, "--search=dropout=0,0.1", "--repeat_seeds=2", "--seed=0", trials=2)
        sweep.work()
        begun.clear()
        sweep.repeat()
        return list(begun), list(sweep.result().repeats.values())

    # The seeds are those of the repeats.
    assert repeats() == ([1, 1, 2, 2], [[0.5], [0.5]])
    is_away[0] = False
    assert repeats() == (([2, 2], [[0.5, 0.5]] * 2) if passes else ([], [[0.5], [0.5]]))


@pytest.mark.parametrize(
    "flags",
    [["--metrics=error(2)"], ["--search=metrics=error(2)|confidence"], ["--task=judged"]],
)
def test_the_least_of_a_metric_of_a_plugin_is_the_best_where_it_says_so(
    sweep_of, tmp_path, without_plugins, flags
):
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "import trainer\nfrom trainer.tasks import SingleLabel\n"
        "@trainer.register.metric('error', less_is_better=True)\n"
        "def error(power=1):\n    'How far off it is.'\n    return None\n"
        "@trainer.register.task('judged')\nclass Judged(SingleLabel):\n"
        "    'One class, judged by how far off it is.'\n    metrics = 'accuracy,error(2)'\n"
    )
    load_plugins([str(plugin)])
    sweep = sweep_of(lambda config: 0.5, f"--plugin={plugin}", "--metric=validation_error(power=2)", *flags)
    assert sweep.study.optuna.direction.name == "MINIMIZE"
