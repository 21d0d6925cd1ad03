"""Where a backbone can be cut in two, so that the part below gives the same for a picture all phase long."""

import collections
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import tensorflow as tf
import tf_keras

from trainer.model.folding import Inference
from trainer.model.variable_names import lasting_layer_names

# Layers with less than this share of a network's multiply-adds are cheap to compute again.
CHEAP_SHARE = 0.05
# What crosses a shallower place must be smaller by this factor or more.
MIN_SHRINKING = 2
# Where no tensor is alone anywhere: each cell of NASNet takes what the two cells before it give.
MOST_TENSORS = 2


WHOLE = "features"
"""Name of the cut with all of the backbone below."""


@dataclass(frozen=True)
class Cut:
    """A place in a backbone below which nothing changes while a phase trains.

    `above(below(images), training=t, bn_batch=False)` are the features that the backbone gives.
    """

    name: str
    """'features' when all of the backbone is below, else the layer whose output crosses, or the two
    joined by a plus sign; it lasts from process to process."""
    shape: tuple[int, ...]
    """Of what crosses, without the batch: (D,) or (h, w, C). Two tensors are laid out in one (D,)."""
    variables: dict[str, tf.Variable]
    """What `below` depends on: a part of the backbone's variables, in their order."""
    below: Callable[[tf.Tensor], tf.Tensor]
    """images [B, H, W, 3] in the contract's range -> [B, *shape] float32, by stored statistics."""
    above: Callable[..., tf.Tensor]
    """above(x, training=bool, bn_batch=bool): [B, *shape] float32 -> features [B, D] float32."""


def whole_cut(
    backbone: Callable[..., tf.Tensor],
    trained: Collection[str],
    *,
    bn_batch: bool,
    feature_width: int,
    variables: Mapping[str, tf.Variable],
) -> Cut | None:
    """Returns the cut with all of a backbone below, or None when something in it changes.

    Args:
      backbone: as the Backbone protocol calls it.
      trained: names of its variables that train.
      bn_batch: whether its BatchNorm statistics move.
      feature_width: D.
      variables: all that it has.
    """
    if trained or bn_batch:
        return None

    def below(images: tf.Tensor) -> tf.Tensor:
        return tf.cast(backbone(images, training=False, bn_batch=False), tf.float32)

    def above(features: tf.Tensor, *, training: bool, bn_batch: bool) -> tf.Tensor:
        return features

    return Cut(WHOLE, (feature_width,), dict(variables), below, above)


class Node(NamedTuple):
    """A call of a layer. Tensors are symbolic, with a `shape` and a `dtype`, and told apart by id."""

    name: str
    """Of the layer; it lasts from process to process."""
    weights: Sequence[tf.Variable]
    inputs: Sequence[Any]
    outputs: Sequence[Any]


class Graph(Protocol):
    """A network as calls of layers, from one symbolic tensor to another."""

    nodes: Sequence[Node]
    """Those that give an input come before those that use it."""
    input: Any
    output: Any

    def part(self, start: Any, end: Any) -> Callable[..., Any]:
        """Returns a function (values of `start`, training=bool) -> values of `end`.

        Args:
          start: a symbolic tensor, or a list of them.
          end: a symbolic tensor, or a list of them; it depends on nothing but `start`.

        Raises:
          ValueError: such a function cannot be made.
        """
        ...


class KerasGraph:
    """A functional network of tf_keras; see `Graph`."""

    def __init__(self, network: tf_keras.Model) -> None:
        """Reads how the layers of a network are connected."""
        lasting = lasting_layer_names(network)
        self.input, self.output = network.input, network.output
        self.nodes: Sequence[Node] = [
            Node(
                lasting.get(node.layer.name, node.layer.name),
                node.layer.weights,
                node.keras_inputs,
                tf.nest.flatten(node.outputs),
            )
            for node in _nodes(network)
        ]

    def part(self, start: Any, end: Any) -> Callable[..., Any]:
        """See `Graph`."""
        return tf_keras.Model(start, end)


