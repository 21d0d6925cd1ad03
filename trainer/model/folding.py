"""Moves BatchNorm with stored statistics into the convolutions before it, in any traced network."""

import contextlib
import contextvars
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from trainer.model.graphs import FLOAT32, InferenceGraph, UnusualGraphError
from trainer.precision.call_options import rewriting

logger = logging.getLogger("trainer")

NORMS = {"FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3"}
CONVOLUTIONS = {"Conv2D", "DepthwiseConv2dNative"}
PROBE_PICTURES = 2
PROBE_SIDE_PX = 96  # Where the function leaves the size open.
TOLERANCE = 1e-4  # Of the largest feature.
_as_written = contextvars.ContextVar("_as_written", default=False)


@contextlib.contextmanager
def unfolded() -> Iterator[None]:
    """Networks that are traced in a block stay as they were written: for what folds them by itself.

    OpenVINO does, and cannot read depthwise kernels that are scaled in the graph.
    """
    token = _as_written.set(True)
    try:
        yield
    finally:
        _as_written.reset(token)


class Inference:
    """A network that uses stored statistics, folded when it is first traced, if that can be done."""

    def __init__(self, network: Callable[[tf.Tensor], tf.Tensor], *, shape: Sequence[int]) -> None:
        """Takes a function of images [B, *shape], or of what a part of a network makes of them.

        It is not called yet.
        """
        self._network = network
        self._shape = tuple(shape)
        self._folded: Callable[[tf.Tensor], tf.Tensor] | None = None
        self._is_tried = False

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        """Returns what the network does; unfolded outside of a tf.function, and on several replicas."""
        # Folding costs more than one call, and variables on several devices have a handle on each.
        if tf.executing_eagerly() or tf.distribute.has_strategy() or images.shape[1:] != self._shape:
            return self._network(images)
        if _as_written.get():
            return self._network(images)
        if not self._is_tried:
            self._is_tried = True
            self._folded = fold_batch_norm(self._trace())
        return (self._folded or self._network)(images)

    @tf.autograph.experimental.do_not_convert
    def _trace(self) -> Any:
        with tf.init_scope():
            spec = tf.TensorSpec([None, *self._shape], tf.float32)
            return tf.function(self._network, autograph=False).get_concrete_function(spec)


class _Pair(NamedTuple):
    """NodeDefs of a convolution and of the BatchNorm after it, and the bias between them, or ''."""

    conv: Any
    bias: str
    norm: Any


@tf.autograph.experimental.do_not_convert  # It may be called while a function is being traced.
def fold_batch_norm(function: Any) -> Callable[[tf.Tensor], tf.Tensor] | None:
    """Returns the same function of the same variables with BatchNorm inside kernels and biases.

    With stored statistics BatchNorm is a scale and a shift. These are computed in the graph from
    the variables: they may change, and kernel, gamma and beta get the gradients that they got
    before; the statistics get none. A BatchNorm that follows no convolution stays as it is.

    Args:
      function: a tf.types.experimental.ConcreteFunction from float32 images [B, H, W, 3] to one
        tensor, that uses stored statistics.

    Returns:
      A tf.function; None where there is no BatchNorm to fold, where the network holds something
      unusual (control flow, random numbers, tables), or where the two differ on random pictures.
    """
    try:
        with tf.init_scope():
            return _fold(function)
    except Exception as error:  # Networks are other people's: whatever they hold, the original works.
        logger.debug("BatchNorm stays as it is: %s", error)
        return None


def _fold(function: Any) -> Any:
    if not _has_norm(function.graph.as_graph_def()):
        raise UnusualGraphError("there is none")
    graph = InferenceGraph(function)
    pairs = [pair for node in graph.nodes.values() if (pair := _find_pair(node, graph))]
    if not pairs:
        raise UnusualGraphError("none uses stored statistics after a convolution of its own")
    for pair in pairs:
        fold_pair(pair, graph)
    images = function.inputs[0]
    # Imported operations are on no tape; a function of their own can be differentiated as a whole.
    folded = tf.function(
        graph.build, input_signature=[tf.TensorSpec(images.shape, images.dtype)], autograph=False
    )
    _compare(function, folded, images.shape)
    logger.debug("%d BatchNorms are folded into the convolutions before them", len(pairs))
    return folded


