"""OpenVINO: a library that runs a network that does not change forward, on the processor, and nothing else.

Its kernels are faster than TensorFlow's there. It is an extra, imported when something is to be compiled by
it; its package brings openvino-telemetry, which is kept from being imported.
"""

import functools
import sys
import threading
from collections.abc import Callable
from importlib import metadata
from typing import Any

import numpy as np

from trainer.values import TrainerError, UsageError

NAME = "openvino"
# How much features may differ from those of TensorFlow in float32, of the largest one.
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.1}
_HINTS = {"float32": "f32", "bfloat16": "bf16"}


@functools.cache
def version() -> str:
    """Returns the version that is installed, such as 2026.4.1; empty where there is none."""
    try:
        return metadata.version(NAME)
    except metadata.PackageNotFoundError:
        return ""


def require_installed(*, flag: str) -> None:
    """Checks that OpenVINO can be used here.

    Raises:
      UsageError: it cannot; the message begins with `flag`.
    """
    if not version():
        raise UsageError(
            f"{flag} needs OpenVINO, which is not installed here: pip install 'hub-trainer[openvino]', or "
            "use --engine=tensorflow"
        )
    try:
        _core()
    except UnusableError as error:
        raise UsageError(f"{flag}: {error}; use --engine=tensorflow") from None


class UnusableError(TrainerError):
    """OpenVINO cannot be loaded, or cannot run a network; says why."""


@functools.cache
def _library() -> Any:
    """Imports OpenVINO without what it sends home at its import and with each conversion.

    Raises:
      UnusableError: it cannot be imported.
    """
    # A module that is None cannot be imported, and OpenVINO then takes a stand-in that does nothing.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        import openvino
    except (ImportError, OSError) as error:
        raise UnusableError(f"OpenVINO {version()} cannot be loaded ({_reason(error)})") from None
    return openvino


@functools.cache
def _core() -> Any:
    try:
        return _library().Core()
    except RuntimeError as error:
        raise UnusableError(f"OpenVINO {version()} cannot be used ({_reason(error)})") from None


def precisions() -> tuple[str, ...]:
    """Returns the arithmetics that it has on this processor, float32 first; none where it cannot be used."""
    if not version():
        return ()
    try:
        able = _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    except (UnusableError, RuntimeError):
        return ()
    return ("float32", "bfloat16") if "BF16" in able else ("float32",)


class Compiled:
    """A function from pictures [B, *shape] float32 to [B, ...] float32, with its weights as they were.

    It runs one picture at a time on each of a few streams: that keeps all cores busy, is no slower than whole
    batches, and the numbers of a picture do not depend on what else is in its batch. Safe to call from
    several threads.
    """

    def __init__(self, function: Any, *, precision: str) -> None:
        """Converts and compiles it, which takes seconds.

        Args:
          function: a tf.types.experimental.ConcreteFunction of one tensor [None, *shape] float32, whose
            variables are taken by value.
          precision: one of `precisions()`.

        Raises:
          UnusableError: OpenVINO cannot do it.
        """
        ov = _library()
        [images, *_] = function.inputs
        try:
            model = ov.convert_model(function, share_weights=False)
            # Gradients that a network brings along make outputs of their own.
            wanted = function.outputs[0].name
            [result] = [one for one in model.get_results() if wanted in one.get_output_tensor(0).names]
            model = ov.Model([result], model.get_parameters(), "frozen")
            model.reshape([1, *images.shape[1:]])
            hints = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": _HINTS[precision]}
            # Pictures are decoded meanwhile, which threads that are bound to cores would wait for.
            self.compiled = _core().compile_model(model, "CPU", {**hints, "ENABLE_CPU_PINNING": False})
            self._queue = ov.AsyncInferQueue(self.compiled)
        except Exception as error:  # Networks are other people's: whatever they hold, TensorFlow runs them.
            raise UnusableError(_reason(error)) from error
        self._tensor, self._lock = ov.Tensor, threading.Lock()
        self._shape = tuple(self.compiled.output(0).shape)[1:]
        self._queue.set_callback(self._take)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Maps images [B, *shape] float32 to a new array [B, ...] float32.

        Raises:
          TrainerError: it fails, as where memory is short.
        """
        images = np.ascontiguousarray(images)
        found = np.empty([len(images), *self._shape], np.float32)
        with self._lock:
            try:
                for at in range(len(images)):
                    # What cannot be written to is copied, one by one.
                    image = self._tensor(images[at : at + 1], shared_memory=images.flags.writeable)
                    self._queue.start_async({0: image}, userdata=found[at : at + 1])
                self._queue.wait_all()
            except RuntimeError as error:
                raise TrainerError(f"OpenVINO failed: {_reason(error)}") from None
        return found

    @staticmethod
    def _take(request: Any, place: np.ndarray) -> None:
        place[:] = request.get_output_tensor(0).data


def require_same(
    compiled: Callable[[np.ndarray], np.ndarray], images: np.ndarray, expected: np.ndarray, *, precision: str
) -> None:
    """Makes sure that a compiled function gives what TensorFlow does, up to rounding.

    Args:
      compiled: what is looked at.
      images: [n, *shape] float32.
      expected: [n, ...] what TensorFlow makes of them in float32.
      precision: of what was compiled.

    Raises:
      UnusableError: it does not.
    """
    largest = float(np.abs(expected).max(initial=0.0))
    error = float(np.abs(compiled(images) - expected).max(initial=0.0))
    # Not the other way round: what is not a number is not the same.
    if not error <= TOLERANCES[precision] * largest:
        raise UnusableError(f"its features differ by {error:.2g}, of {largest:.2g} at most")


def _reason(error: BaseException) -> str:
    """Returns the line of an error that says what is wrong, not where in its source OpenVINO found it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    found = [line for line in lines if line.startswith("-- ")]
    found += [line for line in lines if not line.startswith(("Check '", "FrontEnd API failed"))] + lines
    return found[0].removeprefix("-- ") if found else type(error).__name__
