"""What is compared with what. Each comparison names its programs, the opponent first, and its quantities."""

from dataclasses import dataclass

CANONICAL = "--flagfile=experiments/flowers_inception_v3.flags"
CANONICAL_EPOCHS = 10
FLOWERS = ("--source=tfds:tf_flowers", "--splits=50%,25%,25%")
FROM_BLOCK_11 = (
    "train=head backbone/block_11_(dep|pro) backbone/block_1[2-6] backbone/Conv_1; lr=1e-5; optimizer=rmsprop"
)


@dataclass(frozen=True)
class Program:
    """One side of a comparison: a script of this folder, or ours where `script` is empty.

    In `flags`, {seed} stands for the number of the round and {lite0} for the folder of EfficientNet-Lite0.
    `cache` says what a run finds in our feature cache: empty, full, or any (as it happens to be).
    """

    name: str
    flags: tuple[str, ...]
    script: str = ""
    cache: str = "any"


@dataclass(frozen=True)
class Comparison:
    """Programs side by side. `quantities` is {name: kind}, see `measuring.better_by` for the kinds."""

    name: str
    programs: tuple[Program, ...]
    quantities: dict[str, str]
    # Where the opponent ran fewer epochs than this, its time is extrapolated to so many.
    extrapolated_to_epochs: int = 0


def comparisons(*, textbook_epochs: int, steps: int, epochs: int) -> dict[str, list[Comparison]]:
    """Returns {suite: comparisons}.

    Args:
      textbook_epochs: of the textbook loop in the frozen suites; 0: all of the canonical experiment.
      steps: of fine-tuning InceptionV3.
      epochs: of the other fine-tuning.
    """
    cold, warm = _ours_frozen("empty"), _ours_frozen("full")
    return {
        "frozen": [_frozen("frozen", textbook_epochs, cold, warm)],
        "frozen_cold": [_frozen("frozen_cold", textbook_epochs, cold)],
        "frozen_warm": [_frozen("frozen_warm", textbook_epochs, warm)],
        "finetune_inception": [_finetune_inception(steps)],
        "finetune_mobilenet": [_finetune_mobilenet(epochs)],
        "accuracy": [_accuracy_frozen(), _accuracy_finetuned(epochs)],
        "precision": [_precision()],
    }


def _ours_frozen(cache: str) -> Program:
    return Program(f"ours, feature cache {cache}", (CANONICAL, "--feature_cache=require"), cache=cache)


def _frozen(name: str, textbook_epochs: int, *ours: Program) -> Comparison:
    epochs = textbook_epochs or CANONICAL_EPOCHS
    textbook = Program("textbook loop", (f"--epochs={epochs}", "--test"), "textbook_loop.py")
    return Comparison(
        name,
        (textbook, *ours),
        {"wall_seconds": "time", "peak_rss_mb": "time", "test_accuracy": "share"},
        extrapolated_to_epochs=CANONICAL_EPOCHS if epochs < CANONICAL_EPOCHS else 0,
    )


def _finetune_inception(steps: int) -> Comparison:
    theirs = ("--trainable", "--learning_rate=1e-5", "--epochs=1", f"--max_steps={steps}")
    # One batch of validation: what is compared is the speed of updates.
    ours = (
        CANONICAL, "--splits=train[:1280],train[1280:1312]", "--schedule=finetune", "--log_every=4steps",
        f"--finetune_for={steps}steps", "--finetune_learning_rate=1e-5",
    )  # fmt: skip
    programs = (
        Program("textbook loop", theirs, "textbook_loop.py"),
        Program("ours, BatchNorm of the batch as there", (*ours, "--bn=batch")),
        Program("ours", ours),
    )
    return Comparison("finetune_inception", programs, {"images_per_second": "rate", "peak_rss_mb": "time"})


def _finetune_mobilenet(epochs: int) -> Comparison:
    ours = (
        *FLOWERS, "--backbone=keras:MobileNetV2", "--weights=none", "--image_size=160", "--head=linear",
        "--dropout=0.2", f"--phase=name=top; for={epochs}epochs; {FROM_BLOCK_11}", "--log_every=1epochs",
    )  # fmt: skip
    programs = (
        Program("tf_keras fit", (f"--epochs={epochs}", "--test"), "keras_fit.py"),
        Program("ours, feature cache empty", ours, cache="empty"),
    )
    quantities = ("train_seconds_per_epoch", "seconds_per_epoch", "wall_seconds", "peak_rss_mb")
    return Comparison("finetune_mobilenet", programs, dict.fromkeys(quantities, "time"))


def _accuracy_frozen() -> Comparison:
    theirs = (f"--epochs={CANONICAL_EPOCHS}", "--learning_rate=1e-3")
    ours = ("--schedule=frozen", f"--frozen_for={CANONICAL_EPOCHS}epochs", "--frozen_learning_rate=1e-3")
    return _accuracy("accuracy, frozen", theirs, ours)


def _accuracy_finetuned(epochs: int) -> Comparison:
    theirs = ("--trainable", f"--epochs={epochs}", "--learning_rate=1e-4")
    ours = ("--schedule=finetune", f"--finetune_for={epochs}epochs", "--finetune_learning_rate=1e-4")
    return _accuracy("accuracy, fine-tuned", theirs, ours)


def _accuracy(name: str, theirs: tuple[str, ...], ours: tuple[str, ...]) -> Comparison:
    # (x - 127) / 128 for x from 0 to 255: what this network wants. Ours knows.
    # At 128 px all takes a third of the time; what is compared are two programs, not two networks.
    network = ("--hub_module={lite0}", "--image_size=128", "--value_range=-0.9921875,1")
    programs = (
        Program("textbook loop", (*network, *theirs, "--test", "--seed={seed}"), "textbook_loop.py"),
        Program(
            "ours", (*FLOWERS, "--backbone=efficientnet_lite0", "--image_size=128", *ours, "--seed={seed}")
        ),
    )
    quantities = {"validation_accuracy": "share", "test_accuracy": "share", "wall_seconds": "time"}
    return Comparison(name, programs, quantities)


def _precision() -> Comparison:
    """The frozen recipe on real photos in both arithmetics, the same seeds in each."""
    recipe = (*FLOWERS, "--backbone=efficientnet_lite0", "--schedule=frozen", "--seed={seed}")
    programs = tuple(
        Program(f"ours, {precision}", (*recipe, f"--precision={precision}"))
        for precision in ("float32", "bfloat16")
    )
    return Comparison("precision", programs, {"validation_accuracy": "share", "test_accuracy": "share"})
