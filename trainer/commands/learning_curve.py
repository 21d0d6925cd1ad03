"""`learning_curve`: fits the head to parts of train, and says what twice the pictures would buy."""

import csv
import io
import logging
from pathlib import Path

from trainer.cli.declare import shares
from trainer.cli.flags import CommandLine
from trainer.record.workdir import Workdir
from trainer.run.kept_features import open_features
from trainer.run.learning_curve import LearningCurve, learning_curve
from trainer.store.files import write_bytes, write_json, write_text

_log = logging.getLogger("trainer")
FOLDER = "learning_curve"


def run(line: CommandLine) -> int:
    """Writes learning_curve/ in the workdir, beside whatever run is there, and returns the exit status."""
    options, workdir = line.config.learning_curve, Workdir(line.config.run.workdir)
    workdir.make()
    with workdir.lock():
        with open_features(line.config, line.given, verb="learning_curve") as features:
            found = learning_curve(
                features,
                shares=shares(options.curve_shares),
                draws=options.curve_draws,
                progress=line.config.run.progress,
            )
        folder = Path(workdir.root) / FOLDER
        _write(folder, found)
    for told in (*_table(found), _told(found)):
        _log.info("%s", told)
    _log.info("curve:       %s", folder / "learning_curve.png")
    return 0


def _table(found: LearningCurve) -> list[str]:
    """Returns the accuracy of each size, as lines of text."""
    rows = [f"{'pictures':>10}  {'share':>6}  {found.split} accuracy  lowest to highest draw"]
    for i, size in enumerate(found.sizes):
        of = 100 * found.accuracies(i)
        drawn = f"{of.min():.2f} to {of.max():.2f} % of {len(of)}" if len(of) > 1 else "all pictures"
        rows.append(f"{size:>10,}  {100 * size / found.sizes[-1]:>4.0f} %  {of.mean():>7.2f} %  {drawn}")
    return rows


def _told(found: LearningCurve) -> str:
    """Returns what twice the pictures would buy, in a line."""
    ahead, now = found.outlook, 100 * found.accuracies(len(found.sizes) - 1).mean()
    num_scored = found.right[-1].shape[1]
    too_few = f"; {num_scored:,} pictures are too few to tell" if ahead.gain < 0 else ""
    return (
        f"twice the pictures ({ahead.num_train:,}) would buy about {100 * ahead.gain:+.1f} points of "
        f"{found.split} accuracy (95 % interval {100 * ahead.low:+.1f} to {100 * ahead.high:+.1f}), from "
        f"{now:.1f} %, with --head={found.head} on the frozen network{too_few}"
    )


def _write(folder: Path, found: LearningCurve) -> None:
    from trainer.report.sample_size import sample_size_figure  # Late: matplotlib takes a second.

    rows = io.StringIO()
    table = csv.writer(rows, lineterminator="\n")
    table.writerow(["pictures", "draw", f"{found.split}_accuracy"])
    for i, size in enumerate(found.sizes):
        table.writerows(
            [size, draw, f"{value:.6f}"] for draw, value in enumerate(found.accuracies(i).tolist())
        )
    accuracies = [found.accuracies(i) for i in range(len(found.sizes))]
    figure = sample_size_figure(found.sizes, accuracies, found.outlook, split=found.split, title=_told(found))
    write_bytes(folder / "learning_curve.png", figure)
    write_text(folder / "learning_curve.csv", rows.getvalue())
    write_json(folder / "learning_curve.json", found.to_json())
