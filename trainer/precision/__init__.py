"""Which arithmetic a network computes in: float32, or 16 bits by TensorFlow's graph rewriter."""

from trainer.precision.choice import Choice, choose, machine, read_choice, remembered
from trainer.precision.rewriter import (
    apart,
    arithmetic,
    in_precision,
    require_rewritten,
    require_supported,
    supported,
    was_rewritten,
)

__all__ = [
    "Choice",
    "apart",
    "arithmetic",
    "choose",
    "in_precision",
    "machine",
    "read_choice",
    "remembered",
    "require_rewritten",
    "require_supported",
    "supported",
    "was_rewritten",
]
