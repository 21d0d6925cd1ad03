"""Saving and restoring: whole, strict, and with one clear line when it cannot be."""

import hashlib
import json
import threading

import numpy as np
import pytest
import tensorflow as tf

from trainer.record.checkpoint_values import read_values, write_values
from trainer.record.checkpoints import Base, Checkpoints
from trainer.values import TrainerError

SHAPES = {
    "step": (),
    "model/backbone/conv.1/kernel": (2, 3),
    "model/head/a..b/kernel": (3,),
    "model/head.S/bias": (2,),
    "optimizer/0003/Adam/m/head/logits/kernel~2": (3,),
}


def variables(value=0.0, **shapes):
    made = {
        name: tf.Variable(np.full(shape, value, np.float32)) for name, shape in {**SHAPES, **shapes}.items()
    }
    made["best/loss"] = tf.Variable(np.float64(value) / 3)
    made["count"] = tf.Variable(int(value), dtype=tf.int64)
    return made


def values(made):
    return {name: variable.numpy().tolist() for name, variable in made.items()}


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "checkpoints", keep=2)


def steps(folder):
    return sorted(int(path.stem.split("-")[1]) for path in folder.glob("ckpt-*.index"))


def message(function, *args):
    with pytest.raises(TrainerError) as caught:
        function(*args)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_round_trip_keeps_every_bit(checkpoints):
    random = np.random.default_rng(0)
    saved = variables()
    for variable in saved.values():
        if variable.dtype.is_floating:
            variable.assign(random.normal(size=variable.shape))
    saved["count"].assign(2**62)
    saved["model/head.S/bias"].assign([np.inf, -0.0])
    checkpoints.save(saved, step=7)
    fresh = variables(5.0)
    checkpoints.restore(fresh, checkpoints.find("latest"))
    for name, variable in saved.items():
        assert fresh[name].numpy().tobytes() == variable.numpy().tobytes(), name


def test_the_latest_few_and_the_best_are_kept(checkpoints):
    for step in (3, 5, 8, 13):
        checkpoints.save(variables(step), step=step)
        if step in (3, 8):
            checkpoints.save_best(variables(step + 0.5), step=step)
    assert steps(checkpoints.folder) == [8, 13]
    assert steps(checkpoints.folder / "best") == [8]
    found = {}
    for which in ("latest", "best", "8", "13"):
        path = checkpoints.find(which)
        fresh = variables()
        checkpoints.restore(fresh, path)
        found[which] = (Checkpoints.step_of(path), float(fresh["step"]))
    assert found == {"latest": (13, 13.0), "best": (8, 8.5), "8": (8, 8.0), "13": (13, 13.0)}
    assert checkpoints.latest() == checkpoints.find("latest")


def test_fewer_or_more_can_be_kept_than_before(checkpoints):
    for step in range(1, 9):
        Checkpoints(checkpoints.folder, keep={5: 1, 6: 4}.get(step, 3)).save(variables(step), step=step)
        kept = {1: [1], 2: [1, 2], 3: [1, 2, 3], 4: [2, 3, 4], 5: [5], 6: [5, 6], 7: [5, 6, 7], 8: [6, 7, 8]}
        assert steps(checkpoints.folder) == kept[step]


def test_what_was_kept_is_remembered_by_another_process(checkpoints):
    for step in (1, 2, 3):
        # A new object each time, as a run that is started again has.
        Checkpoints(checkpoints.folder, keep=2).save(variables(step), step=step)
    assert steps(checkpoints.folder) == [2, 3]


def test_a_step_can_be_saved_again(checkpoints):
    checkpoints.save(variables(1.0), step=4)
    checkpoints.save(variables(2.0), step=4)
    fresh = variables()
    checkpoints.restore(fresh, checkpoints.find("4"))
    assert float(fresh["step"]) == 2.0
    assert steps(checkpoints.folder) == [4]


def test_the_same_saved_again_is_not_written_again(checkpoints):
    def found():
        return {path: (path.stat().st_ino, path.read_bytes()) for path in checkpoints.folder.glob("ckpt-*")}

    checkpoints.save(variables(1.0), step=4)
    before = found()
    # Another process has other objects; the bytes are the same.
    Checkpoints(checkpoints.folder, keep=2).save(variables(1.0), step=4)
    assert found() == before
    checkpoints.save(variables(2.0), step=4)
    assert found() != before


def test_the_best_takes_the_place_of_one_of_a_later_step(checkpoints):
    # As a run leaves it that was killed after it had saved it, and goes on from before.
    checkpoints.save_best(variables(9.0), step=9)
    checkpoints.save_best(variables(7.0), step=7)
    assert steps(checkpoints.folder / "best") == [7]


