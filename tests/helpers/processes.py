"""Processes of their own, without the seconds that importing TensorFlow takes in each.

A server that has imported it, and has called nothing of it, forks for each. The process has its own signals,
devices, environment and working directory, as a new one has; only the start of the interpreter is missing.
"""

import atexit
import contextlib
import gc
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["trainer.commands.train", "trainer.commands.evaluate", __name__])


class Program:
    """`python -m module arguments`, or `python -c code arguments`; to be used as `subprocess.Popen`."""

    def __init__(
        self,
        arguments: Sequence[object],
        *,
        module: str = "trainer.main",
        code: str = "",
        cwd: Path = ROOT,
        env: Mapping[str, str] | None = None,
    ):
        self._folder = tempfile.TemporaryDirectory()
        self._files = [os.path.join(self._folder.name, name) for name in ("out", "err")]
        environment = dict(os.environ if env is None else env)
        words = [str(word) for word in arguments]
        self._process = _SERVER.Process(
            target=_run, args=(module, code, words, str(cwd), environment, self._files)
        )
        self._process.start()
        self.pid = self._process.pid
        self.send_signal = lambda number: os.kill(self.pid, number)

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    poll = returncode.fget

    def communicate(self, timeout: float | None = 300) -> tuple[str, str]:
        """Waits for its end, and returns what it wrote."""
        self._process.join(timeout)
        if self.returncode is None:
            self._process.kill()
            raise subprocess.TimeoutExpired("a program", timeout or 0)
        with self._folder:
            out, err = (Path(name).read_text() if os.path.exists(name) else "" for name in self._files)
        return out, err


def run_program(arguments: Sequence[object], **how) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end; see `Program`."""
    program = Program(arguments, **how)
    out, err = program.communicate()
    return subprocess.CompletedProcess(list(arguments), program.returncode, out, err)


def _run(
    module: str, code: str, arguments: list[str], cwd: str, environment: dict[str, str], files: list[str]
) -> None:
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    # As in the tests' own processes: no power fails here.
    os.fsync = lambda handle: os.fstat(handle) and None
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # That of the server.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    import tensorflow as tf

    # Looking for a GPU says on standard error that there is none, which the program keeps to itself only
    # where it imports TensorFlow.
    tf.config.list_physical_devices("GPU")
    for handle, name in enumerate(files, start=1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), handle)
    os.chdir(cwd)
    sys.argv = ["-c" if code else module, *arguments]
    sys.path.insert(0, cwd)
    sys.modules.pop(module, None)
    # Forked, it would end without these; a new interpreter does not.
    with contextlib.ExitStack() as stack:
        stack.callback(atexit._run_exitfuncs)
        try:
            if code:
                exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
            else:
                runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit:
            raise
        except BaseException:
            traceback.print_exc()
            sys.exit(1)
