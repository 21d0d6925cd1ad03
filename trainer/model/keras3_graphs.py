"""Functional networks of Keras 3 as calls of layers that can be cut, frozen by layer, and resumed exactly."""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from trainer.model.cuts import Node
from trainer.model.layers import Layer
from trainer.model.variable_names import unique_names

# Layers that are nothing but other layers one after another; those are shown, and cut between.
CHAINS = {"ViTEncoder", "DINOV2Encoder", "DINOV3Encoder", "SwinTransformerStage"}
# Layers whose output depends on the size of the images alone.
OF_SIZE = {"DINOV3RopePositionEmbedding"}
# Of DINOv2 and v3: what stands for hidden patches in their own training, and the positions of another size.
UNUSED = ("embeddings/mask_token", "embeddings/position_embeddings")


class Keras3Graph:
    """A functional network of Keras 3, with the layers inside `CHAINS` shown; see `cuts.Graph`.

    Where Keras would make a network of a part, which asks for names that differ, calls are made one by one.
    """

    def __init__(self, keras: Any, network: Any) -> None:
        """Reads how the layers of a network are connected.

        Args:
          keras: Keras 3.
          network: from one symbolic tensor [None, H, W, 3] of fixed size to one.
        """
        self._keras = keras
        [images] = network.inputs
        names = lasting_names(network)
        self.input = keras.KerasTensor(images.shape, images.dtype, name="images")
        values = {id(images): self.input}
        expand = functools.partial(_expanded, _first_output(keras))
        _run(_calls(network.outputs, until={id(images)}), values, expand)
        self.output = values[id(network.outputs[0])]
        self.nodes: Sequence[Node] = [
            Node("images", (), (), (self.input,)),
            *(
                Node(
                    names.get(id(_meant(call.operation)), call.operation.name),
                    [weight.value for weight in getattr(call.operation, "weights", [])],
                    call.input_tensors,
                    call.outputs,
                )
                for call in _calls([self.output], until={id(self.input)})
            ),
        ]

    def part(self, start: Any, end: Any) -> Callable[..., Any]:
        """See `cuts.Graph`."""
        starts, ends = _listed(start), _listed(end)
        calls = _calls(ends, until=set(map(id, starts)))

        def compute(inputs: Any, *, training: bool) -> Any:
            values = dict(zip(map(id, starts), _listed(inputs), strict=True))
            _run(calls, values, _in_the_way_of_the_part)
            found = [values[id(tensor)] for tensor in ends]
            return found if isinstance(end, list) else found[0]

        return _in_context(self._keras, compute)

    def layers(self, variables: Mapping[str, tf.Variable]) -> tuple[Layer, ...]:
        """Returns the layers in order of depth, named as in a fresh process.

        Args:
          variables: {name: variable}.
        """
        names = {id(variable): name for name, variable in variables.items()}
        found: dict[str, tuple[str, ...]] = {}
        for node in self.nodes:
            found[node.name] = tuple(names[id(w)] for w in node.weights if id(w) in names)
        return tuple(Layer(name, weights) for name, weights in found.items())


def _listed(tensors: Any) -> list[Any]:
    return list(tensors) if isinstance(tensors, list | tuple) else [tensors]


def _calls(ends: Sequence[Any], *, until: set[int]) -> list[Any]:
    """Returns Keras's nodes between symbolic tensors, those that give an input before those that use it.

    Args:
      ends: what is to be computed.
      until: ids of the tensors that are given.

    Raises:
      ValueError: the ends depend on something else, too.
    """
    found: list[Any] = []
    seen: set[int] = set()
    waiting = [(tensor, False) for tensor in reversed(ends)]
    while waiting:
        tensor, is_fed = waiting.pop()
        if id(tensor) in until:
            continue
        history = getattr(tensor, "_keras_history", None)
        if history is None:
            raise ValueError(f"{tensor.name} is not computed from what is given")
        node = history.operation._inbound_nodes[history.node_index]
        if is_fed:
            found.append(node)
        elif id(node) not in seen:
            if node.is_input:
                raise ValueError(f"{tensor.name} is an input")
            seen.add(id(node))
            waiting += [(tensor, True), *((one, False) for one in reversed(node.input_tensors))]
    return found


def _run(calls: Sequence[Any], values: dict[int, Any], call: Callable[..., Any]) -> None:
    """Adds to the values of tensors, by their ids, those that the calls give."""
    for node in calls:
        args, kwargs = node.arguments.fill_in(values)
        outputs = tf.nest.flatten(call(node.operation, *args, **kwargs))
        # As Keras has them: dicts by sorted keys.
        values.update((id(tensor), value) for tensor, value in zip(node.outputs, outputs, strict=False))


