"""Options of the run: where, how often, until when, and what guards it."""

from dataclasses import dataclass

from trainer.options.declare import (
    AT_LEAST_0,
    AT_LEAST_1,
    FOR_TENSORFLOW,
    SHARE,
    calls,
    more_than_0,
    never_or_more_than_0,
    option,
    signals,
    updates,
)
from trainer.registry import LARGEST, Bounds


@dataclass(frozen=True)
class RunConfig:
    """Run"""

    workdir: str = option(
        "",
        "Folder of this run: checkpoints, event files, report. Required.",
        identity=False,
        short=True,
        path=FOR_TENSORFLOW,
    )
    plugin: tuple[str, ...] = option(
        (),
        "Code of your own to load first, a file or a module, repeatable: what it registers can be asked for "
        "by name. It is run with your rights, and copied into --workdir.",
        identity=False,
        short=True,
    )
    callbacks: str = option(
        "",
        "What happens between updates besides, such as what a plugin registers.",
        identity=False,
        check=calls("mine(2)"),
    )
    extend: bool = option(
        False,
        "Go on with the run in --workdir under longer phases, as if they had been as long from the start; "
        "refused where the updates so far would have been others.",
        identity=False,
    )
    seed: int = option(
        0,
        "Seed of initial weights, order and augmentation.",
        short=True,
        bounds=AT_LEAST_0,
    )
    log_every: str = option(
        "10steps",
        "How often loss and accuracy are written.",
        identity=False,
        check=more_than_0,
    )
    # Part of the identity: which weights are the best depends on when they are looked at.
    evaluate_every: str = option(
        "1epochs",
        "How often the validation split is evaluated.",
        check=more_than_0,
    )
    save_every: str = option(
        "1epochs",
        "How often a checkpoint is written.",
        identity=False,
        check=more_than_0,
    )
    save_every_secs: float = option(
        600.0,
        "A checkpoint is written, too, when the last one is this many seconds old; 0: never.",
        identity=False,
        bounds=AT_LEAST_0,
    )
    keep_checkpoints: int = option(
        3,
        "How many of the latest checkpoints are kept, besides the best.",
        identity=False,
        bounds=AT_LEAST_1,
    )
    figures_every: str = option(
        "5epochs",
        "How often the confusion matrix and the reliability diagram of validation are drawn for TensorBoard, "
        "besides at the end of each phase; empty: never.",
        identity=False,
        check=never_or_more_than_0,
    )
    histograms_every: str = option(
        "",
        "How often the distributions of all variables are written for TensorBoard; default never.",
        identity=False,
        check=never_or_more_than_0,
    )
    profile_steps: str = option(
        "",
        "Updates that TensorFlow's profiler watches, such as 100-110, for TensorBoard's PROFILE tab.",
        identity=False,
        check=updates,
    )
    embeddings: int = option(
        500,
        "How many validation pictures TensorBoard's projector shows by their features; 0: none.",
        identity=False,
        bounds=AT_LEAST_0,
    )
    max_minutes: float = option(
        0.0,
        "Save and stop, with status 75, after this many minutes; the same command goes on. 0: no limit.",
        identity=False,
        bounds=AT_LEAST_0,
    )
    assert_accuracy_at_least: float = option(
        0.0,
        "The run fails, with status 1, when its last score is lower: a share from 0 to 1.",
        identity=False,
        bounds=SHARE,
    )
    stop_signals: str = option(
        "SIGTERM,SIGUSR1",
        "Signals besides Ctrl-C on which a run saves and stops with status 75, such as the one that SLURM's "
        "--signal announces the end of a job with.",
        identity=False,
        check=signals,
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
        path=FOR_TENSORFLOW,
    )
    progress: str = option(
        "auto",
        "Progress bar, or plain lines (auto: a bar on a terminal).",
        choices=("auto", "bar", "plain"),
        identity=False,
    )


@dataclass(frozen=True)
class GuardConfig:
    """Guards"""

    # Not of the identity: who has met a bad batch wants to go on past it.
    on_nonfinite: str = option(
        "fail",
        "A loss or gradient that is not finite: stop, or go back to the last checkpoint and leave that "
        "batch out (rollback).",
        choices=("fail", "rollback"),
        identity=False,
    )
    max_rollbacks: int = option(
        3,
        "How many batches of a run rollback leaves out at most.",
        identity=False,
        bounds=AT_LEAST_0,
    )
    max_loss: float = option(
        0.0,
        "A training loss above this counts as one that is not finite; 0: no limit.",
        identity=False,
        bounds=Bounds(at_least=0, at_most=LARGEST),
    )
