"""What is recommended, what of it is set by hand, and runs of it: the same again, evaluated, used."""

import dataclasses
import json

import pytest

import trainer
from tests.conftest import make_flower_folder
from tests.helpers.undrawn import PLAIN
from trainer import plugins
from trainer.cli.config import Config
from trainer.cli.declare import RECOMMENDED
from trainer.cli.flags import parse
from trainer.loop.phases import make_plan
from trainer.record.progress import Speed
from trainer.record.workdir import Workdir
from trainer.run import budget, foresight
from trainer.run import experiment as experiment_room
from trainer.run.experiment import Experiment
from trainer.run.recommended import BATCH_SIZE, Effort, efforts, recommend, sizes_of, usual_effort
from trainer.run.stages import Stage
from trainer.store.files import read_json, write_json
from trainer.values import UsageError

pytestmark = pytest.mark.usefixtures("figures_undrawn")


@pytest.mark.parametrize(("num_train", "batch_size"), [(1, 1), (3, 2), (22, 16), (32, 32), (5_000, 32)])
def test_an_update_sees_no_more_pictures_than_there_are(num_train, batch_size):
    assert recommend(Effort(1), num_train=num_train)["batch_size"] == batch_size


def test_very_many_pictures_are_seen_less_often():
    lengths = [usual_effort(num_train).epochs for num_train in (1, 10, 2_000, 20_000, 1_000_000)]
    assert lengths == [6, 6, 6, 3, 2]
    assert usual_effort(1_000, sizes=(224, 288)) == Effort(6, 288)
    assert usual_effort(1_000, sizes=(224, 288), budget="quick") == Effort(0, 224)
    assert usual_effort(1_000, sizes=(224, 288), budget="best") == Effort(12, 288)
    assert usual_effort(1_000) == Effort(6)


@pytest.mark.parametrize("epochs", [0, 5])
@pytest.mark.parametrize("num_train", [1, 300, 100_000])
def test_what_is_recommended_is_a_configuration(epochs, num_train):
    chosen = recommend(Effort(epochs), num_train=num_train)
    assert {"schedule", *RECOMMENDED}.issuperset(chosen)
    config = Config().filled_in(chosen)
    assert [spec.name for spec in config.phases] == ["frozen", "finetune"][: 2 if epochs else 1]
    # Changed pictures are no kept features.
    assert not config.phases[0].augment
    assert config.phases[0].average is None
    # Once is enough.
    assert config.filled_in(recommend(Effort(9), num_train=7)) == config


def test_what_is_set_by_hand_stays():
    chosen = recommend(Effort(5), num_train=1_000)
    given = [
        "--label_smoothing=0",
        "--finetune_for=2epochs",
        "--augment=",
        "--optimizer=adam",
        "--from_layer=-3",
    ]
    config = parse(["trainer", *given]).config
    assert config.plan.by_hand == ("finetune_for", "optimizer", "augment", "label_smoothing")
    filled = config.filled_in(chosen)
    assert filled.update.label_smoothing == 0
    frozen, finetune = filled.phases
    assert (str(finetune.duration), finetune.augment, finetune.train) == ("2epochs", (), ("from_layer=-3",))
    # What is left is chosen.
    assert finetune.learning_rate == chosen["finetune_learning_rate"] != Config().plan.finetune_learning_rate
    assert frozen.learning_rate == chosen["frozen_learning_rate"]
    # The flagfile of a run says what was set by hand, and nothing that was chosen.
    lines = config.flagfile().splitlines()
    assert "--label_smoothing=0.0" in lines
    assert not [line for line in lines if line.startswith(("--finetune_learning_rate", "--by_hand"))]


@pytest.mark.parametrize("option", ["--from_layer=-3", "--unfreeze_top_layers=2", "--finetune_train=head"])
def test_what_fine_tuning_trains_says_nothing_of_the_head_alone(option):
    config = parse(["trainer", option, "--budget=5min"]).config
    for effort, names in (Effort(0), ["frozen"]), (Effort(2), ["frozen", "finetune"]):
        filled = config.filled_in(recommend(effort, num_train=64, asked=config))
        assert [spec.name for spec in filled.phases] == names
    assert filled.phases[1].train != ("all",)


