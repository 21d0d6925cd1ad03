"""Every option of the project, once: type, default, unit and help.

`config.py` makes the configuration of a run from these, `flags.py` the command line. Standard library
only: `--help` must not wait for TensorFlow.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from trainer.phase_specs import BN_MODES, LR_SCHEDULES, OPTIMIZERS, SCHEDULES
from trainer.values import PRECISIONS


def option(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] = (),
    identity: bool = True,
    short: bool = False,
) -> Any:
    """Declares one option.

    Args:
      default: its value when no flag sets it; its type is the flag's type.
      help: one line, with the unit where there is one.
      choices: the allowed values of an enum.
      identity: whether the numbers of a run depend on it, so that a run may not be resumed
        under another value.
      short: whether `--help` shows it; `--helpfull` shows all.
    """
    metadata = {"help": help, "choices": tuple(choices), "identity": identity, "short": short}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class DataConfig:
    """Pictures"""

    source: str = option(
        "synthetic:flowers",
        "Pictures: tfds:NAME[:CONFIG], folder:PATH, archive:PATH_OR_URL or synthetic:flowers.",
        short=True,
    )
    splits: str = option(
        "auto",
        "Train, validation and test, one after another: shares (50%,25%,25%), counts "
        "(1835,918,rest) or named ranges (train[:90%],train[90%:],test). auto: the source's own "
        "splits where it has them, else 80%,10%,10%.",
        short=True,
    )
    split_order: str = option(
        "auto",
        "Order that shares and counts are taken from: the source's own, or a permutation by "
        "--split_seed. auto: permuted where the source is sorted by class.",
        choices=("auto", "source", "permuted"),
    )
    split_seed: int = option(
        42, "Seed of the permutation; apart from --seed, so that runs with other seeds share splits."
    )
    drop_duplicates: bool = option(
        False, "Leave pictures out of an earlier split that are byte for byte in a later one."
    )
    exif: str = option(
        "apply", "Turn pictures upright as their EXIF orientation says.", choices=("apply", "ignore")
    )
    data_dir: str = option(
        "", "Folder of prepared tfds data sets; default $TFDS_DATA_DIR or tfds's own.", identity=False
    )
    checksum: str = option("", "SHA-256 that an archive: source must have.", identity=False)
    decode: str = option(
        "exact",
        "Decode JPEGs in full, or at 1/2, 1/4 or 1/8 where that is still as large as the network wants: "
        "faster for large photos, other pixels.",
        choices=("exact", "scaled"),
    )
    memory_budget_mb: int = option(
        64,
        "Encoded pictures, and features, are held in memory up to this many MB each; beyond it they are "
        "read from files.",
        identity=False,
    )
    synthetic_examples: int = option(1000, "How many pictures synthetic:flowers draws.")
    synthetic_seed: int = option(0, "Seed of the drawn pictures.")


@dataclass(frozen=True)
class ModelConfig:
    """Model"""

    backbone: str = option(
        "efficientnet_lite0",
        "Pretrained network: efficientnet_lite0, hub:HANDLE, savedmodel:PATH or keras:NAME.",
        short=True,
    )
    weights: str = option("imagenet", "Weights of a keras: backbone: imagenet, none, or a weights file.")
    image_size: int = option(
        0, "Side of the pictures the network sees, in px; 0: what the backbone asks for.", short=True
    )
    value_range: str = option(
        "", "Pixel values a hub: or savedmodel: backbone wants, e.g. -1,1; default 0,1."
    )
    head: str = option(
        "mlp(512)", "Layers after the backbone: linear, or mlp(WIDTH,...) with ReLU.", short=True
    )
    dropout: float = option(0.0, "Share of the last features dropped in training, 0 to 1.")


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


@dataclass(frozen=True)
class RunConfig:
    """Run"""

    workdir: str = option(
        "", "Folder of this run: checkpoints, event files, report. Required.", identity=False, short=True
    )
    seed: int = option(0, "Seed of initial weights, order and augmentation.", short=True)
    log_every: str = option("10steps", "How often loss and accuracy are written.", identity=False)
    # Part of the identity: which weights are the best depends on when they are looked at.
    evaluate_every: str = option("1epochs", "How often the validation split is evaluated.")
    save_every: str = option("1epochs", "How often a checkpoint is written.", identity=False)
    keep_checkpoints: int = option(
        3, "How many of the latest checkpoints are kept, besides the best.", identity=False
    )
    strategy: str = option(
        "auto",
        "Devices: one, all local ones (mirrored), or all when there are several GPUs (auto).",
        choices=("auto", "one", "mirrored"),
        identity=False,
    )
    cache_dir: str = option(
        "",
        "Folder for downloaded and converted networks; default the user's cache folder "
        "($TFHUB_CACHE_DIR is honoured).",
        identity=False,
    )
    progress: str = option(
        "auto",
        "Progress bar, or plain lines (auto: a bar on a terminal).",
        choices=("auto", "bar", "plain"),
        identity=False,
    )


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
        0, "How many augmented views of each picture a frozen phase keeps; epoch e sees view e modulo this."
    )
    cache_limit_gb: float = option(
        20.0, "Most GB of features kept; those not used for longest go first.", identity=False
    )


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluation"""

    eval_split: str = option(
        "test",
        "Split that the evaluate command scores.",
        choices=("train", "validation", "test"),
        identity=False,
        short=True,
    )
    checkpoint: str = option(
        "best", "Checkpoint to evaluate: best, latest, or a step number.", identity=False, short=True
    )


@dataclass(frozen=True)
class BenchmarkConfig:
    """Benchmark"""

    output: str = option("", "JSON file for the numbers of the benchmark command.", identity=False)
    repeats: int = option(5, "How often each thing is measured.", identity=False)