@dataclass(frozen=True, eq=False)  # Symbolic tensors cannot be compared.
class _Place:
    """The tensors through which all of a network goes, in most places one."""

    tensors: tuple[Any, ...]
    names: tuple[str, ...]
    """Of the layers that give them."""
    below: tuple[tf.Variable, ...]
    """The variables of the layers up to those."""
    multiply_adds: int
    """Of those layers, for one picture."""

    @property
    def crossing(self) -> Any:
        """The tensors, or the only one, as Keras makes a model of it."""
        return self.tensors[0] if len(self.tensors) == 1 else list(self.tensors)

    @property
    def size(self) -> int:
        return sum(self.sizes)

    @property
    def sizes(self) -> list[int]:
        return [math.prod(tensor.shape[1:]) for tensor in self.tensors]


def network_cut(
    network: Graph,
    trained: Collection[str],
    *,
    variables: Mapping[str, tf.Variable],
    preprocess: Callable[[tf.Tensor], tf.Tensor],
) -> Cut | None:
    """Returns where a functional network is best cut while some of its variables train.

    A place is a tensor that everything above depends on alone, so that it is cut before a branch,
    never in it. The deepest place with nothing trained below is taken. Of the shallower ones whose
    tensor is at most half as large, and from which the deepest can be had again for less than 5 % of
    the network's multiply-adds, the smallest is taken instead, and of equally small ones the deepest.
    Only if a network has no such place, those are looked at through which it goes in two tensors.

    Args:
      network: one input, images [B, H, W, 3] after `preprocess`; one output, features [B, D].
      trained: names of the variables that train; the statistics of BatchNorm stay.
      variables: {name: variable} of the network.
      preprocess: what comes before the network; it is part of what is below.

    Returns:
      The cut; None when less than 5 % of the multiply-adds are below the deepest place.
    """
    cheap = CHEAP_SHARE * sum(map(_multiply_adds, network.nodes))
    all_places = list(_places(network, {id(variables[name]) for name in trained}, cheap=cheap))
    for count in range(1, MOST_TENSORS + 1):
        places = [place for place in all_places if len(place.tensors) == count]
        while places:
            place = _choose(places, cheap=cheap)
            try:
                lower = network.part(network.input, place.crossing)
                upper = network.part(place.crossing, network.output)
            except ValueError:  # tf_keras cannot start a model there.
                places.remove(place)
                continue
            image_shape = tuple(network.input.shape[1:])
            return _joined(
                place, lower, upper, variables=variables, preprocess=preprocess, image_shape=image_shape
            )
    return None


def why_no_cut(network: Graph, trained: Collection[str], *, variables: Mapping[str, tf.Variable]) -> str:
    """Returns why `network_cut` finds nothing, to be read after the name of the phase."""
    trained_ids = {id(variables[name]) for name in trained}
    changing: set[int] = set()
    total = unchanged = 0
    for node in network.nodes:
        trains = any(id(weight) in trained_ids for weight in node.weights)
        if trains or any(id(tensor) in changing for tensor in node.inputs):
            changing.update(map(id, node.outputs))
        else:
            unchanged += _multiply_adds(node)
        total += _multiply_adds(node)
    if unchanged < CHEAP_SHARE * total:
        return "trains the network from its first layers on"
    return (
        f"trains upper layers only, but below them the network goes through more than {MOST_TENSORS} tensors "
        "at once everywhere, so there is no place to cut it"
    )


