"""Several workers on this machine, each a process of its own; none may outlive a test."""

import json
import math
import os
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from tests.helpers.processes import Program

LIMIT_SECS = 1200
"""For all to end; on a busy machine a start alone takes minutes."""


def free_ports(count: int) -> list[int]:
    """Returns ports that nobody has at this moment."""
    with ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in found:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in found]


def tf_config(addresses: Sequence[str], index: int) -> str:
    """Returns TF_CONFIG of one of several workers."""
    return json.dumps({"cluster": {"worker": [*addresses]}, "task": {"type": "worker", "index": index}})


class Workers:
    """The same command once for each of several workers; `own` has what each gets besides, in order."""

    def __init__(
        self,
        arguments: Sequence[object],
        *,
        count: int = 2,
        own: Sequence[Sequence[object]] = (),
        env: Mapping[int, Mapping[str, str]] = {},
        late_secs: Mapping[int, float] = {},
    ):
        """Starts them; one in `late_secs` so long after those before it, never where that is infinite."""
        self.addresses = [f"127.0.0.1:{port}" for port in free_ports(count)]
        self.programs: list[Program] = []
        for index in range(count):
            if math.isinf(late_secs.get(index, 0.0)):
                continue
            time.sleep(late_secs.get(index, 0.0))
            environment = {**os.environ, "TF_CONFIG": tf_config(self.addresses, index), **env.get(index, {})}
            flags = [*arguments, *(own[index] if own else [])]
            program = Program(flags, module="tests.helpers.worker_program", env=environment)
            self.programs.append(program)

    def ended(self, *, hanging: int | None = None) -> list[tuple[int, str, str]]:
        """Waits for all but one that hangs, which is killed then.

        Returns:
          (status, standard output, standard error without TensorFlow's) of each.
        """
        found = []
        order = sorted(range(len(self.programs)), key=lambda index: index == hanging)
        try:
            for index in order:
                program = self.programs[index]
                if index == hanging:
                    program._process.kill()
                out, err = program.communicate(LIMIT_SECS)
                found.append((program.returncode, out, _ours(err)))
        except subprocess.TimeoutExpired:
            raise AssertionError(f"a worker did not end; before it: {found}") from None
        finally:
            for program in self.programs:
                program._process.kill()
        return [found[order.index(index)] for index in range(len(order))]


def _ours(err: str) -> str:
    begins = ("trainer:", "SIG", "--max_minutes=")
    return "".join(line for line in err.splitlines(keepends=True) if line.startswith(begins))
