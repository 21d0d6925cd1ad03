"""Options of the training: phases, and what holds in all of them."""

from dataclasses import dataclass

from trainer.options.declare import AT_LEAST_0, AT_LEAST_1, calls, option, safe_limit
from trainer.phase_specs import BN_MODES
from trainer.registry import Bounds


@dataclass(frozen=True)
class PlanConfig:
    """Training"""

    schedule: str = option(
        "two_phase",
        "Phases: only the head (frozen), backbone too (finetune), one after the other (two_phase), the head "
        "and then the backbone opened from the top in N - 1 steps (gradual(N)), or by the number of pictures "
        "as BiT-HyperRule says, with head, resolution and learning rate (auto).",
        short=True,
    )
    phase: tuple[str, ...] = option(
        (),
        "One phase in full, repeatable, instead of --schedule: 'for=5epochs; train=head; lr=1e-3; "
        "lr_schedule=cosine; warmup=1epochs; optimizer=adam; bn=frozen; augment=flip'. train= "
        "takes regexes over variable names, first match wins, not:REGEX freezes; or from_layer= or "
        "unfreeze_top_layers=, as the flags of those names.",
        short=True,
    )
    frozen_for: str = option("10epochs", "Length of the frozen phase (epochs, steps, examples).", short=True)
    finetune_for: str = option(
        "5epochs", "Length of the fine-tuning phase, or of all of them together.", short=True
    )
    frozen_learning_rate: float = option(1e-3, "Peak learning rate of the frozen phase.", short=True)
    finetune_learning_rate: float = option(1e-4, "Peak learning rate of fine-tuning.", short=True)
    finetune_train: str = option(
        "all", "What trains in fine-tuning: regexes over variable names, as in --phase train=."
    )
    from_layer: str = option(
        "",
        "What trains in fine-tuning: this layer of the network, by name or index, and all after it.",
        short=True,
    )
    unfreeze_top_layers: int = option(
        0,
        "What trains in fine-tuning: the last N layers, counted over backbone and head.",
        bounds=AT_LEAST_0,
    )
    bn: str = option(
        "frozen",
        "BatchNorm statistics while fine-tuning: the stored ones, or the batch's (which moves them).",
        choices=BN_MODES,
    )
    optimizer: str = option("adam", "Update rule: adam, adamw, sgd, rmsprop or lion.")
    momentum: float = option(0.9, "Momentum of sgd.")
    nesterov: bool = option(False, "Nesterov's momentum in sgd.")
    weight_decay: float = option(
        0.0,
        "Decoupled weight decay of adamw, sgd and lion, per unit of learning rate; BatchNorm and biases have "
        "none.",
    )
    lr_schedule: str = option(
        "constant",
        "Course of the learning rate: constant, cosine(0), linear(0) and exponential(0.01) with what is left "
        "at the end, step(0.33,0.67) with the shares of the phase after which it is divided by 10, "
        "one_cycle, or plateau(0.1,5): times 0.1 when the validation loss has not fallen in 5 evaluations.",
    )
    warmup: str = option("0steps", "Linear warm-up at the start of each phase; % is of the phase.")
    augment: str = option(
        "",
        "Random changes of training pictures, in order, e.g. flip,rotate(0.2),randaugment(2,9) or "
        "flip,mixup(0.2). A phase can override it.",
        short=True,
    )
    average: str = option(
        "",
        "Weights that are scored and kept: an exponential average (ema(0.999)), the mean over the ends of "
        "the epochs in the last quarter of each phase (swa(0.25)), or the last ones.",
    )
    batch_size: int = option(
        32,
        "Examples per update, over all devices.",
        short=True,
        bounds=AT_LEAST_1,
    )


@dataclass(frozen=True)
class UpdateConfig:
    """Updates, in all phases"""

    accumulate: int = option(
        1,
        "Parts of each batch that are computed one after another: the same update in less memory.",
        bounds=AT_LEAST_1,
    )
    objective: str = option(
        "supervised",
        "What an update makes smaller: the loss of the labels, or what a plugin registers.",
        check=calls("supervised"),
    )
    loss: str = option(
        "cross_entropy",
        "Loss of an example: cross_entropy, or focal(2).",
        check=calls("cross_entropy or focal(2)"),
    )
    gradient_rule: str = option(
        "plain",
        "Which gradients an update takes: those at the weights, or what a plugin registers.",
        check=calls("plain"),
    )
    metrics: str = option(
        "",
        "What is measured of the examples besides loss and accuracy, such as confidence.",
        check=calls("confidence"),
    )
    label_smoothing: float = option(
        0.0,
        "Share of each label spread evenly over all classes, 0 to 1.",
        bounds=Bounds(at_least=0, below=1),
    )
    class_weights: str = option(
        "", "Weights of the classes in the loss: balanced, or such as roses=2,tulips=0.5."
    )
    lr_multiplier: tuple[str, ...] = option(
        (), "REGEX=FACTOR on the learning rate of variables, repeatable; the first that matches counts."
    )
    layer_decay: float = option(
        1.0,
        "Factor on the learning rate from each of 12 groups of layers to the one below it, 0 to 1.",
        bounds=Bounds(above=0, at_most=1),
    )
    clip_norm: float = option(
        0.0,
        "Largest norm of all gradients together; 0: no limit.",
        check=safe_limit,
    )
    clip_value: float = option(
        0.0,
        "Largest absolute value in a gradient; 0: no limit.",
        check=safe_limit,
    )
    early_stop: str = option(
        "",
        "Measure of the validation split whose standstill ends a phase.",
        choices=("", "loss", "accuracy", "auc"),
    )
    patience: int = option(
        5,
        "Evaluations without change for the better until --early_stop acts.",
        bounds=AT_LEAST_1,
    )
    min_change: float = option(
        0.0,
        "Smallest change for the better that --early_stop counts.",
        bounds=AT_LEAST_0,
    )
