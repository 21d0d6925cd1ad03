"""One worker of several through the door, with TinyNet among the networks of Keras; for test_cluster.py.

WORKER_ENDS="STEP SIGNAL" has it send itself a signal where the loop comes back at that step; SIGNAL may also
be raise, which raises an error there.
"""

import os
import signal
import sys

from tests.helpers.feature_runs import tiny_net
from tests.helpers.undrawn import undrawn
from trainer import runtime
from trainer.loop import standard_callbacks
from trainer.main import main

step, number = os.environ.get("WORKER_ENDS", "-1 none").split()
call = standard_callbacks.Stop.__call__


def look(self, state):
    if state.step == int(step):
        if number == "raise":
            raise RuntimeError("the test wants it")
        os.kill(os.getpid(), getattr(signal, number))
    call(self, state)


standard_callbacks.Stop.__call__ = look
# As `program` does: nothing of it may be left when it ends.
runtime.owns_process = True
with tiny_net(), undrawn():
    status = main(["trainer", *sys.argv[1:]])
sys.stdout.flush()
sys.stderr.flush()
os._exit(status)
