"""`audit`: lists pictures to look at on one page, and in a table to edit and feed back with --relabel."""

import csv
import io
import logging
from pathlib import Path

from trainer.cli.flags import CommandLine
from trainer.data.relabel import COLUMNS
from trainer.record.spreadsheets import as_text
from trainer.record.workdir import Workdir
from trainer.run.audit import REASONS, Audit, audit
from trainer.run.experiment import Experiment
from trainer.run.kept_features import open_features
from trainer.run.near_pictures import across_splits, pair_rows, shown_pairs, small_pictures
from trainer.store.files import write_text

_log = logging.getLogger("trainer")
FOLDER = "audit"


def run(line: CommandLine) -> int:
    """Writes audit/ in the workdir, beside whatever run is there, and returns the exit status."""
    options, workdir = line.config.audit, Workdir(line.config.run.workdir)
    workdir.make()
    with workdir.lock(), open_features(line.config, line.given, verb="audit") as features:
        experiment = features.stages.experiment
        found = audit(features, folds=options.audit_folds, progress=line.config.run.progress)
        folder = Path(workdir.root) / FOLDER
        write_text(folder / "audit.csv", _table(found, experiment))
        write_text(folder / "near_duplicates.csv", pair_rows(found.pairs, experiment, found.split_of))
        write_text(folder / "index.html", _page(found, experiment, most=options.audit_shown))
    for reason in REASONS:
        if count := len(found.of(reason)):
            _log.info("%-25s%s of %s pictures", reason + ":", f"{count:,}", f"{found.num_pictures:,}")
    crossing = len(across_splits(found.pairs, found.split_of))
    _log.info("%-25s%s pairs, %s across splits", "near duplicates:", f"{len(found.pairs):,}", f"{crossing:,}")
    _log.info("page:        %s", folder / "index.html")
    if not found.findings:
        _log.info("nothing stands out: no label, and no picture by its look")
        return 0
    _log.info(
        "to correct:  write classes into new_label of %s, and train with --relabel", folder / "audit.csv"
    )
    return 0


def _table(found: Audit, experiment: Experiment) -> str:
    """Returns a line a picture, with all that was found of it; new_label is left to people."""
    source, task = experiment.source, experiment.task
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow([*COLUMNS, "suggested", "reason", "score", "split"])
    by_picture: dict[int, list[int]] = {}
    for number, one in enumerate(found.findings):
        by_picture.setdefault(one.at, []).append(number)
    for at, numbers in by_picture.items():
        findings = [found.findings[number] for number in numbers]
        suggested = next((one.suggested for one in findings if one.suggested), "")
        label = task.label_words(source.labels[at], source.class_names)
        cells = [as_text(source.ids[at]), experiment.scan.digests[at], as_text(label), "", as_text(suggested)]
        reasons = "; ".join(one.reason for one in findings)
        rows.writerow([*cells, reasons, f"{findings[0].score:.4f}", found.split_of[at]])
    return text.getvalue()


def _page(found: Audit, experiment: Experiment, *, most: int) -> str:
    from trainer.report.audit_page import Shown, audit_page  # Late: it imports what draws.

    source, task = experiment.source, experiment.task
    sections = []
    for reason in REASONS:
        findings = found.of(reason)
        at = [one.at for one in findings[:most]]
        images = small_pictures(experiment, at)
        shown = [
            Shown(
                image,
                task.label_words(source.labels[one.at], source.class_names),
                one.suggested,
                f"{source.ids[one.at]} ({found.split_of[one.at]})",
            )
            for one, image in zip(findings, images, strict=False)
        ]
        sections.append((reason, len(findings), shown))
    pairs = shown_pairs(found.pairs, experiment, found.split_of, most=most)
    return audit_page(experiment.config.data.source, sections, pairs, num_pairs=len(found.pairs))
