"""The machine, and those it trains with: processors, devices, TensorFlow's start, the strategy, signals."""

import contextlib
import faulthandler
import functools
import importlib.util
import json
import logging
import os
import platform
import re
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Protocol

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


def leave(status: int) -> NoReturn:
    """Ends the process at once: all files are closed, and taking TensorFlow apart takes up to a second.

    Nothing that was left for the end of Python is done but one thing: AutoGraph's files of source code do not
    stay in the folder for temporary files, nor what Python has compiled of them.
    """
    for name, module in [*sys.modules.items()]:
        if name.startswith("__autograph_generated_file") and module.__file__:
            # Whatever has become of it, the process ends as it was to.
            with contextlib.suppress(OSError):
                os.remove(module.__file__)
            with contextlib.suppress(OSError, NotImplementedError):
                compiled = importlib.util.cache_from_source(module.__file__)
                os.remove(compiled)
                # It goes with the last one of all processes.
                os.rmdir(os.path.dirname(compiled))
    os._exit(status)


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
# A wish that Python would have ignored is told again after so long.
AGAIN_AFTER_SECS = 0.02
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
    with quiet_stderr() if is_new else contextlib.nullcontext():
        import tensorflow as tf

        has_gpu = bool(tf.config.list_physical_devices("GPU"))
    if waits:
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    tf.get_logger().setLevel(logging.ERROR)
    if has_gpu:
        # A CPU repeats its sums to the last bit anyway.
        tf.config.experimental.enable_op_determinism()


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Holds back what C++ writes to standard error, and lets it out if the block fails.

    TensorFlow reports a missing GPU as an error, before its log level counts, and its converter says what it
    quantizes. Whoever only calls us keeps their standard error as it is.
    """
    if not owns_process:
        yield
        return
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


@dataclass(frozen=True)
class Cluster:
    """The processes that train together, one or more a machine, and which of them this one is."""

    addresses: tuple[str, ...]
    """HOST:PORT of each; the first one is the chief, who writes what all share."""
    index: int
    """Of this process among them."""
    named_by: str
    """What says so, for people: TF_CONFIG or SLURM."""

    def told(self, index: int) -> str:
        """Returns e.g. `worker 1 (node7:2222)`."""
        return f"worker {index} ({self.addresses[index]})"


def named_cluster() -> Cluster | None:
    """Returns the workers that the environment names; None: this process is alone.

    TF_CONFIG comes first, as services and TensorFlow's own tools set it, then what `srun` sets for each of
    several tasks.

    Raises:
      UsageError: TF_CONFIG or SLURM's variables cannot be read; one line says what is wrong.
    """
    return _tf_config_cluster() or _slurm_cluster()


def _tf_config_cluster() -> Cluster | None:
    """Reads TF_CONFIG. That of a single task, as services set it for one machine, names nobody."""
    text = os.environ.get("TF_CONFIG", "").strip()
    if not text:
        return None
    unset = "or unset it (env -u TF_CONFIG ...)"
    try:
        config = json.loads(text)
        # {"worker": ["a:1", "b:1"]}, or, as TensorFlow takes it, too, {"worker": {"0": "a:1", "1": "b:1"}}.
        named = config.get("cluster") or {}
        roles = {
            role: [tasks[at] for at in sorted(tasks, key=int)] if isinstance(tasks, dict) else list(tasks)
            for role, tasks in named.items()
            if tasks
        }
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise UsageError(
            f"TF_CONFIG={' '.join(text.split())[:100]} does not say which machines train together: correct "
            f"it, {unset}"
        ) from None
    if sum(map(len, roles.values())) <= 1:
        return None
    if others := [role for role in roles if role not in ("chief", "worker")]:
        raise UsageError(
            f"TF_CONFIG lists a task of kind {others[0]}, and only chief and worker train here: correct it, "
            + unset
        )
    if len(roles.get("chief", [])) > 1:
        raise UsageError(f"TF_CONFIG lists {len(roles['chief'])} chiefs, and there can be one: correct it")
    addresses = (*roles.get("chief", ()), *roles.get("worker", ()))
    task = config.get("task")
    kind, number = (task.get("type"), task.get("index")) if isinstance(task, dict) else (None, None)
    # Kubernetes and others write it as text.
    number = int(number) if isinstance(number, str) and number.isdigit() else number
    if kind not in roles or type(number) is not int or not 0 <= number < len(roles[kind]):
        raise UsageError(
            f"TF_CONFIG lists {len(addresses)} workers, and its task {json.dumps(task)[:60]} is none of "
            'them: name this one as {"type": "worker", "index": N}, N from 0 on, ' + unset
        )
    index = number + (len(roles.get("chief", ())) if kind == "worker" else 0)
    return Cluster(_checked_addresses(addresses, "TF_CONFIG"), index, "TF_CONFIG")


def _checked_addresses(addresses: Sequence[Any], named_by: str) -> tuple[str, ...]:
    for address in addresses:
        host, _, port = address.rpartition(":") if isinstance(address, str) else ("", "", "")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise UsageError(
                f"{named_by} names the worker {address!r}: expected HOST:PORT, such as node1:2222"
            )
    if twice := [address for address in addresses if addresses.count(address) > 1]:
        raise UsageError(f"{named_by} names {twice[0]} twice: every worker needs a port of its own")
    return tuple(addresses)


def _slurm_cluster() -> Cluster | None:
    """Reads what srun sets for each task of a step: tasks in the order of their nodes, a port for each.

    Not by `tf.distribute.cluster_resolver.SlurmClusterResolver`, which wants nvidia-smi and takes the nodes
    in the order of the alphabet: of more than nine, most tasks would stand for another one.
    """
    environment = os.environ
    count = environment.get("SLURM_STEP_NUM_TASKS", "")
    if not count.isdigit() or int(count) <= 1:
        return None
    try:
        hosts = _slurm_hosts(environment["SLURM_STEP_NODELIST"])
        per_node = _slurm_counts(environment["SLURM_STEP_TASKS_PER_NODE"])
        rank, job = int(environment["SLURM_PROCID"]), int(environment["SLURM_JOB_ID"])
        # Two jobs on one node must not take one another's ports.
        base = 20_000 + job * 64 % 10_000
        addresses = [
            f"{host}:{base + number}"
            for host, tasks in zip(hosts, per_node, strict=True)
            for number in range(tasks)
        ]
        return Cluster(_checked_addresses(addresses, "SLURM"), range(len(addresses))[rank], "SLURM")
    except (KeyError, ValueError, IndexError) as error:
        raise UsageError(
            f"srun started {count} tasks, and SLURM's variables do not say where ({error}): set TF_CONFIG, "
            "or train with one (--strategy=one, srun --ntasks=1)"
        ) from None


def _slurm_hosts(text: str) -> list[str]:
    """Returns the nodes of a list such as `gpu[08-10,12],login`."""
    hosts = []
    for name in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        found = re.fullmatch(r"([^\[]*)\[([^\]]*)\](.*)", name)
        if not found:
            hosts.append(name)
            continue
        for part in found[2].split(","):
            first, _, last = part.partition("-")
            numbers = range(int(first), int(last or first) + 1)
            hosts += [f"{found[1]}{number:0{len(first)}d}{found[3]}" for number in numbers]
    return hosts


def _slurm_counts(text: str) -> list[int]:
    """Returns how many tasks each node has, of a text such as `2(x3),1`."""
    counts = []
    for part in text.split(","):
        number, _, times = part.partition("(x")
        counts += [int(number)] * int(times.rstrip(")") or 1)
    return counts


def require_one_machine(command: str) -> None:
    """Makes sure that this is not one process of several that are to train together.

    Raises:
      UsageError: it is, or what names them cannot be read.
    """
    cluster = named_cluster()
    # Whoever starts other verbs by srun, several at once, has always had one run for each task.
    if cluster and cluster.named_by == "TF_CONFIG":
        raise UsageError(
            f"TF_CONFIG lists {len(cluster.addresses)} workers, and {command} does not work on several "
            "machines, only train does: start one process without it (env -u TF_CONFIG ...); it uses all "
            "GPUs of its machine"
        )


# The one that this process has joined: a process can be in one strategy of several workers in its life.
_joined: Any = None
# In TensorFlow, whoever makes the strategy waits for all others with the interpreter locked, so that nothing
# in Python could end it. All were there a moment ago.
JOIN_SECS = 60


def has_joined() -> bool:
    """Returns whether this process has been one of several workers."""
    return _joined is not None


def join(cluster: Cluster) -> None:
    """Makes the strategy of several workers, which are all about to do the same.

    The process ends, with status 1, where that takes longer than JOIN_SECS.

    Raises:
      UsageError: TensorFlow has computed something in this process before.
    """
    global _joined
    import tensorflow as tf

    spec = tf.train.ClusterSpec({"worker": list(cluster.addresses)})
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        spec, task_type="worker", task_id=cluster.index, rpc_layer="grpc"
    )
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with open(os.devnull, "w") as nowhere:
        faulthandler.dump_traceback_later(JOIN_SECS, exit=True, file=nowhere)
        try:
            _joined = tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)
        except RuntimeError as error:
            if "program startup" not in str(error):
                raise
            raise UsageError(
                "TensorFlow has computed something before the workers joined, which it does not allow: a "
                "plugin must not make tensors while it is imported, nor a script before it calls train"
            ) from error
        finally:
            faulthandler.cancel_dump_traceback_later()
    if threading.current_thread() is threading.main_thread():
        # TensorFlow has put a handler of SIGTERM in the place of ours, of which Python does not know.
        for number, handler in handlers.items():
            if handler is not None:
                signal.signal(number, handler)


@functools.cache
def make_strategy(kind: str) -> Any:
    """Returns the `tf.distribute.Strategy` that --strategy names, the same one each time.

    A second one for several devices would number its collective operations like the first, and TensorFlow
    would take them for the same.
    """
    import tensorflow as tf

    if _joined is not None:
        return _joined
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    # A run that several workers trained is evaluated by one.
    if kind in ("auto", "multi_worker"):
        return make_strategy("mirrored" if len(devices) > 1 and devices[0].device_type == "GPU" else "one")
    if kind == "mirrored":
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    return tf.distribute.get_strategy()


def rounds_products() -> bool:
    """Returns whether factors in float32 may be rounded to 10 bits, as GPUs do unless told otherwise."""
    import tensorflow as tf

    has_gpu = bool(tf.config.list_logical_devices("GPU"))
    return has_gpu and bool(tf.config.experimental.tensor_float_32_execution_enabled())


def share_of(strategy: Any) -> tuple[int, int]:
    """Returns which worker this is, and of how many, of a strategy; (0, 1) on one machine."""
    resolver = strategy.cluster_resolver
    return (resolver.task_id, resolver.cluster_spec().num_tasks("worker")) if resolver else (0, 1)


def divided(strategy: Any, batches: Any) -> Iterator[Any]:
    """Yields the batches of a dataset, each divided over the devices of this machine.

    Args:
      strategy: whose devices.
      batches: of all rows, or, where several workers share them, of this one's.
    """
    if share_of(strategy)[1] == 1:
        yield from strategy.experimental_distribute_dataset(batches)
        return
    for batch in batches:
        yield _over_devices(strategy, batch)


def _num_local(strategy: Any) -> int:
    return int(strategy.num_replicas_in_sync) // share_of(strategy)[1]


def _over_devices(strategy: Any, batch: Any) -> Any:
    """Divides the rows of tensors over this worker's devices, in order."""
    import tensorflow as tf

    count = _num_local(strategy)
    if count == 1:
        return batch

    def part(context: Any) -> Any:
        at = context.replica_id_in_sync_group % count
        return tf.nest.map_structure(lambda x: tf.split(x, count)[at], batch)

    return strategy.experimental_distribute_values_from_function(part)