def test_tensorflow_finds_the_latest_itself(checkpoints):
    for step in (1, 2, 10):
        checkpoints.save(variables(step), step=step)
    checkpoints.save_best(variables(2), step=2)
    for folder, names in (
        (checkpoints.folder, ["ckpt-2", "ckpt-10"]),
        (checkpoints.folder / "best", ["ckpt-2"]),
    ):
        paths = [str(folder / name) for name in names]
        assert tf.train.latest_checkpoint(str(folder)) == paths[-1]
        assert list(tf.train.get_checkpoint_state(str(folder)).all_model_checkpoint_paths) == paths
    fresh = {name: tf.Variable(tf.zeros_like(v)) for name, v in variables().items()}
    tf.train.Checkpoint(variables=fresh).read(checkpoints.latest()).assert_consumed()
    assert values(fresh) == values(variables(10))


def test_what_is_recorded(checkpoints):
    save(checkpoints, variables(1.0), step=3, first_step=2)

    def files(folder, name):
        found = {}
        for ending in ("data-00000-of-00001", "index"):
            data = (folder / f"{name}.{ending}").read_bytes()
            found[f"{name}.{ending}"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        return found

    base = files(checkpoints.folder / "base", "phase-0")
    own = {"format": 2, "step": 3, "files": files(checkpoints.folder, "ckpt-3")}
    recorded = json.loads((checkpoints.folder / "ckpt-3.json").read_text())
    assert recorded == {**own, "base": {"name": "phase-0", "files": base}}
    recorded = json.loads((checkpoints.folder / "base" / "phase-0.json").read_text())
    assert recorded == {"format": 2, "step": 2, "files": base, "base": None}


def test_nothing_else_is_left_behind(checkpoints):
    for step in (1, 2, 3):
        save(checkpoints, variables(step), step=step)
        save(checkpoints, variables(step), step=step, best=True)
        save(checkpoints, variables(-step), step=step)
    endings = ("data-00000-of-00001", "index", "json")
    names = {"ckpt-2", "ckpt-3", "best/ckpt-3", "base/phase-0"}
    expected = {f"{name}.{ending}" for name in names for ending in endings}
    found = {path.relative_to(checkpoints.folder).as_posix() for path in checkpoints.folder.rglob("*")}
    assert found == {*expected, "checkpoint", "best/checkpoint", "best", "base"}


def test_all_values_of_a_checkpoint(checkpoints):
    save(checkpoints, variables(3.0), step=1)
    found = checkpoints.values(checkpoints.find("1"))
    assert {name: value.tolist() for name, value in found.items()} == values(variables(3.0))


def test_a_best_one_is_found_by_its_step(checkpoints):
    checkpoints.save_best(variables(9.0), step=9)
    assert checkpoints.find("9").endswith("best/ckpt-9")


def test_what_is_not_there_is_told_with_what_is(checkpoints):
    assert checkpoints.latest() is None
    for which in ("latest", "best", "3"):
        assert f"no {which!r} checkpoint in {checkpoints.folder}; there is none at all" in message(
            checkpoints.find, which
        )
    for step in (2, 4, 6):
        checkpoints.save(variables(), step=step)
    checkpoints.save_best(variables(), step=2)
    assert message(checkpoints.find, "3").endswith("there are those of steps 2, 4, 6")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda v: v.pop("model/head/a..b/kernel"),
         "model/head/a..b/kernel is float32 [3] in the checkpoint, missing in the model"),
        (lambda v: v.update(new=tf.Variable(1.0)),
         "new is missing in the checkpoint, float32 [] in the model"),
        (lambda v: v.update({"model/head.S/bias": tf.Variable([1.0])}),
         "model/head.S/bias is float32 [2] in the checkpoint, float32 [1] in the model"),
        (lambda v: v.update(step=tf.Variable(2)),
         "step is float32 [] in the checkpoint, int32 [] in the model"),
    ],
)  # fmt: skip
def test_anything_that_does_not_match_is_refused(checkpoints, change, expected):
    checkpoints.save(variables(1.0), step=1)
    other = variables(2.0)
    change(other)
    before = values(other)
    assert expected in message(checkpoints.restore, other, checkpoints.find("1"))
    assert values(other) == before


def test_a_folder_that_cannot_be_written_is_one_line(checkpoints):
    checkpoints.folder.parent.mkdir(exist_ok=True)
    checkpoints.folder.write_text("a file where the folder should be")
    text = message(lambda: checkpoints.save(variables(), step=5))
    assert text.startswith("checkpoint of step 5 was not saved: ")


# A base: what does not change while a phase lasts is written once for the phase.

CONSTANT = ("model/backbone/conv.1/kernel", "model/head.S/bias")


def base_of(made, *, name="phase-0", first_step=0, constant=CONSTANT):
    return Base(name, first_step, {key: made[key] for key in constant})


