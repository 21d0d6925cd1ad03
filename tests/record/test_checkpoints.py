"""Saving and restoring: whole, strict, and with one clear line when it cannot be."""

import numpy as np
import pytest
import tensorflow as tf

from trainer.record.checkpoints import Checkpoints
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
         "model/head/a..b/kernel is of shape [3] in the checkpoint, missing in the model"),
        (lambda v: v.update(new=tf.Variable(1.0)),
         "new is missing in the checkpoint, of shape [] in the model"),
        (lambda v: v.update({"model/head.S/bias": tf.Variable([1.0])}),
         "model/head.S/bias is of shape [2] in the checkpoint, of shape [1] in the model"),
    ],
)  # fmt: skip
def test_anything_that_does_not_match_is_refused(checkpoints, change, expected):
    checkpoints.save(variables(1.0), step=1)
    other = variables(2.0)
    change(other)
    before = values(other)
    assert expected in message(checkpoints.restore, other, checkpoints.find("1"))
    assert values(other) == before


def damage(path, *, keep=None, flip=None):
    data = bytearray(path.read_bytes())
    if flip is not None:
        data[flip] ^= 0xFF
    path.write_bytes(data[:keep])


@pytest.mark.parametrize(
    ("ending", "fault"),
    [
        (".index", {"keep": 20}),
        (".index", {"keep": 0}),
        (".index", {"flip": 30}),
        (".data-00000-of-00001", {"keep": 10}),
        (".data-00000-of-00001", {"flip": 3}),
    ],
)
def test_a_damaged_one_is_refused(checkpoints, ending, fault):
    checkpoints.save(variables(1.0), step=1)
    path = checkpoints.find("1")
    damage(checkpoints.folder / f"ckpt-1{ending}", **fault)
    text = message(checkpoints.restore, variables(), path)
    assert path in text
    assert "damaged" in text or "cannot be read" in text


def test_a_missing_half_is_refused(checkpoints):
    checkpoints.save(variables(1.0), step=1)
    path = checkpoints.find("1")
    (checkpoints.folder / "ckpt-1.data-00000-of-00001").unlink()
    assert path in message(checkpoints.restore, variables(), path)


def test_a_folder_that_cannot_be_written_is_one_line(checkpoints):
    checkpoints.folder.parent.mkdir(exist_ok=True)
    checkpoints.folder.write_text("a file where the folder should be")
    text = message(lambda: checkpoints.save(variables(), step=5))
    assert text.startswith("checkpoint of step 5 was not saved: ")
