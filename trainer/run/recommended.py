"""`--schedule=recommended`: what is best for some number of pictures, as experiments/defaults measured it.

`Config.filled_in` makes phases of what is chosen here; an option that was set by hand stays as it is.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.cli.config import Config
from trainer.cli.declare import BUDGETS

BATCH_SIZE = 32
# Fewer updates than these teach a network little of what is on a few pictures; more than these many epochs
# gave nothing (experiments/defaults).
LEAST_UPDATES, EPOCHS, MOST_EPOCHS = 200, 6, 20
QUICK, BEST = BUDGETS
LONGER = 2
# Of the side of pictures that a network asks for: what is seen larger is told apart better.
LARGER = 288 / 224


@dataclass(frozen=True)
class Effort:
    """How much is done for a result: epochs of fine-tuning, 0 for the head alone, and how large pictures are.

    `image_size` is their side in px, 0 for that which the network asks for.
    """

    epochs: int
    image_size: int = 0

    def describe(self) -> str:
        """Returns such as `6 epochs of fine-tuning at 288 px`."""
        size = f" at {self.image_size} px" if self.image_size else ""
        length = f"{self.epochs} epoch{'s' * (self.epochs != 1)} of fine-tuning"
        return (length if self.epochs else "the head alone") + size


def recommend(effort: Effort, *, num_train: int) -> dict[str, Any]:
    """Returns the options that are recommended, by name.

    Args:
      effort: how much is to be done.
      num_train: pictures of the training split.
    """
    chosen: dict[str, Any] = {
        "batch_size": batch_size_for(num_train),
        "image_size": effort.image_size,
        "frozen_for": "10epochs",
        "frozen_learning_rate": 1e-3,
        "lr_schedule": "cosine",
        "warmup": "10%",
        "label_smoothing": 0.1,
    }
    if not effort.epochs:
        return {"schedule": "frozen", **chosen}
    return {
        **chosen,
        "finetune_for": f"{effort.epochs}epochs",
        "finetune_learning_rate": 2e-4,
        "augment": "flip,crop(0.5)",
        "average": "ema(0.99)",
    }


def usual_effort(num_train: int, *, budget: str = "") -> Effort:
    """Returns how much is done for a training split where time does not matter, or by quick and best."""
    if budget == QUICK:
        return Effort(0)
    steps = math.ceil(num_train / batch_size_for(num_train))
    # Few pictures are seen more often, for enough updates.
    epochs = min(max(EPOCHS, math.ceil(LEAST_UPDATES / steps)), MOST_EPOCHS)
    return Effort(epochs * LONGER if budget == BEST else epochs)


def efforts(num_train: int, *, native_px: int, any_size: bool) -> list[Effort]:
    """Returns what may be done, from the least to the most, each better than the one before or as good.

    Args:
      num_train: pictures of the training split.
      native_px: the side that the network asks for.
      any_size: whether it takes others.
    """
    usual = usual_effort(num_train).epochs
    found = [Effort(epochs) for epochs in range(usual + 1)]
    if any_size:
        larger = round(LARGER * native_px / 32) * 32
        found += [Effort(epochs, larger) for epochs in range(usual, LONGER * usual + 1)]
    else:
        found += [Effort(epochs) for epochs in range(usual + 1, LONGER * usual + 1)]
    return found


def batch_size_for(num_train: int) -> int:
    """Returns how many pictures an update sees: of a few, no more than there are."""
    return min(BATCH_SIZE, 2 ** int(math.log2(max(num_train, 1))))


def told(config: Config, chosen: Mapping[str, Any], *, num_train: int) -> str:
    """Returns a line that says what was chosen, and why; what is set by hand is not in it."""
    by_hand = config.plan.by_hand
    shown = {name: value for name, value in chosen.items() if name not in by_hand and value}
    options = " ".join(f"--{name}={_told(value)}" for name, value in shown.items())
    return f"for {num_train:,} pictures to train with: {options}"


def _told(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else f"'{value}'" if "(" in str(value) else str(value)