def _in_the_way_of_the_part(operation: Any, *args: Any, **kwargs: Any) -> Any:
    # The graph has recorded `training` as it was while it was made.
    kwargs.pop("training", None)
    return operation(*args, **kwargs)


def _expanded(first: Any, operation: Any, *args: Any, **kwargs: Any) -> Any:
    """Calls an operation on symbolic tensors, so that the layers inside of chains show.

    `first` makes a layer with the first output alone of one that has several.
    """
    kind = type(operation).__name__
    if kind in CHAINS:
        return operation.call(*args, **kwargs)
    if kind == "DeiTEncoder":
        # Its blocks give None for the attention that nobody asked for, and None is no symbolic tensor.
        x = args[0]
        for block in operation.encoder_layers:
            x = first(block)(x)
        return operation.layer_norm(x)
    if kind in OF_SIZE:
        with tf.init_scope():
            return operation(*(tf.zeros([1, *tensor.shape[1:]]) for tensor in args))
    return operation(*args, **kwargs)


def _first_output(keras: Any) -> Any:
    class FirstOutput(keras.layers.Layer):
        def __init__(self, meant: Any) -> None:
            super().__init__(dtype="float32")
            self.meant = meant

        def call(self, x: Any) -> Any:
            return self.meant(x)[0]

    return FirstOutput


def _meant(operation: Any) -> Any:
    """Returns the layer of the network that an operation is."""
    return getattr(operation, "meant", operation)


def _in_context(keras: Any, compute: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function as a layer, by whose `training` those that it calls go."""

    class Part(keras.layers.Layer):
        def call(self, inputs: Any, training: bool = False) -> Any:
            return compute(inputs, training=training)

    return Part(dtype="float32", autocast=False)


def named_variables(network: Any) -> dict[str, tf.Variable]:
    """Returns {path without the number of the process: variable} of a network, in Keras's order.

    What features do not depend on is left out: `UNUSED`, and whole numbers such as the positions of tokens,
    which are constants of a class.
    """
    own = _own_names(network)
    weights = [weight for weight in network.weights if tf.as_dtype(weight.dtype).is_floating]
    names = ["/".join(own.get(part, part) for part in weight.path.split("/")) for weight in weights]
    named = unique_names([weight.value for weight in weights], names=names)
    return {name: variable for name, variable in named.items() if not name.endswith(UNUSED)}


def _own_names(network: Any) -> dict[str, str]:
    """Returns {name of a layer: its name in a fresh process} where the two differ.

    Keras numbers layers without a name of their own through the whole process: `dense_3` of a second network
    is `dense` in the first. What keras-hub puts before names is what a network is called.
    """
    layers = network._flatten_layers(include_self=False)
    automatic = {layer.name: found for layer in layers if (found := _automatic(layer))}
    for weight in network.weights:
        own = weight.path.rpartition("/")[2]
        if match := re.fullmatch(r"variable(?:_(\d+))?", own):
            automatic[own] = ("variable", int(match[1] or 0))
    first: dict[str, int] = {}
    for base, number in automatic.values():
        first[base] = min(number, first.get(base, number))
    names = {name: _numbered(base, number - first[base]) for name, (base, number) in automatic.items()}
    prefix = f"{network.name}_"
    prefixed = [layer.name for layer in layers if layer.name.startswith(prefix)]
    return {**names, **{name: name.removeprefix(prefix) for name in prefixed}}


def _numbered(base: str, number: int) -> str:
    return f"{base}_{number}" if number else base


def _automatic(layer: Any) -> tuple[str, int] | None:
    """Returns what Keras calls a layer of its class, and the number; None where it has a name of its own."""
    base = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", type(layer).__name__)
    base = re.sub("([a-z])([A-Z])", r"\1_\2", base).lower()
    match = re.fullmatch(rf"{re.escape(base)}(?:_(\d+))?", layer.name)
    return (base, int(match[1] or 0)) if match else None


def lasting_names(network: Any) -> dict[int, str]:
    """Returns {id of a layer or operation: its path in a fresh process} of all in a network."""
    own = _own_names(network)
    named: dict[int, str] = {}

    def name(layer: Any, prefix: str) -> None:
        if id(layer) in named:
            return
        named[id(layer)] = prefix + own.get(layer.name, layer.name)
        for part in getattr(layer, "_layers", []):
            name(part, f"{named[id(layer)]}/")

    for operation in network.operations:
        name(operation, "")
    return named
