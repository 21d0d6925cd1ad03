"""Where a backbone can be cut in two, so that the part below gives the same for a picture all phase long."""

import collections
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True, eq=False)  # Symbolic tensors cannot be compared.
class _Place:
    """The tensors through which all of a network goes, in most places one."""

    tensors: tuple[Any, ...]
    below: tuple[Any, ...]
    """The layers up to those that give the tensors."""
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
    network: tf_keras.Model,
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
    cheap = CHEAP_SHARE * sum(map(_multiply_adds, _nodes(network)))
    all_places = list(_places(network, {id(variables[name]) for name in trained}, cheap=cheap))
    for count in range(1, MOST_TENSORS + 1):
        places = [place for place in all_places if len(place.tensors) == count]
        while places:
            place = _choose(places, cheap=cheap)
            try:
                lower = tf_keras.Model(network.input, place.crossing)
                upper = tf_keras.Model(place.crossing, network.output)
            except ValueError:  # tf_keras cannot start a model there.
                places.remove(place)
                continue
            return _joined(network, place, lower, upper, variables=variables, preprocess=preprocess)
    return None


def why_no_cut(
    network: tf_keras.Model, trained: Collection[str], *, variables: Mapping[str, tf.Variable]
) -> str:
    """Returns why `network_cut` finds nothing, to be read after the name of the phase."""
    trained_ids = {id(variables[name]) for name in trained}
    changing: set[int] = set()
    total = unchanged = 0
    for node in _nodes(network):
        trains = any(id(weight) in trained_ids for weight in node.layer.weights)
        if trains or any(id(tensor) in changing for tensor in node.keras_inputs):
            changing.update(map(id, tf.nest.flatten(node.outputs)))
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
    network: tf_keras.Model,
    place: _Place,
    lower: tf_keras.Model,
    upper: tf_keras.Model,
    *,
    variables: Mapping[str, tf.Variable],
    preprocess: Callable[[tf.Tensor], tf.Tensor],
) -> Cut:
    names = [tensor.node.layer.name for tensor in place.tensors]
    ids = {id(weight) for layer in place.below for weight in layer.weights}
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

    below = Inference(run_below, shape=network.input.shape[1:])
    infer = Inference(lambda x: run_above(x, training=False), shape=shape)

    def above(x: tf.Tensor, *, training: bool, bn_batch: bool) -> tf.Tensor:
        return run_above(x, training=True) if training and bn_batch else infer(x)

    lasting = lasting_layer_names(network)
    return Cut(
        "+".join(lasting.get(name, name) for name in names),
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


def _places(network: tf_keras.Model, trained_ids: Collection[int], *, cheap: float) -> Iterator[_Place]:
    """Yields the places below all that trains, from shallow to deep, with `cheap` or more below them.

    In any order in which inputs come before what uses them, all that does not depend on such a
    tensor comes before it. So one pass finds them: those that are alone in waiting to be used. Of places
    of two tensors, it finds those that the order passes.
    """
    nodes = _nodes(network)
    uses = collections.Counter(id(tensor) for node in nodes for tensor in node.keras_inputs)
    uses.update(map(id, network.outputs))
    waiting: dict[int, Any] = {}
    below: list[Any] = []
    multiply_adds = 0
    for node in nodes:
        if any(id(weight) in trained_ids for weight in node.layer.weights):
            return
        for tensor in node.keras_inputs:
            uses[id(tensor)] -= 1
            if not uses[id(tensor)]:
                del waiting[id(tensor)]
        waiting.update({id(t): t for t in tf.nest.flatten(node.outputs) if uses[id(t)]})
        below.append(node.layer)
        multiply_adds += _multiply_adds(node)
        if len(waiting) <= MOST_TENSORS and multiply_adds >= cheap:
            tensors = tuple(waiting.values())
            if all(t.dtype == tf.float32 and t.shape[1:].is_fully_defined() for t in tensors):
                yield _Place(tensors, tuple(below), multiply_adds)


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


def _multiply_adds(node: Any) -> int:
    """Returns the multiply-adds of a convolution or dense layer for one picture; 0 for others.

    Each weight of a kernel, whatever its order of axes, is used once at each place of the output.
    """
    output = tf.nest.flatten(node.outputs)[0]
    positions = math.prod(side or 1 for side in output.shape[1:-1])
    return positions * sum(math.prod(w.shape) for w in node.layer.weights if len(w.shape) > 1)