def endless(strategy: Any, batches: Any) -> Any:
    """Returns a dataset to be iterated in a tf.function, for as many batches as it has and no more.

    Args:
      strategy: whose devices share each batch.
      batches: see `divided`.
    """
    import tensorflow as tf

    if share_of(strategy)[1] == 1:
        return strategy.experimental_distribute_dataset(batches)
    if (count := _num_local(strategy)) > 1:
        rows = tf.nest.flatten(batches.element_spec)[0].shape[0]
        batches = batches.rebatch(rows // count)
    # Else workers ask one another before each batch whether all have one.
    batches = batches.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))
    return strategy.distribute_datasets_from_function(lambda context: batches)


def own_rows(strategy: Any, value: Any) -> list[Any]:
    """Returns what each device of this machine has, [b, ...] NumPy arrays; of one of several workers, one."""
    import numpy as np

    parts = [part.numpy() for part in strategy.experimental_local_results(value)]
    return parts if share_of(strategy)[1] == 1 else [np.concatenate(parts)]


def rows_of_all(strategy: Any, blocks: Sequence[Any]) -> Any:
    """Returns the rows of all batches, of all workers, in order.

    Args:
      strategy: whose workers share each batch.
      blocks: what `own_rows` gave of each batch, one after the other. Where there are several workers, all
        are of one shape.
    """
    import numpy as np
    import tensorflow as tf

    if share_of(strategy)[1] == 1:
        return np.concatenate(blocks)
    own, count = tf.constant(np.stack(blocks)), _num_local(strategy)
    # The first device of each worker brings all rows, the others none.
    value = strategy.experimental_distribute_values_from_function(
        lambda context: own if context.replica_id_in_sync_group % count == 0 else own[:, :0]
    )
    rows = strategy.gather(value, axis=1).numpy()
    return rows.reshape(-1, *rows.shape[2:])