def _joined(
    place: _Place,
    lower: Callable[..., Any],
    upper: Callable[..., Any],
    *,
    variables: Mapping[str, tf.Variable],
    preprocess: Callable[[tf.Tensor], tf.Tensor],
    image_shape: Sequence[int],
) -> Cut:
    ids = set(map(id, place.below))
    alone = len(place.tensors) == 1
    shape = tuple(place.tensors[0].shape[1:]) if alone else (place.size,)

    def lay_out(tensors: Any) -> tf.Tensor:
        """Returns what crosses as one tensor."""
        flat = [tf.reshape(x, [-1, size]) for x, size in zip(tensors, place.sizes, strict=True)]
        return tf.concat(flat, axis=1)

    def take_apart(x: tf.Tensor) -> list[tf.Tensor]:
        parts = zip(tf.split(x, place.sizes, axis=1), place.tensors, strict=True)
        return [tf.reshape(part, [-1, *tensor.shape[1:]]) for part, tensor in parts]

    def run_below(images: tf.Tensor) -> tf.Tensor:
        crossing = lower(preprocess(images), training=False)
        return crossing if alone else lay_out(crossing)

    def run_above(x: tf.Tensor, *, training: bool) -> tf.Tensor:
        return upper(x if alone else take_apart(x), training=training)

    below = Inference(run_below, shape=image_shape)
    infer = Inference(lambda x: run_above(x, training=False), shape=shape)

    def above(x: tf.Tensor, *, training: bool, bn_batch: bool) -> tf.Tensor:
        return run_above(x, training=True) if training and bn_batch else infer(x)

    return Cut(
        "+".join(place.names),
        shape,
        {name: variable for name, variable in variables.items() if id(variable) in ids},
        below,
        above,
    )


def _choose(places: list[_Place], *, cheap: float) -> _Place:
    deepest = places[-1]
    smaller = [
        place
        for place in reversed(places)
        if place.size * MIN_SHRINKING <= deepest.size and deepest.multiply_adds - place.multiply_adds < cheap
    ]
    return min(smaller, key=lambda place: place.size, default=deepest)


def _places(network: Graph, trained_ids: Collection[int], *, cheap: float) -> Iterator[_Place]:
    """Yields the places below all that trains, from shallow to deep, with `cheap` or more below them.

    In any order in which inputs come before what uses them, all that does not depend on such a
    tensor comes before it. So one pass finds them: those that are alone in waiting to be used. Of places
    of two tensors, it finds those that the order passes.
    """
    uses = collections.Counter(id(tensor) for node in network.nodes for tensor in node.inputs)
    uses[id(network.output)] += 1
    waiting: dict[int, tuple[Any, str]] = {}
    below: list[tf.Variable] = []
    multiply_adds = 0
    for node in network.nodes:
        if any(id(weight) in trained_ids for weight in node.weights):
            return
        for tensor in node.inputs:
            uses[id(tensor)] -= 1
            if not uses[id(tensor)]:
                del waiting[id(tensor)]
        waiting.update({id(t): (t, node.name) for t in node.outputs if uses[id(t)]})
        below += node.weights
        multiply_adds += _multiply_adds(node)
        if len(waiting) <= MOST_TENSORS and multiply_adds >= cheap:
            tensors, names = zip(*waiting.values(), strict=True)
            if all(_can_be_kept(tensor) for tensor in tensors):
                yield _Place(tensors, names, tuple(below), multiply_adds)


def _can_be_kept(tensor: Any) -> bool:
    return tf.as_dtype(tensor.dtype) == tf.float32 and tf.TensorShape(tensor.shape)[1:].is_fully_defined()


def _nodes(network: tf_keras.Model) -> list[Any]:
    """Returns the calls of layers that make up a network, inputs before what uses them."""
    found: list[Any] = []
    seen: set[int] = set()
    waiting = [(tensor.node, False) for tensor in network.outputs]
    while waiting:
        node, is_fed = waiting.pop()
        if is_fed:
            found.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            waiting += [(node, True), *((parent, False) for parent in node.parent_nodes)]
    return found


def _multiply_adds(node: Node) -> int:
    """Returns the multiply-adds of a convolution or dense layer for one picture; 0 for others.

    Each weight of a kernel, whatever its order of axes, is used once at each place of the output.
    """
    positions = math.prod(side or 1 for side in node.outputs[0].shape[1:-1])
    return positions * sum(math.prod(w.shape) for w in node.weights if len(w.shape) > 1)
