"""`--schedule=recommended`: what is best for some number of pictures, as experiments/defaults measured it.

`Config.filled_in` makes phases of what is chosen here; an option that was set by hand stays as it is.
"""

import math
from collections.abc import Mapping
from typing import Any

from trainer.cli.config import Config
from trainer.cli.declare import BUDGETS

BATCH_SIZE = 32
# Fewer updates than these teach a network little of what is on a few pictures; more than these many epochs
# gave nothing (experiments/defaults).
LEAST_UPDATES, EPOCHS, MOST_EPOCHS = 200, 6, 20
QUICK, BEST = BUDGETS
LONGER = 2


def recommend(*, num_train: int, budget: str = "") -> dict[str, Any]:
    """Returns the options that are recommended for a training split, by name.

    Args:
      num_train: pictures of it.
      budget: the value of --budget.
    """
    batch_size = batch_size_for(num_train)
    chosen = {
        "batch_size": batch_size,
        "frozen_for": "10epochs",
        "frozen_learning_rate": 1e-3,
        "lr_schedule": "cosine",
        "warmup": "10%",
        "label_smoothing": 0.1,
    }
    if budget == QUICK:
        return {"schedule": "frozen", **chosen}
    epochs = epochs_for(num_train, batch_size=batch_size) * (LONGER if budget == BEST else 1)
    return {**chosen, **finetuning(epochs)}


def finetuning(epochs: int) -> dict[str, Any]:
    """Returns the options of a fine-tuning of some epochs."""
    return {
        "finetune_for": f"{epochs}epochs",
        "finetune_learning_rate": 2e-4,
        "augment": "flip,crop(0.5)",
        "average": "ema(0.99)",
    }


def batch_size_for(num_train: int) -> int:
    """Returns how many pictures an update sees: of a few, no more than there are."""
    return min(BATCH_SIZE, 2 ** int(math.log2(max(num_train, 1))))


def epochs_for(num_train: int, *, batch_size: int) -> int:
    """Returns how many epochs of fine-tuning come to enough updates."""
    steps = math.ceil(num_train / batch_size)
    return min(max(EPOCHS, math.ceil(LEAST_UPDATES / steps)), MOST_EPOCHS)


def told(config: Config, chosen: Mapping[str, Any], *, num_train: int) -> str:
    """Returns a line that says what was chosen, and why; what is set by hand is not in it."""
    by_hand = config.plan.by_hand
    options = " ".join(f"--{name}={_told(value)}" for name, value in chosen.items() if name not in by_hand)
    return f"for {num_train:,} pictures to train with: {options}"


def _told(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else f"'{value}'" if "(" in str(value) else str(value)
