"""Runs on several devices through the door: whole, killed, rolled back; prints what came of it as JSON.

A program of its own, because the number of devices must be set before TensorFlow starts. Called by
test_mirrored.py with a number of devices, a folder to work in, and the network.
"""

import contextlib
import io
import json
import sys
from pathlib import Path

from trainer.runtime import start_tensorflow

start_tensorflow()

import tensorflow as tf  # noqa: E402

COUNT, ROOT, BACKBONE = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
BACKBONE = BACKBONE if ":" in BACKBONE else f"savedmodel:{BACKBONE}"
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * COUNT
)

from tests.conftest import make_flower_folder  # noqa: E402
from tests.helpers.feature_runs import metrics, weights  # noqa: E402
from tests.helpers.undrawn import PLAIN, undrawn  # noqa: E402
from trainer.loop import standard_callbacks  # noqa: E402
from trainer.main import main  # noqa: E402

BATCH_SIZE = 3 if COUNT == 3 else 4
BATCH_NORM = 4
"""Steps of the phase whose statistics move; in the middle of the second epoch, of 4, 4 and 1 examples.

Three devices take 3, 3 and 3."""


class Killed(BaseException):
    pass


def call(name, *arguments, command="train", cache="cache"):
    """Returns (status, what was printed) of a command on the run `name`."""
    common = [f"--workdir={ROOT / name}", f"--cache_dir={ROOT / cache}", "--strategy=mirrored"]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out), undrawn():
        status = main(["trainer", command, *common, *arguments])
    return status, out.getvalue()


MOVING = "--phase=name=moving; for={}steps; train=all; bn=batch; lr=0.1; optimizer=sgd"
PHASES = (MOVING.format(BATCH_NORM), "--phase=name=kept; for=1epochs; train=head; lr=0.1")


def train(name, *changes, phases=PHASES):
    return call(
        name,
        *phases,
        f"--source=folder:{ROOT / 'pictures'}", f"--backbone={BACKBONE}", "--image_size=8",
        "--splits=9,5,4", f"--batch_size={BATCH_SIZE}", "--head=linear", "--dropout=0.5",
        "--precision=float32", "--save_every=3steps", "--evaluate_every=3steps", "--log_every=2steps",
        *PLAIN, *changes,
    )  # fmt: skip


def kill_at(step):
    def look(self, state):
        if state.step == step:
            raise Killed

    standard_callbacks.Stop.__call__ = look
    try:
        train("killed")
    except Killed:
        return
    finally:
        standard_callbacks.Stop.__call__ = stop_call
    raise AssertionError("the run was not killed")


def validation(name):
    return {
        row["step"]: (row["loss"], row["accuracy"])
        for row in metrics(ROOT / name)
        if row["split"] == "validation"
    }


def evaluate(name):
    done = call(name, "--checkpoint=latest", "--eval_split=validation", command="evaluate")
    report = json.loads((ROOT / name / "report" / "validation" / "metrics.json").read_text())
    return done[0], report["step"], (report["loss"], report["accuracy"])


def rows(name):
    timing = ("images_per_second", "input_wait_share")
    return [{k: v for k, v in row.items() if k not in timing} for row in metrics(ROOT / name)]


stop_call = standard_callbacks.Stop.__call__
make_flower_folder(ROOT / "pictures")
found = {"whole": train("whole"), "uncached": train("uncached", "--feature_cache=off")}
kill_at(BATCH_NORM - 1)
found["evaluated"] = [*evaluate("killed"), validation("killed")[BATCH_NORM - 1]]
found["killed"] = train("killed")
found["rows"] = {name: rows(name) for name in ("whole", "killed", "uncached")}
found["weights"] = {
    name: {key: value.tolist() for key, value in weights(ROOT / name).items()}
    for name in ("whole", "killed", "uncached")
}
# Both of its updates are above: a new start, an update, another start.
changes = ("--on_nonfinite=rollback", "--max_loss=0.01", "--save_every=1steps")
found["rollback"] = train("rollback", *changes, phases=[MOVING.format(2)])
found["rollbacks"] = len(json.loads((ROOT / "rollback" / "run.json").read_text())["rollbacks"])
print(json.dumps(found))
