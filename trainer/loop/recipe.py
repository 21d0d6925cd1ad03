"""What the updates of a run do, whatever the phase."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from trainer.loop.gradient_rules import GradientRule, plain
from trainer.loop.limits import Limit
from trainer.loop.losses import PLAIN_LOSS
from trainer.loop.metrics import Metric, accuracy
from trainer.loop.objectives import Objective, supervised


@dataclass(frozen=True)
class Recipe:
    """Made once, from the options."""

    objective: Objective = field(default_factory=lambda: supervised(loss=PLAIN_LOSS))
    """What an update makes smaller."""
    metrics: Mapping[str, Metric] = field(default_factory=lambda: {"accuracy": accuracy()})
    """{name: what is measured of the examples besides the loss}."""
    gradient_rule: GradientRule = field(default_factory=plain)
    """Which gradients an update takes."""
    limit: Limit | None = None
    """What is done to them before they are used."""
    num_parts: int = 1
    """Each batch is computed in so many parts, one after another, whose gradients are added: the same update
    but for rounding, in less memory, unless BatchNorm goes by the batch: then it normalises each part by
    itself."""
    seed: int = 0
    """Of dropout, and of what objectives draw."""