@pytest.mark.parametrize("option", ["--from_layer=-3", "--unfreeze_top_layers=2"])
def test_where_nothing_is_fine_tuned_nobody_says_what_of_the_network_is(option):
    with pytest.raises(UsageError, match="fine-tuning, and --budget=quick has no such phase"):
        parse(["trainer", option, "--budget=quick"])


def test_a_run_with_a_schedule_that_rises_by_itself_begins_without_a_warm_up(tmp_path, tiny_backbone):
    arguments = arguments_of(tmp_path, tiny_backbone, "--lr_schedule=one_cycle")
    experiment = experiment_room.Experiment(parse(["trainer", *arguments]).config)
    assert (experiment.chosen["warmup"], experiment.chosen["lr_schedule"]) == ("0steps", "cosine")
    assert {phase.warmup_steps for phase in experiment.plan.phases} == {0}
    assert {str(phase.spec.lr_schedule) for phase in experiment.plan.phases} == {"one_cycle"}


RISING = """
import trainer


@trainer.register.schedule("tent", rises=True)
def tent():
    '''Up to the middle, and down.'''
    return lambda step, num_steps: 1.0 - abs(2.0 * step / num_steps - 1.0)
"""


@pytest.mark.usefixtures("without_plugins")
def test_a_schedule_that_rises_by_itself_gets_no_warm_up(tmp_path):
    (tmp_path / "rising.py").write_text(RISING)
    plugins.load_plugins([str(tmp_path / "rising.py")])

    def plan_of(*given):
        config = parse(["trainer", *given]).config
        filled = config.filled_in(recommend(Effort(5), num_train=1_000, asked=config))
        plan = make_plan(filled.phases, num_examples=1_000, batch_size=filled.plan.batch_size)
        return [phase.warmup_steps for phase in plan.phases]

    assert plan_of("--lr_schedule=one_cycle") == plan_of("--lr_schedule=tent") == [0, 0]
    assert plan_of("--lr_schedule=one_cycle(0.2)", "--frozen_for=1epochs") == [0, 0]
    assert plan_of("--lr_schedule=linear") == plan_of("--lr_schedule=cosine") == plan_of() == [10, 16]
    # Who asks for both is told.
    with pytest.raises(UsageError, match="one_cycle rises by itself: leave the warm-up away"):
        plan_of("--lr_schedule=one_cycle", "--warmup=10%")


def test_other_schedules_are_as_they_were_and_know_no_budget():
    for given in ("--schedule=two_phase", "--phase=for=1epochs; train=head"):
        config = parse(["trainer", given]).config
        assert config.filled_in(recommend(Effort(5), num_train=9)) == config
        with pytest.raises(UsageError, match=r"^--budget is of --schedule=recommended"):
            parse(["trainer", given, "--budget=quick"])
    for wrong in ("5", "min", "-5min", "5 minutes", "quickly"):
        with pytest.raises(UsageError, match="is not a time, such as 5min, 90s or 1h, nor quick or best"):
            parse(["trainer", f"--budget={wrong}"])


def arguments_of(tmp_path, backbone, *more):
    pictures = make_flower_folder(tmp_path / "pictures", n=10)
    return (
        f"--source=folder:{pictures}", f"--backbone=savedmodel:{backbone}", "--splits=18,6,6",
        "--precision=float32", "--image_size=8", "--head=linear", "--log_every=1steps", *PLAIN, *more,
    )  # fmt: skip


