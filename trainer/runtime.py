"""The machine: TensorFlow's start, devices, strategy, signals."""

import contextlib
import logging
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator
from types import FrameType
from typing import Any


def start_tensorflow() -> None:
    """Imports TensorFlow quietly and settles how it computes. To be called before any model exists."""
    # Before the import: the C++ side reads it once.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Else TensorFlow imports Keras 3 with scikit-learn and matplotlib, which takes longer than the
    # rest of it (1.5 of 3.2 s); hub needs tf_keras, and nothing here needs both.
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated", category=UserWarning)
    with _quiet_stderr():
        import tensorflow as tf

        has_gpu = bool(tf.config.list_physical_devices("GPU"))
    tf.get_logger().setLevel(logging.ERROR)
    if has_gpu:
        # A CPU repeats its sums to the last bit anyway.
        tf.config.experimental.enable_op_determinism()


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Holds back what C++ writes to standard error, and lets it out if the block fails.

    TensorFlow reports a missing GPU as an error, before its log level counts.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(kept, held.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def make_strategy(kind: str) -> Any:
    """Returns the `tf.distribute.Strategy` that --strategy names."""
    import tensorflow as tf

    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    if kind == "mirrored" or (kind == "auto" and len(devices) > 1 and devices[0].device_type == "GPU"):
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    return tf.distribute.get_strategy()


def versions() -> dict[str, str]:
    """Returns the versions that the numbers of a run may depend on."""
    from importlib import metadata

    names = ("tensorflow", "tf_keras", "tensorflow-hub", "tensorflow-datasets", "numpy", "pillow")
    found = {name: metadata.version(name) for name in names}
    return {"python": sys.version.split()[0], **found}


class StopSignal:
    """Notes a wish to stop (Ctrl-C, SIGTERM); a second Ctrl-C ends the process at once."""

    def __init__(self) -> None:
        self.received = False

    @classmethod
    @contextlib.contextmanager
    def installed(cls) -> Iterator["StopSignal"]:
        """Takes over SIGINT and SIGTERM for the length of a block. Only possible in the main thread."""
        stop = cls()
        before = {number: signal.signal(number, stop._note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield stop
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            os._exit(130)
        self.received = True
        # Not print: a handler may interrupt another write to the same buffer.
        os.write(2, b"\nstopping after the current step; Ctrl-C again to leave at once\n")

    def requested(self) -> bool:
        """Returns whether somebody wants the run to stop."""
        return self.received
