"""One of several workers that trains nothing: they meet, agree, and one of them ends. Called by test_team.py.

Arguments: what worker 1 does, and a folder that holds what the chief shares.
"""

import os
import signal
import sys
import time
from pathlib import Path

import tensorflow as tf

from trainer.run import team
from trainer.run.links import meet
from trainer.runtime import named_cluster
from trainer.values import Interrupted, TrainerError

what, folder = sys.argv[1], Path(sys.argv[2])
# Of 20 s, so that a test does not take them.
team.SILENCE_SECS = 3.0
cluster = named_cluster()
ours = team.Joined(cluster, meet(cluster, facts={"the weather": "fine"}, limit_secs=60))
if what == "checkpoint":
    ours.stands = lambda: 1234
own = folder / str(cluster.index)
with ours.leaving():
    print("agreed", ours.agree("a number", cluster.index + 0.1))
    print("exchanged", ours.exchange("all numbers", cluster.index))
    print("clock", ours.clock())
    ours.share(own)
    print(
        "shared", [(str(p.relative_to(own)), p.stat().st_size) for p in sorted(own.rglob("*")) if p.is_file()]
    )
    sys.stdout.flush()
    if cluster.index == 1 and what in ("dies", "checkpoint"):
        os._exit(3)
    if cluster.index == 1 and what == "hangs":
        os.kill(os.getpid(), signal.SIGSTOP)
    if cluster.index == 1 and what == "fails":
        raise TrainerError("its disk is full")
    if cluster.index == 1 and what == "is stopped":
        raise Interrupted("SIGTERM: stopped")
    if cluster.index == 1 and what.endswith("late"):
        # The others are done, and wait for this one.
        time.sleep(1.0)
        if what == "hangs late":
            os.kill(os.getpid(), signal.SIGSTOP)
        if what == "dies late":
            os._exit(3)
        raise TrainerError("its disk is full")
    if what == "apart":
        ours.agree(f"what {cluster.index} wants", 0)
    if what == "hangs":
        # As TensorFlow notices it, some seconds before, and as the run puts it into words.
        try:
            raise tf.errors.UnavailableError(None, None, "Collective ops is aborted by: Deadline Exceeded")
        except tf.errors.OpError:
            raise TrainerError("TensorFlow failed") from None
    if what != "parts" and not what.endswith("late"):
        time.sleep(120)  # In an operation that waits for the other one.