@pytest.mark.slow
def test_a_run_keeps_what_was_chosen_for_it(tmp_path, tiny_backbone, run_main, monkeypatch):
    monkeypatch.setattr(experiment_room, "usual_effort", lambda num_train, **given: Effort(2))
    arguments = arguments_of(tmp_path, tiny_backbone, "--frozen_for=1epochs")
    workdir = tmp_path / "run"
    status, out, err = run_main("train", *arguments, f"--workdir={workdir}")
    assert (status, err) == (0, "")
    assert "schedule:    recommended for 18 pictures to train with: --batch_size=16 " in out
    assert "--frozen_for" not in out
    run = read_json(workdir / "run.json")
    assert run["chosen"] == recommend(Effort(2), num_train=18)
    assert (run["config"]["finetune_for"], run["config"]["by_hand"]) == (
        "5epochs", ["image_size", "head", "frozen_for"],
    )  # fmt: skip
    # A newer version may choose otherwise: this run stays what it is.
    monkeypatch.setattr(experiment_room, "usual_effort", lambda num_train, **given: Effort(7))
    assert [str(spec.duration) for spec in Workdir(str(workdir)).read_filled_in().phases] == [
        "1epochs",
        "2epochs",
    ]
    before = (workdir / "metrics.jsonl").read_bytes()
    status, out, _ = run_main("train", *arguments, f"--workdir={workdir}")
    assert (status, "is finished" in out, "--extend" in out) == (0, True, False)
    # What was chosen is what the run has, and its rate falls to the end: no longer run begins like it.
    longer = ("--finetune_for=9epochs", "--extend", f"--workdir={workdir}")
    status, _, err = run_main("train", *arguments, *longer)
    assert status == 1
    assert "holds a run with other options: --finetune_for was 2epochs, now 9epochs. --extend cannot" in err
    status, out, err = run_main("evaluate", f"--workdir={workdir}")
    assert (status, err) == (0, "")
    status, out, err = run_main(
        "predict", f"--workdir={workdir}", tmp_path / "pictures" / "red", "--format=jsonl"
    )
    assert (status, len(out.splitlines())) == (0, 10)
    assert (workdir / "metrics.jsonl").read_bytes() == before
    metrics = read_json(workdir / "report" / "metrics.json")
    assert metrics["schedule"] == "recommended"
    assert metrics["batch_size"] == 16
    # What one sets by hand makes another run.
    status, _, err = run_main("train", *arguments, "--label_smoothing=0", f"--workdir={workdir}")
    assert (status, "holds a run with other options: --by_hand was" in err) == (1, True)
    # A flagfile says all of it.
    status, _, err = run_main(
        "train", f"--flagfile={workdir / 'flagfile.flags'}", f"--workdir={tmp_path / 'again'}"
    )
    assert (status, err) == (0, "")
    seven = [
        json.loads(line)["step"] for line in (tmp_path / "again" / "metrics.jsonl").read_text().splitlines()
    ]
    two = [json.loads(line)["step"] for line in before.splitlines()]
    assert max(seven) == 2 * (1 + 7) > max(two) == 2 * (1 + 2)


def test_an_interrupted_run_goes_on_with_what_was_chosen(tmp_path, tiny_backbone, run_main, monkeypatch):
    arguments = arguments_of(
        tmp_path, tiny_backbone, "--frozen_for=1epochs", "--finetune_for=1epochs", "--class_weights=red=2"
    )
    assert run_main("train", *arguments, f"--workdir={tmp_path / 'whole'}")[0] == 0
    given = (*arguments, f"--workdir={tmp_path / 'run'}")
    status, _, err = run_main("train", *given, "--max_minutes=0.00001")
    assert (status, "Run the same command to continue" in err) == (75, True)
    # A newer version may choose otherwise.
    monkeypatch.setattr(experiment_room, "usual_effort", lambda num_train, **given: Effort(7))
    status, out, err = run_main("train", *given)
    assert (status, err) == (0, "")
    assert "goes on from step " in out
    whole, went_on = (tmp_path / name / "metrics.jsonl" for name in ("whole", "run"))
    assert went_on.read_bytes() == whole.read_bytes()
    whole, went_on = (read_json(tmp_path / name / "report/metrics.json") for name in ("whole", "run"))
    assert {**went_on, "run": whole["run"]} == whole
    assert whole["assumed_prevalence"]["classes"]["red"]["assumed"] == pytest.approx(0.5)


@pytest.mark.slow
def test_what_was_chosen_may_be_damaged(tmp_path, tiny_backbone, run_main):
    arguments = arguments_of(tmp_path, tiny_backbone, "--frozen_for=1epochs", "--finetune_for=1epochs")
    workdir = tmp_path / "run"
    assert run_main("train", *arguments, f"--workdir={workdir}")[0] == 0
    run = read_json(workdir / "run.json")
    for damage in (["frozen_for"], {"no_such_option": 1}, {"warmup": "often"}):
        write_json(workdir / "run.json", {**run, "chosen": damage})
        status, _, err = run_main("predict", f"--workdir={workdir}", tmp_path / "pictures" / "red")
        assert (status, "run.json is damaged" in err) == (1, True)