def _has_norm(graph: Any) -> bool:
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    return any(node.op in NORMS for node in nodes)


def _find_pair(norm: Any, graph: InferenceGraph) -> _Pair | None:
    """Returns the pair that a node ends, if it is the BatchNorm of one."""
    # Attributes that have their default value may be left out; that of is_training is true.
    if norm.op not in NORMS or "is_training" not in norm.attr or norm.attr["is_training"].b:
        return None
    if not _is_plain(norm) or any(graph.uses(f"{norm.name}:{output}") for output in range(1, 6)):
        return None
    before, bias = _only(norm.input[0], graph), ""
    if before is not None and before.op == "BiasAdd" and _is_plain(before):
        bias = before.input[1]
        before = _only(before.input[0], graph)
    if before is None or before.op not in CONVOLUTIONS or not _is_plain(before):
        return None
    parameters = [before.input[1], *norm.input[1:5], *([bias] if bias else [])]
    return _Pair(before, bias, norm) if all(map(graph.is_parameter, parameters)) else None


def _is_plain(node: Any) -> bool:
    """Returns whether it computes in float32 on [B, h, w, C]."""
    layout = node.attr["data_format"].s if "data_format" in node.attr else b"NHWC"
    return layout == b"NHWC" and node.attr["T"].type == tf.float32.as_datatype_enum


def _only(tensor: str, graph: InferenceGraph) -> Any:
    """Returns the node of a tensor that nothing else reads."""
    return graph.nodes.get(tensor) if graph.uses(tensor) == 1 else None


def fold_pair(pair: _Pair, graph: InferenceGraph) -> None:
    """Scales the kernel, and turns the BatchNorm into the adding of a bias."""
    conv, bias, norm = pair

    def add(name: str, operation: str, *inputs: str, **types: tf.DType) -> str:
        return graph.add(operation, *inputs, name=f"{norm.name}/folded/{name}", types=types or FLOAT32)

    def constant(name: str, value: float | list[int]) -> str:
        return graph.add_constant(value, name=f"{norm.name}/folded/{name}")

    gamma, beta, mean, variance = norm.input[1:5]
    # No gradient reaches the statistics through a BatchNorm, either.
    mean, variance = add("mean", "StopGradient", mean), add("variance", "StopGradient", variance)
    epsilon = constant("epsilon", norm.attr["epsilon"].f if "epsilon" in norm.attr else 1e-4)
    scale = add("scale", "Mul", gamma, add("rsqrt", "Rsqrt", add("sum", "AddV2", variance, epsilon)))
    centre = add("centre", "Sub", mean, bias) if bias else mean
    shift = add("shift", "Sub", beta, add("product", "Mul", centre, scale))
    if conv.op != "Conv2D":
        # A depthwise kernel is [h, w, C, M], and its outputs are in the order of [C, M].
        shape = add("shape", "Shape", conv.input[1])
        last = [constant("begin", [2]), constant("size", [2])]
        shape = add("last", "Slice", shape, *last, T=tf.int32, Index=tf.int32)
        scale = add("matrix", "Reshape", scale, shape)
    conv.input[1] = add("kernel", "Mul", conv.input[1], scale)
    graph.add("BiasAdd", conv.name, shift, name=norm.name)


def _compare(function: Any, folded: Any, shape: tf.TensorShape) -> None:
    """Raises UnusualGraphError when the two differ by more than rounding."""
    sides = [side or PROBE_SIDE_PX for side in shape[1:]]
    pictures = tf.random.stateless_uniform([PROBE_PICTURES, *sides], seed=[0, 0])
    with rewriting(_turn_off):
        expected, found = tf.nest.flatten(function(pictures))[0], folded(pictures)
    error = float(tf.reduce_max(tf.abs(found - expected)) / tf.reduce_max(tf.abs(expected)))
    logger.debug("folded and not, random pictures differ by %.1e of the largest feature", error)
    if not error <= TOLERANCE:
        raise UnusualGraphError(f"folded, features differ by {error:.1e} of the largest")


def _turn_off(options: Any) -> None:
    """Functions are computed as they were written: in float32, and at once."""
    options.disable_meta_optimizer = True
