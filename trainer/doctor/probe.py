"""Tries TensorFlow in a process of its own, which may crash or hang: `python -m trainer.doctor.probe`.

It prints a line of JSON for each stage that it comes through: imports, devices, speeds.
"""

import functools
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trainer.doctor.packages import imported_by_training
from trainer.runtime import leave

TIMEOUT_SECS = 180.0
# As in the middle of a ResNet-50, at a batch of 8: some 30 to 300 ms on a processor.
_IMAGES, _KERNEL, _NUM_CONVOLUTIONS = (8, 56, 56, 64), (3, 3, 64, 64), 4
_ON_TENSORFLOW = ("tensorflow", "tf_keras", "tensorboard", "tensorflow_hub", "tensorflow_datasets")
# What one command needs, where it is installed: {package: statements}.
_OF_COMMANDS = {
    "flask": ["import flask"],
    "werkzeug": ["from werkzeug.serving import make_server"],
    "flatbuffers": ["import flatbuffers"],
    "ai_edge_litert": ["from ai_edge_litert.interpreter import Interpreter"],
}
WHAT = f"{_NUM_CONVOLUTIONS} convolutions, {_IMAGES[-1]} channels, batch {_IMAGES[0]}"


def start() -> subprocess.Popen[Any] | str:
    """Starts the process; returns why it cannot be, if so."""
    here = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH", ""), here]))
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "trainer.doctor.probe"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**os.environ, "PYTHONPATH": path},
        )
    except OSError as error:
        return (
            f"Python cannot be started as a process of its own: {error.strerror or error}: {sys.executable}"
        )


def finish(process: subprocess.Popen[Any] | str) -> dict[str, Any]:
    """Waits for what `start` returned; returns what the stages said, and under "failed" why one did not."""
    if isinstance(process, str):
        return {"failed": process}
    try:
        out, err = process.communicate(timeout=TIMEOUT_SECS)
        why = _told_end(process.returncode, err)
    except subprocess.TimeoutExpired:
        process.kill()
        out, _ = process.communicate()
        why = f"it does not end within {TIMEOUT_SECS:g} s"
    found: dict[str, Any] = {}
    for line in out.splitlines():
        # Libraries print, too.
        if line.startswith('{"stage": '):
            said = json.loads(line)
            found[said["stage"]] = said["found"]
    return {**found, "failed": why} if why else found


def _told_end(status: int, err: str) -> str:
    if status == 0:
        return ""
    last = next((line.strip() for line in reversed(err.splitlines()) if line.strip()), "")
    how = f"it is ended by {_signal(-status)}" if status < 0 else f"it ends with status {status}"
    return f"{how} ({last[:200]})" if last else how


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def main() -> None:
    """Goes through the stages, and says what each found."""
    imports = _imports()
    _say("imports", imports)
    if "tensorflow" not in imports["secs"]:
        return
    _say("devices", _devices())
    _say("speeds", _speeds())


def _say(stage: str, found: Any) -> None:
    print(json.dumps({"stage": stage, "found": found}), flush=True)


def _imports() -> dict[str, dict[str, Any]]:
    """Imports what is needed: {"secs": {package: seconds}, "errors": {package: what it says}}."""
    from trainer import runtime

    # This one is a process of its own.
    runtime.owns_process = True
    secs: dict[str, float] = {}
    errors: dict[str, str] = {}

    def attempt(name: str, load: Callable[[], object]) -> None:
        began = time.perf_counter()
        try:
            load()
            secs[name] = time.perf_counter() - began
        except Exception as error:
            errors[name] = " ".join(f"{type(error).__name__}: {error}".split())[:300]

    wanted = imported_by_training()
    # Parts that are imported late and by name: by the first figure, and by the first use of tfds.
    wanted["matplotlib"] += ["from trainer.report import figures", "figures.png_bytes(figures.Figure())"]
    wanted["tensorflow_datasets"] += ["tfds.core.DatasetBuilder"]
    wanted |= {name: lines for name, lines in _OF_COMMANDS.items() if importlib.util.find_spec(name)}
    # As training does, without pkg_resources.
    wanted["tensorflow_hub"] = ["from trainer.model.hub import hub"]
    attempt("tensorflow", runtime.start_tensorflow)
    # Before what is built on TensorFlow and imports some of them, too: each is named for its own faults.
    for name in (name for name in wanted if name not in _ON_TENSORFLOW):
        attempt(name, functools.partial(_run, wanted[name]))
    for name in _ON_TENSORFLOW if "tensorflow" in secs else ():
        before = secs.pop(name, 0.0)
        attempt(name, functools.partial(_run, wanted.get(name, [])))
        if name in secs:
            secs[name] += before
    return {"secs": secs, "errors": errors}


def _run(statements: Sequence[str]) -> None:
    names: dict[str, Any] = {}
    for statement in statements:
        exec(statement, names)  # They are our own.


def _devices() -> dict[str, Any]:
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    build = tf.sysconfig.get_build_info()
    return {
        "version": tf.__version__,
        "gpus": [tf.config.experimental.get_device_details(gpu).get("device_name", "GPU") for gpu in gpus],
        "is_built_with_cuda": tf.test.is_built_with_cuda(),
        "cuda_version": str(build.get("cuda_version", "")),
    }


def _speeds() -> dict[str, Any]:
    """Returns {"machine": as the memory of --precision=auto describes it, "measured": a Choice as JSON}."""
    import tensorflow as tf

    from trainer.precision import supported
    from trainer.precision.choice import machine, measure

    images, kernel = tf.ones(_IMAGES), tf.fill(_KERNEL, 0.01)

    @tf.function(autograph=False)
    def forward(maps: tf.Tensor) -> tf.Tensor:
        for _ in range(_NUM_CONVOLUTIONS):
            maps = tf.nn.relu(tf.nn.conv2d(maps, kernel, strides=1, padding="SAME"))
        return tf.reduce_mean(maps)

    here = machine()
    measured = measure(
        lambda precision: lambda: forward(images).numpy(),
        what=WHAT,
        candidates=supported(),
        here=here,
        budget_secs=1.0,
    )
    return {"machine": here, "measured": measured.to_json()}


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    leave(0)