@pytest.mark.slow
def test_a_run_of_before_there_was_a_rule_goes_on(tmp_path, tiny_backbone, run_main):
    arguments = arguments_of(tmp_path, tiny_backbone, "--frozen_for=1epochs", "--finetune_for=1epochs")
    workdir = tmp_path / "run"
    older = (*arguments, "--batch_size=4", f"--workdir={workdir}")
    assert run_main("train", *older, "--schedule=two_phase", "--max_minutes=0.00001")[0] == 75
    # As the version before left it.
    run = read_json(workdir / "run.json")
    for name in ("budget", "by_hand"):
        del run["config"][name]
    write_json(workdir / "run.json", run)
    # The same command, which named no schedule.
    status, out, err = run_main("train", *older)
    assert (status, err) == (0, "")
    assert "recommended" not in out
    assert read_json(workdir / "report" / "metrics.json")["schedule"] == "two_phase"
    # One that names it is another.
    status, _, err = run_main("train", *older, "--schedule=recommended")
    assert (status, "--schedule was two_phase, now recommended" in err) == (1, True)


@pytest.mark.slow
def test_a_run_is_the_same_whether_its_time_was_measured_before_or_not(
    tmp_path, tiny_backbone, run_main, monkeypatch
):
    arguments = arguments_of(tmp_path, tiny_backbone, "--frozen_for=2epochs", "--finetune_for=2epochs")
    assert run_main("train", *arguments, f"--workdir={tmp_path / 'not'}")[0] == 0
    asked = []

    def noted(experiment, **given):
        asked.append(foresight.foresee(experiment, **given))
        return asked[-1]

    monkeypatch.setattr("trainer.commands.train.foresee", noted)
    monkeypatch.setattr("trainer.commands.train.LEAST_WORK", 0)
    # Nothing is remembered in a cache of its own.
    fresh = f"--cache_dir={tmp_path / 'cache'}"
    status, out, err = run_main("train", *arguments, fresh, f"--workdir={tmp_path / 'measured'}")
    assert (status, err, len(asked)) == (0, "", 1)
    assert "time:        about " in out
    # An evaluation is what the network takes for as many pictures.
    [(head, everything), picture_secs] = asked[0].speeds, asked[0].picture_secs
    assert head == foresight.HEAD
    num_validation = len(read_json(tmp_path / "measured" / "splits.json")["splits"]["validation"])
    assert everything.evaluation_secs == pytest.approx(num_validation * picture_secs)
    plain, measured = (tmp_path / name / "metrics.jsonl" for name in ("not", "measured"))
    assert measured.read_bytes() == plain.read_bytes()


def test_how_much_a_run_computes(tmp_path, tiny_backbone):
    """15, 9 and 6 pictures of 8 px, which go through the network, and six updates of all, of 5 each."""
    source = make_flower_folder(tmp_path / "pictures", n=10)
    given = {"source": f"folder:{source}", "splits": "50%,30%,20%", "image_size": 8, "batch_size": 5}
    head, everything = "for=2epochs; train=head", "for=2epochs; train=all"
    # Their features are kept, or what the report is compared with takes them.
    for phases, passes in ([head], 30), ([everything], 30 + 3 * 30), ([head, everything], 30 + 3 * 30):
        experiment = trainer.prepare(**given, backbone=f"savedmodel:{tiny_backbone}", phase=phases)
        assert foresight.work(experiment) == pytest.approx(passes * 8 * 8 / 224**2)


