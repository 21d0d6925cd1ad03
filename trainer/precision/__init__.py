"""Which arithmetic a network computes in, float32 or 16 bits, and whose kernels run what does not change."""

from trainer.precision.choice import (
    Choice,
    choose,
    choose_engine,
    machine,
    openvino_version,
    read_choice,
    remembered,
)
from trainer.precision.rewriter import (
    apart,
    arithmetic,
    in_precision,
    leaving_out,
    left_out,
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
    "choose_engine",
    "in_precision",
    "leaving_out",
    "left_out",
    "machine",
    "openvino_version",
    "read_choice",
    "remembered",
    "require_rewritten",
    "require_supported",
    "supported",
    "was_rewritten",
]
