"""Options of the training."""

from dataclasses import dataclass

from trainer.options.declare import option
from trainer.phase_specs import BN_MODES, LR_SCHEDULES, OPTIMIZERS, SCHEDULES


@dataclass(frozen=True)
class PlanConfig:
    """Training"""

    schedule: str = option(
        "two_phase",
        "Phases: only the head (frozen), backbone too (finetune), or one after the other.",
        choices=SCHEDULES,
        short=True,
    )
    phase: tuple[str, ...] = option(
        (),
        "One phase in full, repeatable, instead of --schedule: 'for=5epochs; train=head; lr=1e-3; "
        "lr_schedule=cosine; warmup=1epochs; optimizer=adam; bn=frozen; augment=flip'. train= "
        "takes regexes over variable names, first match wins, not:REGEX freezes.",
        short=True,
    )
    frozen_for: str = option("10epochs", "Length of the frozen phase (epochs, steps, examples).", short=True)
    finetune_for: str = option("5epochs", "Length of the fine-tuning phase.", short=True)
    frozen_learning_rate: float = option(1e-3, "Peak learning rate of the frozen phase.", short=True)
    finetune_learning_rate: float = option(1e-4, "Peak learning rate of fine-tuning.", short=True)
    finetune_train: str = option(
        "all", "What trains in fine-tuning: regexes over variable names, as in --phase train=."
    )
    bn: str = option(
        "frozen",
        "BatchNorm statistics while fine-tuning: the stored ones, or the batch's (which moves them).",
        choices=BN_MODES,
    )
    optimizer: str = option("adam", "Update rule.", choices=OPTIMIZERS)
    momentum: float = option(0.9, "Momentum of sgd.")
    weight_decay: float = option(0.0, "Decoupled weight decay of adamw and sgd, per unit of learning rate.")
    lr_schedule: str = option(
        "constant",
        "Course of the learning rate: constant, cosine to zero, or step (divided by 10 after "
        "1/3 and 2/3 of the phase).",
        choices=LR_SCHEDULES,
    )
    warmup: str = option("0steps", "Linear warm-up at the start of each phase; % is of the phase.")
    augment: str = option(
        "", "Random changes of training pictures, e.g. flip or flip,crop(0.6). A phase can override it."
    )
    label_smoothing: float = option(0.0, "Share of each label spread evenly over all classes, 0 to 1.")
    batch_size: int = option(32, "Examples per update, over all devices.", short=True)
