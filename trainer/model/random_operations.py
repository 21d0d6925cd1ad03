"""Random numbers in a traced graph that no seed of the run reaches."""

import itertools
import logging
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from trainer.phase_specs import PhaseSpec
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


def report_random_ops(graph: tf.Graph, spec: PhaseSpec) -> None:
    """Warns of a phase with `stateful_random_ops`: their state is in no checkpoint.

    Args:
      graph: of the phase's update.
      spec: the phase.

    Raises:
      UsageError: TensorFlow computes deterministically, as here on a GPU, and the operations that
        bn=batch switches on would fail for want of a seed.
    """
    nodes = list(_stateful_nodes(graph))
    if not nodes:
        return
    names = ", ".join(sorted({node.op for node in nodes}))
    what = f"phase {spec.name}: the network draws random numbers of its own ({names})"
    off = "bn=frozen in --phase" if spec.bn == "batch" else "another network with --backbone"
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
