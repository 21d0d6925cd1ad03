"""Arithmetic in 16 bits by TensorFlow's graph rewriter, the same way for any network.

The rewriter (tensorflow/core/grappler/optimizers/auto_mixed_precision.cc) casts the inputs of
convolutions, matrix products and what lies between them, and casts back behind them. Variables stay
float32, and so does what a function returns.
"""

import contextlib
import functools
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

from trainer.precision.call_options import rewriting
from trainer.values import PRECISIONS, UsageError

_OPTION_OF = {
    # Converts what is placed on a CPU, never what is on a GPU.
    "bfloat16": "auto_mixed_precision_onednn_bfloat16",
    # Converts what is on a GPU from compute capability 7.0, and on a CPU with AMX-FP16 or
    # AVX-NE-CONVERT. The option auto_mixed_precision_cpu only imitates float16, in float32.
    "float16": "auto_mixed_precision",
}
_OPTIONS = (*_OPTION_OF.values(), "auto_mixed_precision_mkl")  # The last: an older name of the first.
_fresh_min_nodes = itertools.count(-1, -1)

LEFT_OUT = ("DepthwiseConv2dNativeBackpropFilter", "DepthwiseConv2dNativeBackpropInput")
"""What stays float32 where all else is bfloat16: oneDNN's kernels for these take four and six times as long
in 16 bits (TensorFlow 2.21, two cores with AVX512-bf16)."""
# Read whenever a function is optimized; there is no option of it.
_LEFT_OUT_VARIABLE = "TF_AUTO_MIXED_PRECISION_GRAPH_REWRITE_ALLOWLIST_REMOVE"
# A process that one of ours has started inherits what is set below.
_is_the_users = os.environ.get(_LEFT_OUT_VARIABLE, "") not in ("", ",".join(LEFT_OUT))
_left_out: ContextVar[Sequence[str]] = ContextVar("left_out", default=LEFT_OUT)


def left_out() -> list[str]:
    """Returns the operations that stay float32 in functions that this thread calls in bfloat16."""
    return list(_left_out.get())


@contextlib.contextmanager
def leaving_out(operations: Sequence[str]) -> Iterator[None]:
    """Has functions of this thread that are optimized in a block keep other operations in float32.

    The list is of the process: where two threads with different ones call a function for the first time at
    the same moment, one of them may get the other's, which rounds otherwise.

    Args:
      operations: instead of `LEFT_OUT`. None, for runs that began when there was no such list.
    """
    token = _left_out.set(tuple(operations))
    try:
        yield
    finally:
        _left_out.reset(token)


