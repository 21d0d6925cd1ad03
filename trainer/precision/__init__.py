"""Which arithmetic a network computes in: float32, or 16 bits by TensorFlow's graph rewriter."""

from trainer.precision.choice import Choice, choose, read_choice
from trainer.precision.rewriter import (
    arithmetic,
    in_precision,
    require_rewritten,
    require_supported,
    supported,
    was_rewritten,
)

__all__ = [
    "Choice",
    "arithmetic",
    "choose",
    "in_precision",
    "read_choice",
    "require_rewritten",
    "require_supported",
    "supported",
    "was_rewritten",
]