def save(checkpoints, made, *, step, best=False, **base):
    (checkpoints.save_best if best else checkpoints.save)(made, step=step, base=base_of(made, **base))


def restore(checkpoints, which="latest", **base):
    """Returns the values of variables that held something else before."""
    fresh = variables(99.0)
    checkpoints.restore(fresh, checkpoints.find(which), base=base_of(fresh, **base))
    return values(fresh)


def held(prefix):
    """{name as TensorFlow writes it: value} of what a file holds."""
    reader = tf.train.load_checkpoint(str(prefix))
    return {key: reader.get_tensor(key) for key in reader.get_variable_to_shape_map() if "VARIABLE" in key}


def constant_keys():
    escaped = (name.replace(".", "..").replace("/", ".S") for name in CONSTANT)
    return {f"variables/{name}/.ATTRIBUTES/VARIABLE_VALUE" for name in escaped}


def stamps(checkpoints):
    """{file of a base: when it was written, and which file it is}."""
    found = [(path, path.stat()) for path in sorted((checkpoints.folder / "base").iterdir())]
    return {path.name: (stat.st_mtime_ns, stat.st_ino) for path, stat in found}


def test_a_checkpoint_holds_what_its_base_does_not(checkpoints):
    made = variables(3.0)
    save(checkpoints, made, step=1)
    rest, base = held(checkpoints.find("1")), held(checkpoints.folder / "base" / "phase-0")
    assert set(base) == constant_keys()
    assert len(rest) == len(made) - len(CONSTANT)
    assert not set(rest) & set(base)
    assert all((value == 3.0).all() for value in base.values())


def test_both_parts_are_restored(checkpoints):
    made = variables(3.0)
    save(checkpoints, made, step=1)
    made["step"].assign(5.0)
    save(checkpoints, made, step=2)
    save(checkpoints, made, step=2, best=True)
    assert restore(checkpoints, "1") == values(variables(3.0))
    for which in ("latest", "best"):
        assert restore(checkpoints, which) == {**values(variables(3.0)), "step": 5.0}


def test_a_base_is_written_once_a_phase(checkpoints):
    made = variables(1.0)
    save(checkpoints, made, step=1)
    written = stamps(checkpoints)
    assert set(written) == {"phase-0.index", "phase-0.data-00000-of-00001", "phase-0.json"}
    for step in (2, 3, 4):
        # A new object each time, as a run that is started again has.
        save(Checkpoints(checkpoints.folder, keep=2), made, step=step)
        save(checkpoints, made, step=step, best=True)
    assert stamps(checkpoints) == written
    made["model/head.S/bias"].assign([7.0, 7.0])
    save(checkpoints, made, step=4, name="phase-1", first_step=4)
    save(checkpoints, made, step=5, name="phase-1", first_step=4)
    assert {name: at for name, at in stamps(checkpoints).items() if "phase-0" in name} == written
    assert len(stamps(checkpoints)) == 6
    # The best one is still of the first phase.
    assert restore(checkpoints, "best")["model/head.S/bias"] == [1.0, 1.0]
    assert restore(checkpoints, name="phase-1")["model/head.S/bias"] == [7.0, 7.0]


def test_one_that_no_checkpoint_needs_is_written_again(checkpoints):
    made = variables(1.0)
    save(checkpoints, made, step=3)
    # As if a process had died between a base and the first checkpoint that needs it.
    made["model/head.S/bias"].assign([2.0, 2.0])
    save(checkpoints, made, step=4, name="phase-1", first_step=4)
    for path in checkpoints.folder.glob("ckpt-4.*"):
        path.unlink()
    made["model/head.S/bias"].assign([3.0, 3.0])
    save(checkpoints, made, step=4, name="phase-1", first_step=4)
    assert restore(checkpoints, name="phase-1")["model/head.S/bias"] == [3.0, 3.0]
    assert restore(checkpoints, "3")["model/head.S/bias"] == [1.0, 1.0]


def test_a_base_of_an_attempt_that_saved_nothing_is_written_again(checkpoints):
    save(checkpoints, variables(1.0), step=1)
    for path in checkpoints.folder.glob("*ckpt*"):
        path.unlink()
    assert not checkpoints.exist()
    save(checkpoints, variables(2.0), step=1)
    assert restore(checkpoints) == values(variables(2.0))


