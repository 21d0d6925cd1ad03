"""What the runs of an ablation left, and the table of it."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import measuring

from trainer.store.files import read_json
from trainer.values import TrainerError


class Variant(NamedTuple):
    """A flagfile, and what its first line says of it."""

    name: str
    what: str
    flagfile: Path


class Result(NamedTuple):
    """What a finished run left. Accuracies are those of validation, from 0 to 1."""

    best: float
    last: float
    seconds: float | None
    num_train: int
    validation: list[list[str]]


Results = Mapping[str, Mapping[int, Result]]
"""{variant: {seed: what its run left}}, of finished runs only."""


def is_finished(workdir: Path) -> bool:
    """Returns whether a run has a report, with which training ends."""
    return (workdir / "report/metrics.json").exists()


def times_file(workdir: Path) -> Path:
    """Returns the file, beside a run's folder, that says how long its processes took."""
    return workdir.with_name(f"{workdir.name}.json")


def read_result(workdir: Path) -> Result:
    """Reads what a finished run left.

    Raises:
      TrainerError: it was never evaluated on validation pictures, or a file is missing or damaged.
    """
    times = times_file(workdir)
    try:
        lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        splits = read_json(workdir / "splits.json")["splits"]
        accuracies = [line["accuracy"] for line in lines if line["split"] == "validation"]
        seconds = sum(read_json(times)["seconds"]) if times.exists() else None
        num_train, validation = len(splits["train"]), splits["validation"]
        return Result(max(accuracies), accuracies[-1], seconds, num_train, validation)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise TrainerError(f"{workdir} does not hold the numbers of a run with validation: {error}") from None


def summary(variants: Sequence[Variant], results: Results, *, base: str) -> list[dict[str, Any]]:
    """Returns a row of numbers for each variant; what there is nothing of is None.

    `best` is of each run's best evaluation, `last` of its last one: accuracies by seed, their mean, their
    standard deviation (that of a sample), and how much higher than the base they are on average, over the
    seeds that both have.
    """
    rows = []
    for variant in variants:
        found = dict(sorted(results.get(variant.name, {}).items()))
        row: dict[str, Any] = {"variant": variant.name, "what": variant.what}
        for name in ("best", "last"):
            own = {seed: getattr(result, name) for seed, result in found.items()}
            others = {seed: getattr(result, name) for seed, result in results.get(base, {}).items()}
            gains = [own[seed] - others[seed] for seed in own if seed in others]
            row[name] = {
                "by_seed": own,
                "mean": statistics.mean(own.values()) if own else None,
                "standard_deviation": statistics.stdev(own.values()) if len(own) > 1 else None,
                "above_base": statistics.mean(gains) if gains and variant.name != base else None,
            }
        first = next(iter(found.values()), None)
        row["pictures"] = {"train": first.num_train, "validation": len(first.validation)} if first else None
        row["seconds"] = {seed: result.seconds for seed, result in found.items()}
        rows.append(row)
    return rows


def table(rows: Sequence[Mapping[str, Any]], *, seeds: Sequence[int], base: str) -> str:
    """Returns the rows of `summary` as a Markdown table, accuracies in per cent; a dash is a missing run."""
    accuracies = ["mean ± s.d.", f"above {base}"]
    header = ["variant", "what it is", "best, %", *accuracies, "last, %", *accuracies, "pictures", "seconds"]
    shown = []
    for row in rows:
        cells = [row["variant"], row["what"].replace("|", "\\|")]
        for numbers in (row["best"], row["last"]):
            deviation, above = numbers["standard_deviation"], numbers["above_base"]
            cells += [
                ", ".join(percent(numbers["by_seed"].get(seed)) for seed in seeds),
                percent(numbers["mean"]) + ("" if deviation is None else f" ± {percent(deviation)}"),
                "" if above is None else f"{100 * above:+.2f}",
            ]
        pictures = row["pictures"]
        cells.append(f"{pictures['train']:,} + {pictures['validation']:,}" if pictures else "-")
        times = [row["seconds"].get(seed) for seed in seeds]
        cells.append(", ".join("-" if seconds is None else f"{seconds:.0f}" for seconds in times))
        shown.append(cells)
    return measuring.markdown(header, shown)


def remarks(results: Results, *, faults: Mapping[str, str], num_left: int) -> list[str]:
    """Returns what a reader of the table must know besides.

    Args:
      results: of the runs in the table.
      faults: {run: why it failed}.
      num_left: how many runs were stopped, or have not begun.
    """
    lines = [
        "Accuracy on the validation pictures, by seed: that of the best evaluation, which was chosen on these"
        " very pictures and so reads slightly too good, and that of the last one.",
        "pictures: for training + for validation. seconds: wall clock, by seed; features that one run has "
        "computed are kept for the others.",
    ]
    found = [result for by_seed in results.values() for result in by_seed.values()]
    if any(result.validation != found[0].validation for result in found):
        lines.append("NOT THE SAME VALIDATION PICTURES in all runs: the numbers above compare nothing.")
    if num_left:
        lines.append(f"NOT FINISHED: {num_left} of the runs; the same command goes on.")
    return lines + [f"FAILED: {run}: {why}" for run, why in faults.items()]


def run_name(variant: str, seed: int) -> str:
    """Returns what people call a run."""
    return f"{variant}, seed {seed}"


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"
