"""A traced inference function as one flat graph, and the random numbers in it that no seed reaches."""

import functools
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import tensorflow as tf

from trainer.cli.phase_specs import PhaseSpec
from trainer.values import UsageError

logger = logging.getLogger("trainer")

# Each goes on from a state inside the process. Their seed, 0 for none, only says where that begins.
_WITH_SEED = {
    "Multinomial",
    "ParameterizedTruncatedNormal",
    "RandomCrop",
    "RandomGamma",
    "RandomPoisson",
    "RandomPoissonV2",
    "RandomShuffle",
    "RandomStandardNormal",
    "RandomUniform",
    "RandomUniformInt",
    "SampleDistortedBoundingBox",
    "SampleDistortedBoundingBoxV2",
    "TruncatedNormal",
}
# Those of tf.random.Generator, whose state is no variable of the network.
_OF_GENERATORS = {
    "NonDeterministicInts",
    "RngReadAndSkip",
    "RngSkip",
    "StatefulRandomBinomial",
    "StatefulStandardNormal",
    "StatefulStandardNormalV2",
    "StatefulTruncatedNormal",
    "StatefulUniform",
    "StatefulUniformFullInt",
    "StatefulUniformInt",
}


def stateful_random_ops(graph: tf.Graph) -> list[str]:
    """Returns the types, sorted, of the operations in a graph that draw from a state of their own.

    Functions that it calls, loops and branches are looked into, whether they run or not.
    """
    return sorted({node.op for node in _stateful_nodes(graph)})


def report_random_ops(graph: tf.Graph, spec: PhaseSpec, *, has_plugins: bool = False) -> None:
    """Warns of a phase with `stateful_random_ops`: their state is in no checkpoint.

    Args:
      graph: of the phase's update.
      spec: the phase.
      has_plugins: whether they may be of something that a plugin registers.

    Raises:
      UsageError: TensorFlow computes deterministically, as here on a GPU, and the operations that
        bn=batch switches on would fail for want of a seed.
    """
    nodes = list(_stateful_nodes(graph))
    if not nodes:
        return
    names = ", ".join(sorted({node.op for node in nodes}))
    who = "the network, or a plugin," if has_plugins else "the network"
    what = f"phase {spec.name}: {who} draws random numbers of its own ({names})"
    off = "bn=frozen in --phase" if spec.bn == "batch" else "another network with --backbone"
    if has_plugins:
        off += ", or a plugin that draws from the seed it is handed,"
    unseeded = any(
        node.op in _WITH_SEED and not (node.attr["seed"].i or node.attr["seed2"].i) for node in nodes
    )
    # With stored statistics they may be in a branch that never runs.
    if unseeded and spec.bn == "batch" and _is_deterministic():
        raise UsageError(f"{what} without a seed, which TensorFlow refuses on a GPU: use {off}")
    logger.warning(
        "%s: once stopped, the run goes on to other numbers than if it had not been; %s avoids that",
        what, off,
    )  # fmt: skip


def _is_deterministic() -> bool:
    """Returns whether TensorFlow refuses random operations without a seed, which it says to the first one."""
    with tf.Graph().as_default():
        try:
            tf.random.uniform([])
        except RuntimeError:
            return True
    return False


def _stateful_nodes(graph: tf.Graph) -> Iterator[Any]:
    """Yields the NodeDefs of stateful random operations in a graph and its function library."""
    definition = graph.as_graph_def()
    functions = (function.node_def for function in definition.library.function)
    for node in itertools.chain(definition.node, *functions):
        if node.op in _WITH_SEED or node.op in _OF_GENERATORS:
            yield node


CONTROL_FLOW = {"Switch", "Merge", "Enter", "Exit", "NextIteration", "LoopCond"}
CUSTOM_GRADIENT = "_gradient_op_type"
FLOAT32 = {"T": tf.float32}


class UnusualGraphError(Exception):
    """Says what keeps a network from being built again."""


