"""`--schedule=recommended`: what is best for some number of pictures, as experiments/defaults measured it.

`Config.filled_in` makes phases of what is chosen here; an option that was set by hand stays as it is.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.cli.config import Config
from trainer.cli.declare import BEST, QUICK
from trainer.loop.schedules import rises_by_itself
from trainer.model.backbones import BACKBONES

BATCH_SIZE = 32
# Epochs of fine-tuning. With few pictures more of them made a network worse (experiments/defaults); of very
# many, each is seen less often, so that no run takes hours for what it has learned by then.
EPOCHS, LEAST_EPOCHS, MOST_SEEN = 6, 2, 60_000
# Few pictures move a network that knows them already away from what it knows: the slower, the less.
RATE, FEW, RATE_OF_FEW = 2e-4, 500, 5e-5
LONGER = 2
# A budget is divided this finely.
EPOCH_PARTS = 4


@dataclass(frozen=True)
class Effort:
    """How much is done for a result: epochs of fine-tuning, 0 for the head alone, and how large pictures are.

    An epoch may be one in part: the rate falls to its end there, too.

    `image_size` is their side in px, 0 for that which the network asks for.
    """

    epochs: float
    image_size: int = 0

    def describe(self) -> str:
        """Returns such as `6 epochs of fine-tuning at 288 px`."""
        size = f" at {self.image_size} px" if self.image_size else ""
        length = f"{self.epochs:g} epoch{'s' * (self.epochs != 1)} of fine-tuning"
        return (length if self.epochs else "the head alone") + size


def recommend(effort: Effort, *, num_train: int, asked: Config | None = None) -> dict[str, Any]:
    """Returns the options that are recommended, by name.

    Args:
      effort: how much is to be done.
      num_train: pictures of the training split.
      asked: the options as they were given: what is set by hand may leave no room for what is recommended.
    """
    plan = asked.plan if asked else None
    is_risen = plan and "lr_schedule" in plan.by_hand and rises_by_itself(plan.lr_schedule)
    chosen: dict[str, Any] = {
        "batch_size": batch_size_for(num_train),
        "image_size": effort.image_size,
        "frozen_for": "3epochs",
        "frozen_learning_rate": 1e-3,
        "lr_schedule": "cosine",
        "warmup": "0steps" if is_risen else "10%",
        "label_smoothing": 0.1,
    }
    if not effort.epochs:
        return {"schedule": "frozen", **chosen, "frozen_for": "10epochs"}
    return {
        **chosen,
        "finetune_for": f"{effort.epochs:g}epochs",
        "finetune_learning_rate": RATE if num_train >= FEW else RATE_OF_FEW,
        "augment": "flip,crop(0.5)",
        "average": "ema(0.99)",
    }


def sizes_of(config: Config) -> tuple[int, ...]:
    """Returns the sides of pictures, in px, that were measured with a network, its own first; or none.

    None, too, where the side is set by hand.
    """
    if "image_size" in config.plan.by_hand:
        return ()
    sizes: tuple[int, ...] = BACKBONES.choose(config.model.backbone).entry.facts.get("sizes_px", ())
    return sizes


def usual_effort(num_train: int, *, sizes: Sequence[int] = (), budget: str = "") -> Effort:
    """Returns how much is done for a training split where time does not matter, or by quick and best.

    Args:
      num_train: pictures of it.
      sizes: see `sizes_of`.
      budget: the value of --budget.
    """
    if budget == QUICK:
        return Effort(0, min(sizes, default=0))
    epochs = min(max(MOST_SEEN // num_train, LEAST_EPOCHS), EPOCHS)
    return Effort(epochs * LONGER if budget == BEST else epochs, max(sizes, default=0))


def efforts(num_train: int, *, sizes: Sequence[int] = ()) -> list[Effort]:
    """Returns what may be done, from the least to the most; see `usual_effort`."""
    small, large = min(sizes, default=0), max(sizes, default=0)
    usual = int(usual_effort(num_train).epochs)

    def lengths(first: int, last: int) -> list[float]:
        return [at / EPOCH_PARTS for at in range(first * EPOCH_PARTS, last * EPOCH_PARTS + 1)]

    # Of less than one epoch the rate would hardly rise and fall.
    found = [Effort(0, small), *(Effort(epochs, small) for epochs in lengths(1, usual))]
    found += [Effort(epochs, large) for epochs in lengths(usual, LONGER * usual)]
    return list(dict.fromkeys(found))


def batch_size_for(num_train: int) -> int:
    """Returns how many pictures an update sees: of a few, no more than there are."""
    return min(BATCH_SIZE, 2 ** int(math.log2(max(num_train, 1))))


def told(config: Config, chosen: Mapping[str, Any], *, num_train: int) -> str:
    """Returns a line that says what was chosen, and why; what is set by hand is not in it."""
    by_hand = config.plan.by_hand
    shown = {name: value for name, value in chosen.items() if name not in by_hand and value}
    options = " ".join(f"--{name}={_told(value)}" for name, value in shown.items())
    return f"recommended for {num_train:,} pictures to train with: {options}"


def _told(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else f"'{value}'" if "(" in str(value) else str(value)
