"""Every option of the project, once: type, default, unit and help.

`flags.py` makes the command line from these dataclasses, `record/workdir.py` writes them as JSON,
and everything below `commands.py` receives plain values taken from them. Standard library only:
`--help` must not wait for TensorFlow.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from trainer.phase_specs import BN_MODES, LR_SCHEDULES, OPTIMIZERS, SCHEDULES, phase_specs
from trainer.values import Duration, UsageError, parse_calls


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
class Config:
    """All options of a run. Field names are flag names, unique over all sections."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    plan: PlanConfig = PlanConfig()
    run: RunConfig = RunConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    def flat(self) -> dict[str, Any]:
        """Returns {flag name: value} over all sections."""
        return {f.name: getattr(section, f.name) for section, f in self._fields()}

    def identity_values(self) -> dict[str, Any]:
        """Returns the options that a resumed run must not change."""
        return {f.name: getattr(s, f.name) for s, f in self._fields() if f.metadata["identity"]}

    def identity(self) -> str:
        """Returns a hash of everything that changes the numbers of a run."""
        text = json.dumps(self.identity_values(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def replace(self, **values: Any) -> "Config":
        """Returns a validated copy with options set by their flag names."""
        return Config.from_flat({**self.flat(), **values})

    @classmethod
    def from_flat(cls, values: dict[str, Any]) -> "Config":
        """Builds and validates a Config from {flag name: value}.

        Raises:
          UsageError: an option is unknown, or its value is out of range.
        """
        sections: dict[str, Any] = {}
        left = dict(values)
        for section in dataclasses.fields(cls):
            kind: Any = type(section.default)
            names = [f.name for f in dataclasses.fields(kind) if f.name in left]
            taken = {name: left.pop(name) for name in names}
            taken = {k: tuple(v) if isinstance(v, list) else v for k, v in taken.items()}
            sections[section.name] = kind(**taken)
        if left:
            raise UsageError(f"unknown option {sorted(left)[0]!r}")
        config = cls(**sections)
        _validate(config)
        return config

    def _fields(self) -> list[tuple[Any, dataclasses.Field]]:
        sections = [getattr(self, section.name) for section in dataclasses.fields(self)]
        return [(section, f) for section in sections for f in dataclasses.fields(section)]


def _validate(config: Config) -> None:
    for section, f in config._fields():
        value = getattr(section, f.name)
        if f.metadata["choices"] and value not in f.metadata["choices"]:
            wanted = ", ".join(f.metadata["choices"])
            raise UsageError(f"--{f.name}={value} is not one of {wanted}")
        # The flagfile of a run has one option a line.
        if any("\n" in text for text in (value if isinstance(value, tuple) else (str(value),))):
            raise UsageError(f"--{f.name}={value!r} must be on one line")
    for name, low in _AT_LEAST.items():
        value = config.flat()[name]
        if value < low:
            raise UsageError(f"--{name}={value} must be {low} or more")
    for name, value in (("dropout", config.model.dropout), ("label_smoothing", config.plan.label_smoothing)):
        if not 0 <= value < 1:
            raise UsageError(f"--{name}={value:g} must be from 0 up to, but not, 1")
    for name in ("log_every", "evaluate_every", "save_every"):
        duration = Duration.parse(config.flat()[name], flag=f"--{name}")
        if duration.amount <= 0:
            raise UsageError(f"--{name}={duration} must be more than 0")
    if not (config.evaluate.checkpoint in ("best", "latest") or config.evaluate.checkpoint.isdigit()):
        raise UsageError(f"--checkpoint={config.evaluate.checkpoint} is not best, latest or a step number")
    parse_calls(config.model.head)
    phase_specs(config.plan)


_AT_LEAST = {
    "batch_size": 1, "image_size": 0, "synthetic_examples": 1, "keep_checkpoints": 1, "seed": 0,
    "split_seed": 0, "synthetic_seed": 0,
}  # fmt: skip