class Stopping(Protocol):
    """What a run asks whether it is to stop; `StopSignal` says what each is for."""

    def deferred(self) -> contextlib.AbstractContextManager[None]: ...

    def received(self) -> str: ...

    def requested(self) -> str: ...


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
        self._deferred = self._has_run = self._has_raised = self._is_over = False

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
            with stop._heard_at_once(set(before)), stop._told_of_itself():
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
        self._interrupt(frame)

    def _interrupt(self, frame: FrameType | None) -> None:
        """Raises `Interrupted` where nothing needs saving, or soon, where Python would ignore it."""
        if self._deferred or self._is_over:
            return
        if _is_ignored_in(frame):
            self._interrupt_soon()
            return
        self._has_raised = True
        raise Interrupted(self._farewell())

    def _interrupt_soon(self) -> None:
        before = signal.getsignal(signal.SIGALRM)

        def again(_: int, frame: FrameType | None) -> None:
            signal.signal(signal.SIGALRM, before)
            self._interrupt(frame)

        signal.signal(signal.SIGALRM, again)
        signal.setitimer(signal.ITIMER_REAL, AGAIN_AFTER_SECS)

    @contextlib.contextmanager
    def _told_of_itself(self) -> Iterator[None]:
        """Ends a block by `Interrupted` where a library has made another error of it.

        TensorFlow's C code, for one, asks objects for attributes, and tells that they have none whatever was
        raised meanwhile.
        """
        try:
            yield
        except Interrupted:
            raise
        except Exception as error:
            if self._has_raised:
                raise Interrupted(self._farewell()) from error
            raise
        finally:
            self._is_over = True

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
                    leave(130)
                heard = True


def _is_ignored_in(frame: FrameType | None) -> bool:
    """Returns whether Python ignores what is raised here, in a finalizer or a weak reference's callback."""
    while frame is not None:
        code = frame.f_code
        if code.co_name == "__del__" or code.co_filename.endswith(("_weakrefset.py", "weakref.py")):
            return True
        frame = frame.f_back
    return False


def _told_signal(number: int) -> str:
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
