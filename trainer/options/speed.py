"""Options of how fast it goes."""

from dataclasses import dataclass

from trainer.options.declare import AT_LEAST_0, option
from trainer.registry import Bounds
from trainer.values import PRECISIONS


@dataclass(frozen=True)
class SpeedConfig:
    """Speed"""

    precision: str = option(
        "auto",
        "Arithmetic of the network, by TensorFlow's graph rewriter; variables, logits and loss stay "
        "float32. auto: measured for each phase, the faster one.",
        choices=("auto", *PRECISIONS),
        short=True,
    )
    feature_cache: str = option(
        "auto",
        "Compute what a frozen network gives only once and keep it on disk: where that is exact (auto), "
        "never, or else fail (require).",
        choices=("auto", "off", "require"),
        identity=False,
        short=True,
    )
    feature_views: int = option(
        0,
        "How many augmented views of each picture a frozen phase keeps; epoch e sees view e modulo this.",
        bounds=AT_LEAST_0,
    )
    cache_limit_gb: float = option(
        20.0,
        "Most GB of features kept; those not used for longest go first.",
        identity=False,
        bounds=Bounds(at_least=0, at_most=1e9),
    )
