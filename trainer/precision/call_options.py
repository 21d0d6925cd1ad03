"""How TensorFlow optimizes what one thread calls: options that no other thread sees.

The public `tf.config.optimizer.set_experimental_options` sets them for the process: a thread that calls its
first function meanwhile keeps them for good.
"""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any

_log = logging.getLogger("trainer")


@functools.cache
def _warn(reason: str) -> None:
    _log.warning("this TensorFlow computes in float32 only: it has no options of threads (%s)", reason)


@contextlib.contextmanager
def rewriting(change: Callable[[Any], None]) -> Iterator[None]:
    """Has functions that this thread calls from Python in a block be optimized in another way.

    What they compute is optimized once for each combination of options, and kept. It takes some 10 us.

    Args:
      change: is given the RewriterConfig in force, a protocol buffer, and sets what is to be another.

    Where TensorFlow has no options of threads any more, nothing is changed, which is said once.
    """
    try:
        from tensorflow.core.protobuf import config_pb2
        from tensorflow.python.eager import context  # There is no public way to options of a thread.

        here = context.context()
        before = here.function_call_options
    except (ImportError, AttributeError) as error:
        _warn(str(error))
        yield
        return
    config = config_pb2.ConfigProto.FromString(before.config_proto_serialized)
    change(config.graph_options.rewrite_options)
    here.function_call_options = context.FunctionCallOptions(before.executor_type, config)
    try:
        yield
    finally:
        here.function_call_options = before