def test_what_never_changes_may_be_nothing(checkpoints):
    save(checkpoints, variables(2.0), step=1, constant=())
    assert not (checkpoints.folder / "base").exists()
    assert restore(checkpoints, constant=()) == values(variables(2.0))


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ({"model/head.S/bias": (5,)},
         "base/phase-0 does not fit this model: model/head.S/bias is float32 [2] in the checkpoint, "
         "float32 [5] in the model"),
        ({"model/backbone/conv.1/kernel": (3, 2)},
         "base/phase-0 does not fit this model: model/backbone/conv.1/kernel is float32 [2, 3] in the "
         "checkpoint, float32 [3, 2] in the model"),
        ({"model/head/a..b/kernel": (4,)},
         "ckpt-1 does not fit this model: model/head/a..b/kernel is float32 [3] in the checkpoint, "
         "float32 [4] in the model"),
    ],
)  # fmt: skip
def test_a_base_of_another_model_is_refused(checkpoints, shapes, expected):
    save(checkpoints, variables(1.0), step=1)
    other = variables(2.0, **shapes)
    path = checkpoints.find("1")
    assert expected in message(lambda: checkpoints.restore(other, path, base=base_of(other)))


@pytest.mark.parametrize(
    ("constant", "expected"),
    [
        (CONSTANT[:1], "ckpt-1 does not fit this model: model/head.S/bias is missing in the checkpoint"),
        ((*CONSTANT, "step"), "ckpt-1 does not fit this model: step is float32 [] in the checkpoint"),
        ((), "ckpt-1 does not fit this model: model/backbone/conv.1/kernel is missing in the checkpoint"),
    ],
)
def test_what_is_constant_must_be_what_it_was(checkpoints, constant, expected):
    save(checkpoints, variables(1.0), step=1)
    assert expected in message(lambda: restore(checkpoints, constant=constant))


def test_another_base_than_the_one_it_was_made_with_is_refused(checkpoints):
    save(checkpoints, variables(1.0), step=1)
    save(checkpoints, variables(2.0), step=2, name="phase-1", first_step=2)
    path = checkpoints.folder / "ckpt-1"
    text = message(lambda: restore(checkpoints, "1", name="phase-1"))
    assert text == f"checkpoint {path} is based on phase-0, not on phase-1"


def test_a_base_that_cannot_be_written_leaves_no_checkpoint_without_it(checkpoints):
    checkpoints.folder.mkdir()
    (checkpoints.folder / "base").write_text("a file where the folder should be")
    text = message(lambda: save(checkpoints, variables(), step=5))
    assert text.startswith("checkpoint of step 5 was not saved: ")
    assert not checkpoints.exist()


def test_every_checkpoint_has_the_bytes_that_tensorflow_writes(tmp_path):
    """What is known of the objects since the first one is used again, with other values."""
    draw = np.random.default_rng(0)

    def made(names, *, dtype="float32"):
        return {
            name: tf.Variable(draw.random([3, 2]).astype(dtype), name=name.split("/")[-1]) for name in names
        }

    first = made(["model/a.b/kernel:0", "slots/model/a.b/kernel/m", "step"])
    other = made(["model/kernel", "model/kernel.S"], dtype="float64")
    at = 0
    for _ in range(3):
        for variables in (first, other, dict(reversed(first.items()))):
            at += 1
            for variable in variables.values():
                variable.assign(draw.random([3, 2]))
            write_values(variables, str(tmp_path / f"ours-{at}"))
            tf.train.Checkpoint(variables=dict(variables)).write(str(tmp_path / f"theirs-{at}"))
            for ending in (".index", ".data-00000-of-00001"):
                ours, theirs = (tmp_path / f"{whose}-{at}{ending}" for whose in ("ours", "theirs"))
                assert ours.read_bytes() == theirs.read_bytes()
            read = read_values(tmp_path / f"ours-{at}", variables)
            assert {name: value.tolist() for name, value in read.items()} == {
                name: variable.numpy().tolist() for name, variable in variables.items()
            }


def test_many_kinds_of_checkpoints_are_written_and_the_first_again(tmp_path):
    for number in [*range(12), 0]:
        variables = {f"v{number}": tf.Variable(float(number))}
        write_values(variables, str(tmp_path / "one"))
        assert read_values(tmp_path / "one", variables) == {f"v{number}": number}


class Interrupted(dict):
    """Variables that do something, once, when their values are about to be written."""

    def __init__(self, variables, act):
        super().__init__(variables)
        self._left = [lambda: None, act]

    def values(self):
        (self._left.pop(0) if self._left else lambda: None)()
        return super().values()


def test_while_one_is_written_another_thread_may_write_many_of_other_kinds(tmp_path):
    variables = {"v": tf.Variable(3.0)}
    write_values(variables, str(tmp_path / "one"))

    def write_others():
        for number in range(12):
            write_values({f"other{number}": tf.Variable(float(number))}, str(tmp_path / "other"))

    def in_a_thread():
        thread = threading.Thread(target=write_others)
        thread.start()
        thread.join()

    write_values(Interrupted(variables, in_a_thread), str(tmp_path / "two"))
    assert read_values(tmp_path / "two", variables) == {"v": 3.0}
    assert read_values(tmp_path / "other") == {"other11": 11.0}