@pytest.mark.parametrize("phases", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_what_is_kept_is_in_the_time_that_is_told(phases, tmp_path, tiny_backbone, run_main, monkeypatch):
    monkeypatch.setattr("trainer.commands.train.LEAST_WORK", 0)

    def foreseen(experiment, **given):
        return foresight.Foreseen((foresight.HEAD,) * phases, picture_secs=60.0, decided={})

    monkeypatch.setattr("trainer.commands.train.foresee", foreseen)
    schedule = "--schedule=frozen" if phases == 1 else "--schedule=two_phase"
    recipe = (schedule, "--frozen_for=1epochs", "--batch_size=8")
    recipe += ("--finetune_for=1epochs",) if phases == 2 else ()
    arguments = arguments_of(tmp_path, tiny_backbone, *recipe)
    fresh = f"--cache_dir={tmp_path / 'cache'}"
    status, out, err = run_main("train", *arguments, fresh, f"--workdir={tmp_path / 'run'}")
    assert (status, err) == (0, "")
    # 30 pictures of a minute each, and some seconds.
    assert "time:        about 30 min from here\n" in out


COSTS = budget.Costs(
    num_scored=0,
    side_px=224,
    speeds=(foresight.HEAD, Speed(step_secs=4.0, evaluation_secs=2.0, start_secs=10.0)),
    picture_secs=0.25,
)


@pytest.fixture(scope="module")
def offers_of(tmp_path_factory, tiny_backbone):
    """offers_of(*flags) -> what may be chosen for 64 pictures, and 32 of validation."""
    source = make_flower_folder(tmp_path_factory.mktemp("offers") / "pictures", n=32)

    def offers(*given):
        usual = ("trainer", f"--source=folder:{source}", f"--backbone=savedmodel:{tiny_backbone}")
        usual += ("--splits=64,32", "--workdir=none", "--budget=5min")
        size = () if any(one.startswith("--image_size") for one in given) else ("--image_size=224",)
        return budget.offers_to(Experiment(parse([*usual, *size, *given]).config))

    return offers


def offer(effort, *phases, num_once=96):
    return budget.Offer(effort, phases, num_once)


def test_what_efforts_cost():
    # Of the head, 20 updates over features that are kept, and 10 scores.
    head, before = foresight.HEAD, 96 * 0.25
    alone = head.start_secs + 20 * head.step_secs + 10 * head.evaluation_secs
    assert COSTS.secs(offer(Effort(0), (20, 10))) == pytest.approx(alone + before + budget.END_SECS)
    # Two updates and a score, three times.
    both = (20, 10), (6, 3)
    found = COSTS.secs(offer(Effort(3), *both))
    assert found == pytest.approx(alone + before + budget.END_SECS + 10 + 6 * 4 + 3 * 2)
    # Four times the area.
    found = COSTS.secs(offer(Effort(3, 448), *both))
    assert found == pytest.approx(alone + 4 * before + budget.END_SECS + 10 + 4 * (6 * 4 + 3 * 2))
    # Test is scored with the network that has changed, too.
    scored = dataclasses.replace(COSTS, num_scored=100)
    assert scored.secs(offer(Effort(0), (20, 10))) == COSTS.secs(offer(Effort(0), (20, 10)))
    assert scored.secs(offer(Effort(3), *both)) == COSTS.secs(offer(Effort(3), *both)) + 100 * 0.25


def test_what_is_set_by_hand_is_what_is_priced(offers_of):
    plain = offers_of()
    assert plain[0] == budget.Offer(Effort(0), ((20, 10),), 96, ())
    assert (plain[1].phases, plain[2].phases) == (((6, 3), (2, 1)), ((6, 3), (3, 2)))
    # A length that is set by hand is the only one there is, and the head alone is none.
    [long] = offers_of("--finetune_for=30epochs")
    assert (long.phases, long.describe()) == (((6, 3), (60, 30)), "fine-tuning (--finetune_for=30epochs)")
    [longer] = offers_of("--finetune_for=30epochs", "--frozen_for=50epochs")
    assert longer.phases == ((100, 50), (60, 30))
    assert longer.describe() == "fine-tuning (--frozen_for=50epochs --finetune_for=30epochs)"
    # Of the head it leaves all others.
    head = offers_of("--frozen_for=50epochs")
    assert [one.effort for one in head] == [one.effort for one in plain]
    assert (head[0].phases, head[1].phases) == (((100, 50),), ((100, 50), (2, 1)))
    assert head[0].describe() == "the head alone (--frozen_for=50epochs)"
    # Each update is followed by a score; four are an epoch.
    dense = offers_of("--evaluate_every=1steps", "--batch_size=16")
    assert (dense[0].phases, dense[1].phases) == (((40, 40),), ((12, 12), (4, 4)))
    assert dense[1].describe() == "1 epoch of fine-tuning (--evaluate_every=1steps)"
    # A warm-up that only longer phases have room for.
    warm = offers_of("--warmup=5steps")
    assert min(one.phases[-1][0] for one in warm) == 5


def test_without_kept_features_the_head_goes_through_the_network(tmp_path, tiny_backbone, monkeypatch):
    source = make_flower_folder(tmp_path / "pictures", n=10)
    given = (f"--source=folder:{source}", f"--backbone=savedmodel:{tiny_backbone}", "--splits=18,6,6")
    given += ("--image_size=8", "--feature_cache=off", "--budget=1h", "--precision=float32", "--workdir=none")
    experiment = Experiment(parse(["trainer", *given]).config)
    monkeypatch.setattr(Stage, "step_secs", lambda self: 3.0 if self.phase.index else 1.0)
    foreseen = foresight.foresee(experiment, decided={})
    # 16 pictures an update, of which reading them is some of the time.
    frozen, _ = foreseen.speeds
    assert foreseen.picture_secs == frozen.step_secs / 16
    assert 1.0 < frozen.step_secs < 3.0
    assert frozen.evaluation_secs == pytest.approx(6 * foreseen.picture_secs)
    costs = budget.Costs.of(experiment, foreseen)
    head = budget.offers_to(experiment)[0]
    # Two updates an epoch, ten epochs with a score each; 30 pictures for what the report is compared with.
    assert (head.phases, head.num_once) == (((20, 10),), 30)
    assert costs.secs(head) >= 20 * 1.0 + 10 * 6 / 16 + (30 + 6) / 16


def test_the_most_that_ends_in_time_is_chosen_and_what_more_would_buy(monkeypatch, offers_of):
    monkeypatch.setattr(budget, "sizes_of", lambda config: (224, 288))
    offers = offers_of()
    efforts_of = [one.effort for one in offers]
    assert efforts_of == efforts(64, sizes=(224, 288))
    assert efforts_of[:4] == [Effort(0, 224), Effort(1, 224), Effort(1.25, 224), Effort(1.5, 224)]
    usual = efforts_of.index(Effort(6, 224))
    assert (efforts_of[usual + 1], efforts_of[-1]) == (Effort(6, 288), Effort(12, 288))
    every = [COSTS.secs(one) for one in offers]
    assert every == sorted(every)
    for at, one in enumerate(offers):
        chosen, longer = budget.choose(offers, COSTS, left_secs=COSTS.secs(one) + 0.01)
        # Of so few pictures, a quarter of an epoch may be no update more.
        assert COSTS.secs(chosen) == COSTS.secs(one)
        number = offers.index(chosen)
        assert (longer.effort if longer else None) == (
            Effort(6, 288) if number <= usual else Effort(12, 288) if number < len(offers) - 1 else None
        )
        # Of a longer time, no more is left than half an epoch takes, with its score.
        if at not in (0, usual, len(offers) - 1):
            area = (one.effort.image_size / 224) ** 2
            assert COSTS.secs(offers[at + 1]) - COSTS.secs(one) <= (4.0 + 2.0) * area + 1e-9
    # Less than the least is not to be had.
    assert budget.choose(offers, COSTS, left_secs=1.0)[0] == offers[0]
    # Of a length that is set by hand, the size is left to choose.
    sizes = offers_of("--finetune_for=3epochs")
    assert [one.effort.image_size for one in sizes] == [224, 288]
    assert len({one.phases for one in sizes}) == 1
    assert sizes[1].describe() == "fine-tuning at 288 px (--finetune_for=3epochs)"
    # Of a network that was measured at no other size, more is longer.
    assert efforts(64)[:3] == [Effort(0), Effort(1), Effort(1.25)]
    assert efforts(64)[-1] == Effort(12)
    assert len(efforts(64)) == 2 + 11 * 4


def test_sizes_are_those_that_were_measured_unless_one_is_set_by_hand():
    assert sizes_of(Config()) == (224, 288)
    assert sizes_of(Config().replace(image_size=96)) == ()
    assert sizes_of(Config().replace(backbone="keras:MobileNetV2")) == ()


@pytest.mark.slow
def test_a_budget_is_planned_once(tmp_path, tiny_backbone, run_main, monkeypatch):
    asked = []

    def noted(experiment, **given):
        asked.append(experiment)
        return foresight.foresee(experiment, **given)

    monkeypatch.setattr(budget, "foresee", noted)
    arguments = (
        *arguments_of(tmp_path, tiny_backbone, "--frozen_for=1epochs"),
        f"--workdir={tmp_path / 'run'}",
    )
    status, out, err = run_main("train", *arguments, "--budget=120s")
    assert (status, err) == (0, "")
    assert "budget:      --budget=120s is enough for " in out
    assert len(asked) == 1
    # Asked again, with other speeds, it is the same run.
    status, out, _ = run_main("train", *arguments, "--budget=120s")
    assert (status, "is finished" in out, len(asked)) == (0, True, 1)
    short = ("--lr_schedule=one_cycle", f"--workdir={tmp_path / 'short'}", "--budget=1s")
    status, out, err = run_main("train", *arguments[:-1], *short)
    assert (status, "Traceback" in err) == (0, False)
    told = (
        "--budget=1s is too short for the head alone (--frozen_for=1epochs) on this machine, the least there"
    )
    assert (f"{told} is: it takes about " in out, " is enough for " in out) == (True, False)
    status, out, _ = run_main("train", *arguments[:-1], f"--workdir={tmp_path / 'quick'}", "--budget=quick")
    assert (status, "finetune" in out) == (0, False)


def test_all_folds_train_what_the_first_one_has_measured(tmp_path, tiny_backbone, run_main, monkeypatch):
    asked = []

    def foreseen(experiment, **given):
        # Faster each time.
        asked.append(experiment)
        speed = Speed(step_secs=0.1 ** len(asked) * 1e3, evaluation_secs=0.0, start_secs=0.0)
        return foresight.Foreseen((foresight.HEAD, speed), picture_secs=0.0, decided={})

    monkeypatch.setattr(budget, "foresee", foreseen)
    arguments = arguments_of(tmp_path, tiny_backbone, "--frozen_for=1epochs", "--folds=3", "--budget=40s")
    arguments = [one for one in arguments if not one.startswith("--splits")]
    status, _, err = run_main("cross_validate", *arguments, f"--workdir={tmp_path / 'all'}")
    assert (status, err, len(asked)) == (0, "", 1)
    chosen = [read_json(tmp_path / f"all/fold-{fold}/run.json")["chosen"] for fold in (1, 2, 3)]
    assert chosen[0] == chosen[1] == chosen[2]
    assert chosen[0]["schedule"] == "frozen"


def test_folds_train_alone_where_srun_has_started_several_tasks(
    tmp_path, tiny_backbone, run_main, monkeypatch
):
    of_srun = {"STEP_NUM_TASKS": "2", "STEP_NODELIST": "a,b", "STEP_TASKS_PER_NODE": "1(x2)", "PROCID": "0"}
    for name, value in {**of_srun, "JOB_ID": "1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    arguments = arguments_of(
        tmp_path, tiny_backbone, "--schedule=frozen", "--frozen_for=1epochs", "--folds=3"
    )
    arguments = [one for one in arguments if not one.startswith("--splits")]
    arguments += [f"--workdir={tmp_path / 'all'}", "--wait_for_workers_secs=1"]
    assert run_main("cross_validate", *arguments)[0] == 0


@pytest.mark.slow
def test_batches_are_never_larger_than_a_tiny_folder(tmp_path, tiny_backbone, run_main):
    assert BATCH_SIZE == 32
    arguments = arguments_of(tmp_path, tiny_backbone, "--frozen_for=1epochs", "--finetune_for=1epochs")
    status, _, err = run_main("train", *arguments, f"--workdir={tmp_path / 'run'}")
    assert (status, err) == (0, "")
    status, _, err = run_main("train", *arguments, "--batch_size=64", f"--workdir={tmp_path / 'other'}")
    assert (status, "--batch_size=64 is larger than the data" in err) == (2, True)
