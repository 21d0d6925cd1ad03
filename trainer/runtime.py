"""The machine: processors, devices, TensorFlow's start, the strategy, signals."""

import contextlib
import functools
import json
import logging
import os
import platform
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from trainer.values import Interrupted, UsageError

# What decides how fast a network is on a processor, as Linux calls it.
INSTRUCTION_SETS = (
    "avx2", "avx_vnni", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_fp16",
    "amx_int8",
)  # fmt: skip


def unsupported_system() -> str:
    """Returns what to say on a system that this does not run on; empty elsewhere."""
    if sys.platform == "win32":
        return "Windows is not supported, Linux and macOS are; on Windows, run it in WSL (wsl --install)"
    return ""


def machine() -> dict[str, Any]:
    """Returns the processor with its cores and instruction sets, memory in GB, and the GPUs."""
    import tensorflow as tf

    model, flags = processor()
    gpus = [tf.config.experimental.get_device_details(gpu) for gpu in tf.config.list_physical_devices("GPU")]
    return {
        "processor": model,
        "cores": cores(),
        "instruction_sets": [name for name in INSTRUCTION_SETS if name in flags],
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpus": [gpu.get("device_name", "GPU") for gpu in gpus],
    }


def peak_memory_mb() -> float:
    """Returns the most memory this process has had resident, in MB."""
    try:
        status = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        status = []
    for line in status:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    import resource  # Not at the top: Windows has none, and is to be told so.

    # On Linux this begins with the peak of whoever started the process; on macOS it is in bytes.
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes / 1e6


def cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> tuple[str, set[str]]:
    """Returns the name of the processor and its flags, as far as the system tells them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor() or platform.machine(), set()
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return fields.get("model name", platform.machine()), set(fields.get("flags", "").split())


# Most runs have stopped by then, and say that they have.
SAY_AFTER_SECS = 1.0
# Set by the program where it is started, never by who only calls it: what C++ writes to standard error is
# held back then, while TensorFlow is imported.
owns_process = False


@functools.cache
def start_tensorflow() -> None:
    """Imports TensorFlow quietly and settles how it computes, once. To be called before any model exists."""
    # Before the import: the C++ side reads it once.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Else TensorFlow imports Keras 3 with scikit-learn and matplotlib, which takes longer than the
    # rest of it (1.5 of 3.2 s); hub needs tf_keras, and nothing here needs both.
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    is_new = "tensorflow" not in sys.modules
    # It takes seconds: on a terminal somebody waits for them, and a line that goes away says what for.
    waits = owns_process and is_new and sys.stderr is not None and sys.stderr.isatty()
    if waits:
        print("loading TensorFlow ...", end="", file=sys.stderr, flush=True)
    with _quiet_stderr() if owns_process and is_new else contextlib.nullcontext():
        import tensorflow as tf

        has_gpu = bool(tf.config.list_physical_devices("GPU"))
    if waits:
        print("\r\033[K", end="", file=sys.stderr, flush=True)
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
        except Exception:
            held.seek(0)
            os.write(kept, held.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def require_one_machine() -> None:
    """Makes sure that this is not one process of several that are to train together.

    A TF_CONFIG of a single task, as services set it for one machine, changes nothing.

    Raises:
      UsageError: TF_CONFIG lists several tasks, or cannot be read.
    """
    text = os.environ.get("TF_CONFIG", "").strip()
    if not text:
        return
    try:
        cluster = json.loads(text).get("cluster") or {}
        counts = {role: len(tasks) for role, tasks in cluster.items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise UsageError(
            f"TF_CONFIG={' '.join(text.split())[:100]} does not say which machines train together: correct "
            "it, or unset it (env -u TF_CONFIG ...)"
        ) from None
    if (total := sum(counts.values())) > 1:
        told = ", ".join(f"{count} {role}" for role, count in counts.items() if count)
        raise UsageError(
            f"TF_CONFIG lists {total} workers ({told}), and training on several machines is not supported: "
            "start one process without it (env -u TF_CONFIG ...); it uses all GPUs of its machine"
        )


@functools.cache
def make_strategy(kind: str) -> Any:
    """Returns the `tf.distribute.Strategy` that --strategy names, the same one each time.

    A second one for several devices would number its collective operations like the first, and TensorFlow
    would take them for the same.
    """
    import tensorflow as tf

    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    if kind == "auto":
        return make_strategy("mirrored" if len(devices) > 1 and devices[0].device_type == "GPU" else "one")
    if kind == "mirrored":
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    return tf.distribute.get_strategy()


class StopSignal:
    """A wish that the run stops: Ctrl-C, another signal, or that its time is up.

    While a block of `deferred` lasts it is a note that the run looks at between steps; otherwise nothing
    needs saving, and a signal raises `Interrupted` where it comes. A second Ctrl-C ends the program at once;
    where the process is another's it raises KeyboardInterrupt, and what is not saved is lost.
    """

    def __init__(self, *, max_minutes: float = 0.0):
        self._max_minutes = max_minutes
        self._began = time.monotonic()
        self._received = ""
        self._deferred = self._has_run = False

    @classmethod
    @contextlib.contextmanager
    def installed(cls, signals: Sequence[str] = (), *, max_minutes: float = 0.0) -> Iterator["StopSignal"]:
        """Takes over SIGINT and `signals` for the length of a block.

        Only the main thread can have handlers: in another one, time alone ends a run.

        Args:
          signals: names such as SIGTERM.
          max_minutes: after so many the wish is there by itself; 0 means never.
        """
        stop = cls(max_minutes=max_minutes)
        if threading.current_thread() is not threading.main_thread():
            yield stop
            return
        named = [signal.Signals[name] for name in signals]
        # What is ignored, as SIGHUP under nohup, stays so.
        heard = [number for number in named if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, stop._note) for number in {signal.SIGINT, *heard}}
        try:
            with stop._heard_at_once(set(before)):
                yield stop
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Keeps signals from interrupting a block, which asks `requested` instead.

        Raises:
          Interrupted: at the end, a signal came after the block last asked.
        """
        self._deferred = self._has_run = True
        try:
            yield
        finally:
            self._deferred = False
        if self._received:
            raise Interrupted(self._farewell())

    def received(self) -> str:
        """Returns the signal that asked for a stop; empty as long as there was none, whatever the time."""
        return self._received

    def requested(self) -> str:
        """Returns why the run is to stop, or an empty text if it is not."""
        is_over = self._max_minutes and time.monotonic() - self._began >= 60 * self._max_minutes
        return self._received or (f"--max_minutes={self._max_minutes:g}" if is_over else "")

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._received and number == signal.SIGINT and not owns_process:
            raise KeyboardInterrupt
        self._received = self._received or _told_signal(number)
        if not self._deferred:
            raise Interrupted(self._farewell())

    def _farewell(self) -> str:
        if not self._has_run:
            return (
                f"{self._received}: stopped while starting, before the first step. Run the same command again"
            )
        return f"{self._received}: stopped; everything is saved. Run the same command to continue"

    @contextlib.contextmanager
    def _heard_at_once(self, numbers: set[signal.Signals]) -> Iterator[None]:
        """Answers signals in a thread: the main one does not see them while TensorFlow computes."""
        # The write end must not block: it is written to by the C part of Python's signal handler.
        ours, handlers = socket.socketpair()
        handlers.setblocking(False)
        before = signal.set_wakeup_fd(handlers.fileno(), warn_on_full_buffer=False)
        thread = threading.Thread(target=self._answer, args=(ours, numbers), daemon=True)
        thread.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            handlers.close()
            thread.join()
            ours.close()

    def _answer(self, signals: socket.socket, numbers: set[signal.Signals]) -> None:
        heard = told = False
        while True:
            signals.settimeout(SAY_AFTER_SECS if heard and not told else None)
            try:
                if not (received := signals.recv(64)):
                    return
            except TimeoutError:
                told = True
                if self._deferred:
                    # Not print, which may be in the middle of another line, as the bar of a terminal is.
                    start = b"\n" if os.isatty(2) else b""
                    with contextlib.suppress(OSError):
                        os.write(
                            2, start + b"stopping after the current step; Ctrl-C again to leave at once\n"
                        )
                continue
            for number in numbers.intersection(received) if owns_process else ():
                if heard and number == signal.SIGINT:
                    os._exit(130)
                heard = True


def _told_signal(number: int) -> str:
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