class InferenceGraph:
    """A function from images to features, flat: calls are inlined, nodes that only pass on left out.

    `nodes`, {name: NodeDef}, may be edited before `build`. A tensor is called `node` or `node:output`.
    """

    def __init__(self, function: Any) -> None:
        """Reads a tf.types.experimental.ConcreteFunction and leaves it as it is.

        Raises:
          UnusualGraphError: it has more inputs or outputs, calls that cannot be inlined, control flow,
            or gradients of its own.
        """
        captures = function.graph.captures
        if len(function.inputs) != 1 + len(captures) or len(function.outputs) != 1:
            raise UnusualGraphError("it does not map one tensor to one tensor")
        inline = _inliner()
        if inline is None:
            raise UnusualGraphError("calls cannot be inlined")
        inlined = inline(function, lower_control_flow=False, aggressive_inlining=False)
        if inlined.library.function:
            raise UnusualGraphError(f"it calls {inlined.library.function[0].signature.name}")
        self._versions = inlined.versions
        self._images = function.inputs[0].op.name
        self._shape = function.outputs[0].shape
        everything = {node.name: node for node in inlined.node}
        for node in inlined.node:
            # Inputs such as "^name" order side effects, and `build` accepts none.
            _set_inputs(node, [name.removesuffix(":0") for name in node.input if name[0] != "^"])
        for node in inlined.node:
            _set_inputs(node, [_origin(name, everything) for name in node.input])
        self._output = _origin(function.outputs[0].op.name, everything)
        self.nodes = _reached(self._output, everything)
        for node in self.nodes.values():
            _unbind(node)
        self._uses = Counter(name for node in self.nodes.values() for name in node.input)
        self._uses[self._output] += 1
        variables = {id(v.handle): v for v in function.graph.variables}
        captured = {
            inner.op.name: variables[id(outer)] for outer, inner in captures if id(outer) in variables
        }
        self._readings = {
            node.name: captured[node.input[0]]
            for node in self.nodes.values()
            if node.op == "ReadVariableOp" and node.input[0] in captured
        }

    def uses(self, tensor: str) -> int:
        """Returns how many inputs a tensor feeds, as the function came; being the result counts as one."""
        return self._uses[tensor]

    def is_parameter(self, tensor: str) -> bool:
        """Returns whether it is the same for all images."""
        return self._images not in _reached(tensor, self.nodes)

    def add(self, operation: str, *inputs: str, name: str, types: Mapping[str, tf.DType] = FLOAT32) -> str:
        """Adds an operation, in place of one of that name, and returns the name of its result."""
        node = self.nodes[name] = tf.compat.v1.NodeDef(name=name, op=operation, input=inputs)
        for attribute, kind in types.items():
            node.attr[attribute].type = kind.as_datatype_enum
        return name

    def add_constant(self, value: float | list[int], *, name: str) -> str:
        """Adds a float32 number or a list of int32, and returns its name."""
        kind = tf.float32 if isinstance(value, float) else tf.int32
        self.add("Const", name=name, types={"dtype": kind})
        self.nodes[name].attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value, kind))
        return name

    def build(self, images: tf.Tensor) -> tf.Tensor:
        """Makes the nodes a part of the graph being traced, and returns the result for `images`.

        Raises:
          UnusualGraphError: a node may have side effects, or captures something else than variables.
        """
        variables = {id(v): v for v in self._readings.values()}
        values = {key: variable.value() for key, variable in variables.items()}
        feeds = {name: values[id(v)] for name, v in self._readings.items()}
        feeds[self._images] = images
        graph = tf.compat.v1.GraphDef(versions=self._versions)
        graph.node.extend(_reached(self._output, self.nodes, stop=feeds).values())
        open_ends = [node.name for node in graph.node if node.op == "Placeholder"]
        if open_ends:
            raise UnusualGraphError(f"it captures {open_ends[0]}, which is no variable")
        name, _, output = self._output.partition(":")
        [features] = tf.graph_util.import_graph_def(graph, feeds, [f"{name}:{output or 0}"], name="network")
        for operation in features.graph.get_operations():
            if operation.op_def.is_stateful and operation.type != "ReadVariableOp":
                raise UnusualGraphError(f"{operation.name} may have side effects")
        features.set_shape(self._shape)
        return features


@functools.cache
def _inliner() -> Callable[..., Any] | None:
    """Returns TensorFlow's own way to inline what a function calls, which has no public name.

    None where it is gone, which is said once: networks are then slower.
    """
    try:
        from tensorflow.python.framework.convert_to_constants import _run_inline_graph_optimization
    except ImportError:
        logger.warning(
            "BatchNorm is not folded into convolutions, which is slower: TensorFlow %s has no %s",
            tf.__version__,
            "_run_inline_graph_optimization",
        )
        return None
    return _run_inline_graph_optimization


def _set_inputs(node: Any, inputs: list[str]) -> None:
    node.ClearField("input")
    node.input.extend(inputs)


def _unbind(node: Any) -> None:
    """Drops what ties a node to a device or to other nodes.

    Raises:
      UnusualGraphError: it is control flow, or its gradient belongs to the graph it was traced in.
    """
    if node.op in CONTROL_FLOW:
        raise UnusualGraphError(f"{node.name} is control flow")
    if CUSTOM_GRADIENT in node.attr:
        raise UnusualGraphError(f"{node.name} has a gradient of its own")
    node.device = ""
    node.attr.pop("_class", None)


def _origin(tensor: str, nodes: Mapping[str, Any]) -> str:
    """Returns the tensor that reaches `tensor` unchanged."""
    name, _, output = tensor.partition(":")
    node = nodes[name]
    if node.op == "IdentityN" and (CUSTOM_GRADIENT not in node.attr or _is_swish(node, nodes)):
        return _origin(node.input[int(output or 0)], nodes)
    return _origin(node.input[0], nodes) if node.op == "Identity" else tensor


def _is_swish(node: Any, nodes: Mapping[str, Any]) -> bool:
    """Returns whether an IdentityN passes on x * sigmoid(x) or x * sigmoid(beta * x), then x.

    The gradient of tf.nn.silu saves memory; the operations under it have the same one.
    """

    def factors(tensor: str) -> list[str]:
        product = nodes[tensor]
        return [_origin(name, nodes) for name in product.input] if product.op == "Mul" else []

    result, x = (_origin(name, nodes) for name in node.input[:2])
    rest = [name for name in factors(result) if name != x]
    if len(rest) != 1 or nodes[rest[0]].op != "Sigmoid":
        return False
    argument = _origin(nodes[rest[0]].input[0], nodes)
    return argument == x or (x in factors(argument) and len(node.input) == 3)


def _reached(output: str, nodes: Mapping[str, Any], stop: Collection[str] = ()) -> dict[str, Any]:
    """Returns the nodes that a tensor needs, without those in `stop` and behind them."""
    found: dict[str, Any] = {}
    waiting = [output]
    while waiting:
        name = waiting.pop().partition(":")[0]
        if name not in found and name not in stop:
            found[name] = nodes[name]
            waiting += nodes[name].input
    return found
