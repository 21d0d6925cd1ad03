"""The ideas of experiments/research: by hand, through the door, killed, on two devices, refused."""

import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

import trainer
from tests.conftest import call_main, make_flower_folder
from tests.helpers.continuations import Killed, told_faults
from tests.helpers.plugins import forget_plugins
from tests.helpers.processes import run_program
from tests.helpers.research import (
    FOLDER,
    NAMES,
    TEACHER_LOGITS,
    Teacher,
    experiment_of,
    load_all,
    make_objective,
    make_rule,
    objective_state,
)
from tests.loop.toys import batch_of, dataset_of, run_of, softmax, state_of
from trainer.cli import flags
from trainer.loop.losses import PLAIN_LOSS
from trainer.record.predictions import Prediction
from trainer.values import UsageError

ROOT = Path(__file__).parents[1]
FILES = sorted(FOLDER.glob("*.py"))


pytestmark = pytest.mark.usefixtures("figures_undrawn", "without_plugins")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_idea_is_one_short_file(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 60
    # What of trainer they import, test_extending knows.
    assert not re.findall(r"^\s*(?:from|import) (?!trainer|tensorflow|numpy|typing)", text, re.MULTILINE)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_its_flagfile_differs_from_the_baseline_in_nothing_else(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    of = {
        name: flags.parse(["trainer", f"--flagfile=experiments/research/{name}.flags", "--workdir=x"])
        for name in (path.stem, "plain")
    }
    own, plain = of[path.stem].config.flat(), of["plain"].config.flat()
    changed = {name for name in own if own[name] != plain[name]}
    assert changed in ({"plugin", "objective"}, {"plugin", "gradient_rule"})
    assert own["plugin"] == (f"experiments/research/{path.name}",)


def contrastive_by_hand(features, labels, real, temperature):
    """L_out of Khosla et al., equation 2, with loops; those without a positive come to nothing."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    found = np.zeros(len(labels))
    for i in np.flatnonzero(real):
        others = [k for k in np.flatnonzero(real) if k != i]
        positives = [p for p in others if labels[p] == labels[i]]
        total = sum(np.exp(unit[i] @ unit[k] / temperature) for k in others)
        for p in positives:
            found[i] -= np.log(np.exp(unit[i] @ unit[p] / temperature) / total) / len(positives)
    return found


FEATURES = np.array([[1.0, 0.2, 0.1], [0.9, 0.4, 0.0], [0.1, 0.5, 1.0], [0.3, 0.9, 0.2], [1.0, 0.2, 0.1]])


@pytest.mark.parametrize(
    ("labels", "mask"),
    [
        ([0, 0, 1, 0, 0], [1, 1, 1, 1, 1]),  # One has nobody of its class.
        ([0, 0, 1, 1, 0], [1, 1, 1, 1, 0]),  # Padding repeats the first example.
        ([0, 1, 2, 0, 0], [1, 1, 1, 0, 0]),  # Nobody has anybody.
        ([0, 0, 0, 0, 0], [1, 0, 0, 0, 0]),  # There is one example.
    ],
)
def test_supervised_contrastive_by_hand(labels, mask):
    objective = make_objective("supervised_contrastive(0.25, temperature=0.5)", num_examples=5)
    state = objective_state(objective, "for=9steps; train=head; lr=0")
    before = {name: v.numpy() for name, v in state.classifier.named_variables.items()}
    logits = FEATURES @ before["head/logits/kernel"] + before["head/logits/bias"]
    batch = batch_of(FEATURES, labels, mask)
    run_of(state, objective=objective)(iter(dataset_of(batch)), tf.constant(1))
    real = np.array(mask) > 0
    far = contrastive_by_hand(FEATURES, np.array(labels), real, 0.5)[real].mean()
    hard = -np.log(softmax(logits)[np.arange(5), labels])[real].mean()
    told = state.metrics.read()
    assert told["contrastive"] == pytest.approx(far, rel=1e-5, abs=1e-6)
    assert told["loss"] == pytest.approx(0.75 * hard + 0.25 * far, rel=1e-5)
    assert state.metrics.count("contrastive") == real.sum()
    assert np.isfinite(told["gradient_norm"])


def test_distillation_by_hand_from_classes_in_another_order():
    objective = make_objective("distillation('a run', temperature=3, weight=0.8)", num_examples=12)
    state = objective_state(objective, "for=9steps; train=head; lr=0.5; optimizer=sgd; momentum=0")
    kernel, bias = (v.numpy() for v in state.classifier.head.weights)
    batch = {**batch_of(FEATURES, [0, 1, 2, 0, 0], [1, 1, 1, 1, 0]), "id": np.array([7, 2, 11, 0, -1])}
    run_of(state, objective=objective)(iter(dataset_of(batch)), tf.constant(1))
    logits, labels, teacher = FEATURES[:4] @ kernel + bias, [0, 1, 2, 0], TEACHER_LOGITS[[7, 2, 11, 0]]
    soft, ours = softmax(teacher / 3), softmax(logits / 3)
    far = 9 * (soft * np.log(soft / ours)).sum(axis=1)
    hard = -np.log(softmax(logits)[range(4), labels])
    told = state.metrics.read()
    assert told["teacher_divergence"] == pytest.approx(far.mean(), rel=1e-5)
    assert told["loss"] == pytest.approx((0.2 * hard + 0.8 * far).mean(), rel=1e-5)
    # Of T^2 KL(p || softmax(z / T)) by z: T (softmax(z / T) - p).
    by_logits = (0.2 * (softmax(logits) - np.eye(3)[labels]) + 0.8 * 3 * (ours - soft)) / 4
    expected = kernel - 0.5 * FEATURES[:4].T @ by_logits
    np.testing.assert_allclose(state.classifier.head.weights[0], expected, rtol=1e-5, atol=1e-6)


def test_a_teacher_of_any_number_of_classes_is_refused(monkeypatch):
    several = [Prediction("0", "a b", 0.9, dict.fromkeys(NAMES, 0.9), labels=("a", "b"))]
    teacher = SimpleNamespace(class_names=NAMES, predict_encoded=lambda pictures: several)
    objective = make_objective("distillation('a run')", num_examples=1)
    monkeypatch.setattr(trainer, "load", lambda workdir: teacher)
    with pytest.raises(
        UsageError, match=r"^the teacher a run cannot teach 0: it gives any number of classes"
    ):
        objective.start()


def test_what_a_distilled_run_keeps_goes_by_its_training_pictures_alone(monkeypatch):
    experiment = experiment_of(12)
    experiment.splits.indices["train"] = np.array([7, 2, 11])
    load_all()
    choice = trainer.register.registries()["objective"].choose("distillation('a run')")
    objective = choice(loss=PLAIN_LOSS, experiment=experiment, num_classes=3)
    monkeypatch.setattr(trainer, "load", lambda workdir: Teacher())
    objective.start()
    [kept] = objective.variables.values()
    np.testing.assert_allclose(softmax(kept.numpy()), softmax(TEACHER_LOGITS[[7, 2, 11]]), rtol=1e-5)


@pytest.mark.parametrize("num_parts", [1, 2])
def test_sharpness_aware_by_hand(num_parts):
    """w - lr g(w + rho g(w) / |g(w)|), g of the whole batch, in parts, too."""
    features, labels = FEATURES[:4], [0, 2, 1, 0]
    state = state_of("for=9steps; train=head; lr=0.5; optimizer=sgd; momentum=0")
    kernel, bias = (v.numpy() for v in state.classifier.head.weights)

    def gradients(kernel, bias):
        difference = (softmax(features @ kernel + bias) - np.eye(3)[labels])[:3] / 3
        return features[:3].T @ difference, difference.sum(axis=0)

    first = gradients(kernel, bias)
    norm = np.sqrt(sum((g**2).sum() for g in first))
    worst = gradients(*(v + 0.3 / norm * g for v, g in zip((kernel, bias), first, strict=True)))
    run = run_of(state, gradient_rule=make_rule("sam(0.3)"), num_parts=num_parts)
    run(iter(dataset_of(batch_of(features, labels, [1, 1, 1, 0]))), tf.constant(1))
    for variable, before, gradient in zip(state.classifier.head.weights, (kernel, bias), worst, strict=True):
        np.testing.assert_allclose(variable, before - 0.5 * gradient, rtol=1e-5, atol=1e-6)
    loss = -np.log(softmax(features @ kernel + bias)[range(4), labels])[:3].mean()
    assert state.metrics.read()["loss"] == pytest.approx(loss, rel=1e-5)


def test_distillation_in_parts_is_that_of_the_batch():
    found = []
    for num_parts in (1, 2):
        objective = make_objective("distillation('a run')", num_examples=12)
        state = objective_state(objective, "for=9steps; train=head; lr=0.5; optimizer=sgd")
        batch = batch_of(FEATURES[:4], [0, 1, 2, 0], [1, 1, 1, 0])
        run_of(state, objective=objective, num_parts=num_parts)(iter(dataset_of(batch)), tf.constant(1))
        found.append([v.numpy() for v in state.classifier.head.weights] + [state.metrics.read()["loss"]])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


# Those with BatchNorm's statistics of the batch hold all that the others do.
@pytest.mark.parametrize("cases", ["most", pytest.param("all", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_two_devices_give_what_one_gives(cases):
    done = run_program([cases], module="tests.helpers.research_program")
    assert done.returncode == 0, done.stderr[-2000:]
    for case, found in json.loads(done.stdout.splitlines()[-1]).items():
        one, two = found["one"], found["mirrored"]
        assert (one["replicas"], two["replicas"]) == (1, 2)
        for name, value in one["variables"].items():
            np.testing.assert_allclose(
                two["variables"][name], value, rtol=1e-4, atol=1e-5, err_msg=f"{case}: {name}"
            )
        assert two["train"] == pytest.approx(one["train"], rel=1e-4), case


# 9 pictures in batches of 4: the last batch has one.
SETTINGS = (
    "--image_size=8", "--splits=9,5,5", "--batch_size=4", "--head=linear", "--log_every=2steps",
    "--evaluate_every=3steps", "--save_every=3steps", "--precision=float32", "--progress=plain",
    "--embeddings=0", "--phase=name=a; for=1epochs; train=head; lr=0.05",
    "--phase=name=b; for=4steps; train=all; lr=0.05; bn=batch; augment=flip",
)  # fmt: skip
DISTILLATION, CONTRAST, SAM = (
    f"--plugin={FOLDER}/{name}.py" for name in ("distillation", "supervised_contrastive", "sam")
)


@pytest.fixture(scope="module")
def world(tiny_backbone, tmp_path_factory):
    """A folder with pictures, one class being rare, and a teacher; and the options that all runs have."""
    folder = tmp_path_factory.mktemp("research")
    pictures = make_flower_folder(folder / "pictures")
    make_flower_folder(folder / "pictures", n=1, classes=("grey",))
    for path in pictures.rglob("*.jpg"):
        os.utime(path, (1e9, 1e9))
    common = (f"--source=folder:{pictures}", f"--backbone=savedmodel:{tiny_backbone}")
    teacher = (*common, *SETTINGS, "--image_size=10", "--seed=3", f"--workdir={folder / 'teacher'}")
    assert call_main(*teacher, f"--cache_dir={folder / 'cache'}") == 0
    return folder, (*common, *SETTINGS, f"--cache_dir={folder / 'cache'}")


@pytest.fixture(scope="module")
def distilled(world):
    """With sam, from a teacher that is named from another folder, and is gone afterwards."""
    forget_plugins()
    folder, options = world
    shutil.copytree(folder / "teacher", folder / "gone")
    objective = "--objective=distillation(teacher='gone', temperature=2)"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run = Killed((*options, DISTILLATION, SAM, objective, "--gradient_rule=sam(0.1)"), folder / "killed")
    shutil.rmtree(folder / "gone")
    return run


@pytest.mark.slow
def test_a_distilled_run_goes_on_without_its_teacher(distilled, capfd):
    # The checkpoint of step 3 is whole when that of step 6 is begun.
    late = [kill for kill in distilled.kills if any("ckpt-6.index" in name for name in kill.disk)]
    told_faults(distilled, [late[0]], warm=False)
    capfd.readouterr()
    # Nothing is bound yet.
    early = [kill for kill in distilled.kills if not any("run.json" in name for name in kill.disk)]
    distilled.put_back(early[-1])
    assert distilled.start() == 1
    assert "gone holds no run" in capfd.readouterr().err
    assert not (distilled.workdir / "run.json").exists()


@pytest.mark.slow
def test_a_distilled_run_is_scored_and_predicts_without_its_teacher(distilled, world, tmp_path, run_main):
    distilled.put_back(distilled.kills[-1])
    workdir = distilled.workdir
    forget_plugins()
    scored = json.loads((workdir / "report" / "metrics.json").read_text())
    assert run_main("evaluate", f"--workdir={workdir}", f"--report_dir={tmp_path / 'again'}")[0] == 0
    again = json.loads((tmp_path / "again" / "metrics.json").read_text())
    assert (again["accuracy"], again["loss"]) == (scored["accuracy"], scored["loss"])
    # Where pictures have come since, too.
    grown = shutil.copytree(world[0] / "pictures", tmp_path / "grown")
    make_flower_folder(grown, n=2, classes=("grey",))
    others = (f"--source=folder:{grown}", f"--report_dir={tmp_path / 'others'}")
    assert run_main("evaluate", f"--workdir={workdir}", *others)[0] == 0
    assert json.loads((tmp_path / "others" / "metrics.json").read_text())["accuracy"] == scored["accuracy"]
    data = (world[0] / "pictures" / "red" / "000.jpg").read_bytes()
    [one, bad] = trainer.load(workdir).predict_encoded([("a picture", data), ("none", b"none")])
    [same] = trainer.load(workdir).predict(world[0] / "pictures" / "red" / "000.jpg")
    assert (one.path, one.probabilities) == ("a picture", same.probabilities)
    assert bad.path == "none"
    assert bad.error


def test_the_teacher_is_what_trainer_load_says(distilled, world):
    folder, _ = world
    distilled.put_back(distilled.kills[-1])
    reader = tf.train.load_checkpoint(str(distilled.workdir / "checkpoints" / "ckpt-7"))
    [name] = [name for name in reader.get_variable_to_shape_map() if "teacher_logits" in name]
    kept = reader.get_tensor(name)
    splits = json.loads((distilled.workdir / "splits.json").read_text())["splits"]
    train = [folder / "pictures" / row[0] for row in splits["train"]]
    said = trainer.load(folder / "teacher").predict(train)
    assert kept.shape == (9, 4)
    for row, one in zip(kept, said, strict=True):
        shares = [one.probabilities[name] for name in ("blue", "green", "grey", "red")]
        np.testing.assert_allclose(softmax(row[None])[0], shares, rtol=1e-4)
    # Pictures of other splits were not looked at.
    assert (np.abs(kept).sum(axis=1) > 0).sum() == 9


@pytest.fixture(scope="module")
def contrasted(world):
    forget_plugins()
    folder, options = world
    return Killed((*options, CONTRAST, "--objective=supervised_contrastive"), folder / "contrasted")


@pytest.mark.slow
def test_a_contrasted_run_killed_and_resumed_is_the_same(contrasted):
    late = [kill for kill in contrasted.kills if any("ckpt-3.index" in name for name in kill.disk)]
    told_faults(contrasted, [late[0], late[len(late) // 2]], warm=False)


def train_lines(workdir):
    lines = [json.loads(line) for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == "train"]


@pytest.mark.slow
def test_kept_features_give_what_pictures_give(contrasted, world, tmp_path):
    _, options = world
    objective = (CONTRAST, "--objective=supervised_contrastive", "--feature_cache=off")
    assert call_main(*options, *objective, f"--workdir={tmp_path / 'off'}") == 0
    kept = [json.loads(line) for line in contrasted.expected["metrics.jsonl"].splitlines()]
    kept = [line for line in kept if line["split"] == "train"]
    for one, other in zip(kept, train_lines(tmp_path / "off"), strict=True):
        for name in ("loss", "contrastive", "accuracy"):
            assert one[name] == pytest.approx(other[name], rel=1e-4)


@pytest.mark.slow
def test_sam_goes_with_mixing_and_parts(world, tmp_path):
    _, options = world
    more = (
        SAM,
        "--gradient_rule=sam",
        "--accumulate=2",
        "--phase=name=a; for=3steps; train=all; augment=mixup",
    )
    options = [option for option in options if not option.startswith("--phase")]
    assert call_main(*options, *more, f"--workdir={tmp_path / 'run'}") == 0
    assert all(np.isfinite(line["loss"]) for line in train_lines(tmp_path / "run"))


MIXING = "--phase=name=m; for=3steps; train=all; augment=flip,mixup(0.2)"
HEAD = "--phase=name=h; for=3steps; train=head"


@pytest.mark.parametrize(
    ("options", "status", "told"),
    [
        (
            (CONTRAST, "--objective=supervised_contrastive", MIXING), 2,
            "supervised_contrastive: phase m mixes pictures, which then have no class of their own",
        ),
        (
            (CONTRAST, "--objective=supervised_contrastive", "--accumulate=2"), 2,
            "supervised_contrastive: examples would be compared within the parts of --accumulate only",
        ),
        (
            (CONTRAST, "--objective=supervised_contrastive(1)", HEAD), 2,
            "supervised_contrastive(1): no phase trains the network below the features",
        ),
        (
            (DISTILLATION, "--objective=distillation('teacher')", MIXING), 2,
            "distillation('teacher'): phase m: the teacher has not seen the mixtures of flip,mixup(0.2)",
        ),
        ((DISTILLATION, "--objective=distillation('no/run')"), 1, "no/run holds no run"),
        (
            (DISTILLATION, "--objective=distillation('{0}/teacher', weight=2)"), 2,
            "weight=2 must be a number above 0 and at most 1",
        ),
        (
            (DISTILLATION, "--objective=distillation('{0}/teacher')", "--source=folder:{0}/others"), 2,
            "the teacher {0}/teacher does not know the class black",
        ),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(options, status, told, world, tmp_path, run_main):
    folder, common = world
    if not (folder / "others").exists():
        make_flower_folder(folder / "others", n=10, classes=("black", "red"))
    options = [option.format(folder) for option in options]
    if any(option.startswith("--phase") for option in options):
        common = [option for option in common if not option.startswith("--phase")]
    got, _, err = run_main(*common, *options, f"--workdir={tmp_path / 'run'}")
    assert told.format(folder) in " ".join(err.split())
    assert (got, err.count("\n")) == (status, 1)
    assert not (tmp_path / "run" / "run.json").exists()