@contextlib.contextmanager
def arithmetic(precision: str) -> Iterator[None]:
    """Has tf.functions called in a block compute in `precision`, whatever they were called in before.

    What counts are the options when a function is called from Python, not when it is traced: each
    combination is optimized once and kept. A function that is called inside another one computes as
    that one does. Other threads are not concerned.

    Args:
      precision: one of PRECISIONS. Other options of the rewriter stay as they are.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"{precision!r} is none of {', '.join(PRECISIONS)}")

    def change(options: Any) -> None:
        for option in _OPTIONS:
            # Cleared and not off: to TensorFlow an option that is off differs from one that is not set, and
            # every function would be optimized once more.
            options.ClearField(option)
        if precision in _OPTION_OF:
            setattr(options, _OPTION_OF[precision], options.ON)

    if precision in _OPTION_OF and not _is_the_users:
        os.environ[_LEFT_OUT_VARIABLE] = ",".join(_left_out.get()) if precision == "bfloat16" else ""
    with rewriting(change):
        yield


def in_precision(function: Callable[..., Any], precision: str) -> Callable[..., Any]:
    """Returns `function` so that every call of it computes in `precision`; see `arithmetic`.

    Args:
      function: a tf.function, or anything that calls some; it is `__wrapped__` of the result.
      precision: one of PRECISIONS.
    """

    # Not what it keeps in __dict__: a tf.function keeps its traces there.
    @functools.wraps(function, updated=())
    def call(*args: Any, **kwargs: Any) -> Any:
        with arithmetic(precision):
            return function(*args, **kwargs)

    return call


def apart(function: Callable[..., Any], *args: Any) -> Any:
    """Calls a part of another tf.function that stays float32, whatever that one is called in.

    The rewriter goes by what it finds in a graph, and would take the products of a head and the softmax of a
    loss as well. What is called here is not written into the graph around it: it is optimized by itself, by
    the options in force when the call is traced. The same holds for its gradients, so whoever takes them does
    so under `arithmetic("float32")`.

    Args:
      function: in TensorFlow's own operations.
      *args: what to call it with; tensors, or None.
    """
    import tensorflow as tf

    with arithmetic("float32"):
        if tf.executing_eagerly():
            return function(*args)
        # A new one in each graph: it may capture tensors of the graph around it.
        return tf.function(function, autograph=False, experimental_attributes={"_noinline": True})(*args)


def was_rewritten(function: Callable[..., Any], *args: Any, precision: str) -> bool:
    """Calls a function in `precision` and returns whether the graph that ran has casts of the rewriter.

    Functions inside it, loops and calls into a SavedModel are looked into. A loop need not run: its
    body is in the graph anyway. The call is made a second time if the first one shows no casts,
    since TensorFlow shows a graph only when it optimizes it: once in each arithmetic.

    Args:
      function: a tf.function, or anything that calls some.
      *args: what to call it with.
      precision: one of PRECISIONS; in float32 the answer is False, and nothing is called.
    """
    if precision == "float32":
        return False
    with arithmetic(precision):
        if _shows_casts(function, args, precision):
            return True

        # Below 0 the number means "however small"; one not used before makes TensorFlow optimize again.
        def change(options: Any) -> None:
            options.min_graph_nodes = next(_fresh_min_nodes)

        with rewriting(change):
            return _shows_casts(function, args, precision)


def _shows_casts(function: Callable[..., Any], args: tuple[Any, ...], precision: str) -> bool:
    """Calls a function; returns whether there are casts in a graph that was optimized for that."""
    return any(_count_casts(graph, precision) for graph in _optimized_graphs(function, args))


def _optimized_graphs(function: Callable[..., Any], args: tuple[Any, ...]) -> list[Any]:
    """Calls a function; returns the GraphDefs of all that was optimized for that."""
    try:
        # tf.summary.trace_off of TensorFlow 2.21 leaves the collecting on, and all later graphs are kept.
        from tensorflow.python.eager.context import collect_graphs
    except ImportError:
        return _exported_graphs(function, args)
    with collect_graphs(optimized=True) as graphs:
        function(*args)
    return graphs


def _exported_graphs(function: Callable[..., Any], args: tuple[Any, ...]) -> list[Any]:
    """Does as `_optimized_graphs` does, by public names alone."""
    import tensorflow as tf

    # They are only given out as an event, and events only as a file.
    with tempfile.TemporaryDirectory() as folder:
        writer = tf.summary.create_file_writer(folder)
        tf.summary.trace_on(graph=True, profiler=False)
        try:
            function(*args)
            with writer.as_default():
                tf.summary.trace_export("graphs", step=0)
        finally:
            tf.summary.trace_off()
            writer.close()
        [file] = os.listdir(folder)
        events = list(tf.compat.v1.train.summary_iterator(os.path.join(folder, file)))
    values = [value for event in events for value in event.summary.value]
    traces = [tf.compat.v1.RunMetadata.FromString(tf.make_ndarray(value.tensor).item()) for value in values]
    return [graphs.post_optimization_graph for trace in traces for graphs in trace.function_graphs]


def _count_casts(graph: Any, precision: str) -> int:
    """Returns how many casts to `precision` the rewriter put into a GraphDef and its functions."""
    import tensorflow as tf

    kind = tf.dtypes.as_dtype(precision).as_datatype_enum
    nodes = itertools.chain(graph.node, *(function.node_def for function in graph.library.function))
    casts = [node.name for node in nodes if node.op == "Cast" and node.attr["DstT"].type == kind]
    # A network may have casts of its own; those of the rewriter bear its name.
    return sum("AutoMixedPrecision" in name for name in casts)


@functools.cache
def supported() -> tuple[str, ...]:
    """Returns those of PRECISIONS that this machine computes in, float32 first.

    Found by trying, once a process, where TensorFlow places operations by default: the GPU if there is one.
    """
    return tuple(p for p in PRECISIONS if p == "float32" or takes_effect(p))


def takes_effect(precision: str) -> bool:
    """Returns whether the rewriter changes a small network here, and what comes out can be computed."""
    import tensorflow as tf

    try:
        images, kernel, matrix = tf.ones([2, 8, 8, 8]), tf.ones([3, 3, 8, 8]), tf.ones([8, 8])
        return was_rewritten(tf.function(small_network), images, kernel, matrix, precision=precision)
    except tf.errors.OpError:
        return False  # Converted, but without a kernel that could compute it.


def small_network(images: Any, kernel: Any, matrix: Any) -> Any:
    """A convolution and a product of matrices, what 16 bits pay for."""
    import tensorflow as tf

    maps = tf.nn.relu(tf.nn.conv2d(images, kernel, strides=1, padding="SAME"))
    return tf.matmul(tf.reduce_mean(maps, [1, 2]), matrix)


def require_supported(precision: str) -> None:
    """Checks that this machine computes in `precision`.

    Raises:
      UsageError: it does not.
    """
    if precision != "float32" and precision not in supported():
        raise UsageError(_no_effect(precision, f"here it does {' and '.join(supported())}"))


def require_rewritten(function: Callable[..., Any], *args: Any, precision: str) -> None:
    """Calls a function as `was_rewritten` does; in float32 it does nothing.

    Raises:
      UsageError: it computed in float32 all the same.
    """
    require_supported(precision)
    if precision != "float32" and not was_rewritten(function, *args, precision=precision):
        raise UsageError(_no_effect(precision, "it found nothing in this network that it could convert"))


def _no_effect(precision: str, why: str) -> str:
    return (
        f"--precision={precision} has no effect on this machine: TensorFlow's rewriter leaves the graph as "
        f"it is ({why}): use --precision=float32 or --precision=auto"
    )
