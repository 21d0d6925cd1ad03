"""Finished runs against one another: whether they differ by more than chance, and as a table."""

import csv
import dataclasses
import io
import itertools
import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.cli.config import Config
from trainer.record.spreadsheets import as_text
from trainer.report.scored import Scored
from trainer.report.words import SIGNIFICANT

if TYPE_CHECKING:
    from trainer.metrics.significance import Bootstrap

# Of five runs. Of more, each is tested against the first alone: a correction for more pairs hides everything.
MOST_PAIRS = 10
_OF_SPLITS = (
    "source",
    "splits",
    "split_order",
    "split_seed",
    "drop_duplicates",
    "near_duplicates",
    "relabel",
    "synthetic_seed",
)


@dataclass(frozen=True)
class Pair:
    """Two reports, compared on the pictures that are in both.

    A picture is the same if it has the same bytes, by their SHA-256, and the same label, whatever its name;
    one that a report has several times counts once. Without any there is no test: `p_value` and
    `holm_p_value` are None, and `why_not` says why.

    Attributes:
      num_shared: how many different pictures are in both.
      only_first, only_second: how many of them only one got right.
      p_value: of McNemar's exact test; see `mcnemar`. Where pictures have any number of labels, of the paired
        bootstrap of the mean average precision.
      holm_p_value: the same, corrected for how many pairs are tested.
    """

    first: Scored
    second: Scored
    num_shared: int
    only_first: int = 0
    only_second: int = 0
    p_value: float | None = None
    holm_p_value: float | None = None
    why_not: str = ""
    precision: "Bootstrap | None" = None
    """The difference of the mean average precision, where pictures have any number of labels."""

    @property
    def is_unknown(self) -> bool:
        """Whether one of them does not say which pictures it is of."""
        return not (self.first.examples and self.second.examples)

    @property
    def better(self) -> Scored | None:
        """The one that is better by more than chance, if one is."""
        if self.holm_p_value is None or self.holm_p_value > SIGNIFICANT:
            return None
        if self.precision is not None:
            return self.first if self.precision.difference > 0 else self.second
        return self.first if self.only_first > self.only_second else self.second


def compare_pairs(reports: Sequence[Scored]) -> list[Pair]:
    """Tests pairs of reports with McNemar's test, corrected by `holm` for how many there are.

    All pairs, if they are at most `MOST_PAIRS`; else the first report with each other one.
    """
    pairs = list(itertools.combinations(reports, 2))
    if len(pairs) > MOST_PAIRS:
        pairs = [(reports[0], other) for other in reports[1:]]
    tested = [_test(first, second) for first, second in pairs]
    corrected = iter(holm([pair.p_value for pair in tested if pair.p_value is not None]))
    return [
        pair if pair.p_value is None else dataclasses.replace(pair, holm_p_value=next(corrected))
        for pair in tested
    ]


def _test(first: Scored, second: Scored) -> Pair:
    for report in (first, second):
        if not report.examples:
            why = f"the report of {report.name} does not say which pictures it is of; evaluate writes it anew"
            return Pair(first, second, 0, why_not=why)
    shared = [key for key in first.examples if key in second.examples]
    if not shared:
        same_bytes = len({digest for digest, _ in first.examples} & {digest for digest, _ in second.examples})
        why = (
            f"the {same_bytes:,} that are in both have other labels" if same_bytes else _apart(first, second)
        )
        return Pair(first, second, 0, why_not=why)
    from trainer.metrics.significance import mcnemar  # Late: scipy takes a second to import.

    if first.several or second.several:
        return _test_labels(first, second, shared)
    right = np.array([(first.examples[key], second.examples[key]) for key in shared])
    found = mcnemar(right[:, 0], right[:, 1])
    return Pair(first, second, len(shared), found.only_a, found.only_b, found.p_value)


def _test_labels(first: Scored, second: Scored, shared: Sequence[tuple[str, str]]) -> Pair:
    """Tests two reports of pictures with any number of labels."""
    from trainer.metrics.significance import paired_bootstrap  # Late, as in `_test`.

    keys = [key for key in shared if key in first.several and key in second.several]
    if not keys:
        return Pair(first, second, 0, why_not="only one of them is of any number of labels a picture")
    names = list(first.several[keys[0]].truth)
    if set(names) != set(second.several[keys[0]].truth):
        return Pair(first, second, 0, why_not="they have other labels")

    def table(of: Scored, part: str) -> np.ndarray:
        rows = [[getattr(of.several[key], part)[name] for name in names] for key in keys]
        return np.array(rows, np.float64)

    labels, chances = table(first, "truth"), [table(of, "chances") for of in (first, second)]
    if not labels.any():
        return Pair(first, second, 0, why_not="no picture in both has a label")
    if not np.isfinite(chances).all():
        return Pair(first, second, 0, why_not="a probability is no finite number")
    found = paired_bootstrap(labels, *chances)
    right = np.array([(first.examples[key], second.examples[key]) for key in keys])
    alone = [int((right[:, k] & ~right[:, 1 - k]).sum()) for k in (0, 1)]
    return Pair(
        first,
        second,
        len(keys),
        only_first=alone[0],
        only_second=alone[1],
        p_value=found.p_value,
        precision=found,
    )


def _apart(first: Scored, second: Scored) -> str:
    """Returns why two reports may have no picture in common."""
    reasons = [f"{first.split} of one, {second.split} of the other"] * (first.split != second.split)
    if first.options and second.options:
        pairs = [(name, first.options[name], second.options[name]) for name in _OF_SPLITS]
        reasons += [f"--{name} was {a} and {b}" for name, a, b in pairs if a != b]
    return "; ".join(reasons) or "none has the same bytes"


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values corrected for several comparisons (Holm, 1979, Scand. J. Statistics 6, 65-70).

    If both of each pair are equally good, the chance that any corrected p-value is a or less is a or less.
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def differing_options(reports: Sequence[Scored]) -> list[str]:
    """Returns the names of options that differ between runs; backbone and size of pictures apart."""
    known = [report.options for report in reports if report.options]
    names = [name for name in Config().compared_values({}) if name not in ("backbone", "image_size")]
    return [name for name in names if len({repr(options[name]) for options in known}) > 1]


FORMAT = 1
WIDTH = 100
_GAP = "  "
_NOTHING = "-"


def rows(reports: Sequence[Scored]) -> list[dict[str, Any]]:
    """Returns a dictionary a run; what a report does not have is None."""
    names = differing_options(reports)
    return [
        {
            "run": report.name,
            "backbone": report.options.get("backbone", report.values.get("backbone")),
            "image_size_px": report.values.get("image_size_px") or report.options.get("image_size") or None,
            "options": {name: report.options.get(name) for name in names},
            "split": report.split or None,
            "num_examples": report.values.get("num_examples"),
            "num_correct": report.values.get("num_correct"),
            "accuracy": _number(report.values, "accuracy"),
            "accuracy_95_percent_interval": report.values.get("accuracy_95_percent_interval"),
            **({"map": _number(report.values, "map")} if any(r.several for r in reports) else {}),
            "macro_f1": _number(report.values, "macro", "f1"),
            "log_loss": _number(report.values, "log_loss"),
            "loss": _number(report.values, "loss"),
            "expected_calibration_error": _number(report.values, "calibration", "expected_calibration_error"),
            "step": report.values.get("step"),
            "report": str(report.folder),
        }
        for report in reports
    ]


def _number(values: Mapping[str, Any], *keys: str) -> float | None:
    found: Any = values
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return float(found) if isinstance(found, int | float) else None


def verdicts(pairs: Sequence[Pair]) -> list[str]:
    """Returns what follows of each pair, in words."""
    corrected = sum(pair.p_value is not None for pair in pairs) > 1
    return [_verdict(pair, corrected=corrected) for pair in pairs]


def _verdict(pair: Pair, *, corrected: bool) -> str:
    a, b = pair.first.name, pair.second.name
    if pair.p_value is None:
        told = "not known to be of the same pictures" if pair.is_unknown else "no picture is in both reports"
        return f"{a} and {b}: no test, {told} ({pair.why_not})"
    if pair.precision is not None:
        return _verdict_of_labels(pair, corrected=corrected)
    alone = f"right alone on {pair.only_first:,} and {pair.only_second:,}"
    told = f"{a} and {b}: no difference can be shown"
    if pair.better is pair.first:
        told, alone = (
            f"{a} is better than {b}",
            f"right alone on {pair.only_first:,} against {pair.only_second:,}",
        )
    elif pair.better is pair.second:
        told, alone = (
            f"{b} is better than {a}",
            f"right alone on {pair.only_second:,} against {pair.only_first:,}",
        )
    if pair.num_shared < max(pair.first.num_examples, pair.second.num_examples):
        alone += f" of the {pair.num_shared:,} different pictures in both reports"
    p = f"p = {_p(pair.p_value)}" + (f", Holm {_p(pair.holm_p_value or 0.0)}" if corrected else "")
    return f"{told}: {alone}, {p}"


def _verdict_of_labels(pair: Pair, *, corrected: bool) -> str:
    """Returns what follows of a pair of which the mean average precision was compared."""
    a, b, found = pair.first.name, pair.second.name, pair.precision
    assert found is not None
    told, sign = f"{a} and {b}: no difference can be shown", 1.0
    if pair.better is pair.first:
        told = f"{a} is better than {b}"
    elif pair.better is pair.second:
        told, sign = f"{b} is better than {a}", -1.0
    low, high = sorted((sign * found.low, sign * found.high))
    p = f"p = {_p(found.p_value)}" + (f", Holm {_p(pair.holm_p_value or 0.0)}" if corrected else "")
    on = f" on the {pair.num_shared:,} different pictures in both reports"
    return f"{told}: mAP {sign * found.difference:+.4f}, 95 % interval {low:+.4f} to {high:+.4f}{on}, {p}"


def notes(reports: Sequence[Scored], pairs: Sequence[Pair]) -> list[str]:
    """Returns how to read a comparison, and what to beware of."""
    num_tests, found = sum(pair.p_value is not None for pair in pairs), []
    if any(pair.precision for pair in pairs):
        found.append(
            "mAP: the difference of the mean average precision, and where it is in 95 % of 2,000 samples of "
            "the pictures, drawn with replacement, the same for both (paired bootstrap). p: twice the share "
            f"of samples in which it has the other sign; a difference is claimed at {SIGNIFICANT:g} or less."
        )
    elif num_tests:
        found.append(
            "Right alone: on how many pictures that both were scored on one is right and the other wrong. p: "
            "the chance of so uneven a split, or a more uneven one, if both are equally good (McNemar's "
            f"exact test, two-sided); a difference is claimed at {SIGNIFICANT:g} or less."
        )
    if num_tests > 1:
        found.append(f"Holm: p corrected for {num_tests} tests (Holm, 1979). It is this one that decides.")
    if len(pairs) < len(reports) * (len(reports) - 1) // 2:
        found.append(
            f"There are more than {MOST_PAIRS} pairs: only those with the first run are tested. Name first "
            "the run that the others are to be held against."
        )
    if any(report.split == "validation" for report in reports):
        found.append(
            "Validation chose the weights of each run: its scores are slightly too good, most of all those "
            "of runs that were evaluated, or tried out, most often. Only a test split is free of that."
        )
    if any(report.split == "train" for report in reports):
        found.append("The pictures of train are those the network was trained on: they say little of others.")
    return found


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"


def terminal(reports: Sequence[Scored], pairs: Sequence[Pair]) -> str:
    """Returns a table of at most `WIDTH` columns, two lines or more a run, with verdicts and notes below."""
    cells = [_cells(row) for row in rows(reports)]
    names = [name for name in cells[0] if name not in ("backbone", "px", "recipe")]
    if "mAP" in names:
        # There is not room for everything, and these say the least of several labels.
        names = [name for name in names if name not in ("ECE", "step")]
    if all(cell["log-loss"] != _NOTHING for cell in cells) or all(cell["loss"] == _NOTHING for cell in cells):
        names.remove("loss")
    else:
        names.remove("log-loss")
    widths = {name: max(len(name), *(len(cell[name]) for cell in cells)) for name in names}
    widths["split"] = min(widths["split"], 12)
    widths["run"] = min(widths["run"], WIDTH - sum(w + len(_GAP) for n, w in widths.items() if n != "run"))

    def line(cell: Mapping[str, str]) -> str:
        aligned = [
            _cut(cell[n], w).ljust(w) if n in ("run", "split") else cell[n].rjust(w)
            for n, w in widths.items()
        ]
        return _GAP.join(aligned).rstrip()

    lines = [line({name: name for name in names})]
    for cell in cells:
        whole = f"{cell['run']}: " * (len(cell["run"]) > widths["run"])
        about = f"{whole}{cell['backbone']}, {cell['px']} px" + f"; {cell['recipe']}" * bool(cell["recipe"])
        lines += [line(cell), *_wrapped(about, "    ", "    ")]
    for block in (verdicts(pairs), notes(reports, pairs)):
        lines += ["", *(part for sentence in block for part in _wrapped(sentence, "", "    "))]
    return "\n".join(lines) + "\n"


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    """Returns {column: text} of a run."""

    def text(value: float | None, form: str) -> str:
        return _NOTHING if value is None else format(value, form)

    accuracy, interval = row["accuracy"], row["accuracy_95_percent_interval"]
    share = _NOTHING if accuracy is None else f"{100 * accuracy:.2f} %"
    if interval:
        share += f"  {100 * interval[0]:.1f} to {100 * interval[1]:.1f}"
    return {
        "run": row["run"],
        "backbone": row["backbone"] or _NOTHING,
        "px": text(row["image_size_px"], "d"),
        "recipe": " ".join(f"{name}={_option(value)}" for name, value in row["options"].items()),
        "split": row["split"] or _NOTHING,
        "pictures": text(row["num_examples"], ",d"),
        "accuracy, 95 % interval": share,
        **({"mAP": text(row["map"], ".4f")} if "map" in row else {}),
        "macro F1": text(row["macro_f1"], ".4f"),
        "log-loss": text(row["log_loss"], ".4f"),
        "loss": text(row["loss"], ".4f"),
        "ECE": text(row["expected_calibration_error"], ".4f"),
        "step": text(row["step"], ",d"),
    }


def _option(value: Any) -> str:
    if value is None:
        return _NOTHING
    several = " | ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return several or "''"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else "…" + text[len(text) - width + 1 :]


def _wrapped(text: str, first: str, later: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=later,
        break_long_words=False,
        break_on_hyphens=False,
    )


def markdown(reports: Sequence[Scored], pairs: Sequence[Pair]) -> str:
    """Returns a table with all columns, and verdicts and notes as lists."""
    cells = [_cells(row) for row in rows(reports)]
    words = {"run", "backbone", "recipe", "split"}

    def line(values: Sequence[str]) -> str:
        return "| " + " | ".join(value.replace("|", "\\|") for value in values) + " |"

    rule = "|" + "|".join("---" if name in words else "---:" for name in cells[0]) + "|"
    lines = [line(list(cells[0])), rule, *(line(list(cell.values())) for cell in cells)]
    for block in (verdicts(pairs), notes(reports, pairs)):
        lines += ["", *(f"- {sentence}" for sentence in block)]
    return "\n".join(lines) + "\n"


def comma_separated(reports: Sequence[Scored], pairs: Sequence[Pair]) -> str:
    """Returns a line a run, and a column for each option that differs; the tests of pairs are not in it."""
    table = []
    for row in rows(reports):
        low, high = row.pop("accuracy_95_percent_interval") or (None, None)
        options = {
            name: _option(value) if value is None else as_text(_option(value))
            for name, value in row.pop("options").items()
        }
        told = {name: as_text(value) if isinstance(value, str) else value for name, value in row.items()}
        table.append({**told, "accuracy_low": low, "accuracy_high": high, **options})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def as_json(reports: Sequence[Scored], pairs: Sequence[Pair]) -> str:
    """Returns {"format", "runs": [...], "pairs": [...], "notes": [...]}.

    A run has the keys of `rows`; a pair has first, second, num_shared, only_first_right, only_second_right,
    p_value, p_value_holm, better, why_no_test and verdict; of any number of labels a picture also
    map_difference and map_95_percent_interval. Where there is no test the p-values are null, and
    where no difference can be shown `better` is.
    """
    compared = [
        {
            "first": pair.first.name,
            "second": pair.second.name,
            "num_shared": pair.num_shared,
            "only_first_right": pair.only_first,
            "only_second_right": pair.only_second,
            "p_value": pair.p_value,
            "p_value_holm": pair.holm_p_value,
            **_precision_as_json(pair),
            "better": pair.better.name if pair.better else None,
            "why_no_test": pair.why_not or None,
            "verdict": verdict,
        }
        for pair, verdict in zip(pairs, verdicts(pairs), strict=True)
    ]
    found = {"format": FORMAT, "runs": rows(reports), "pairs": compared, "notes": notes(reports, pairs)}
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n"


def _precision_as_json(pair: Pair) -> dict[str, Any]:
    if (found := pair.precision) is None:
        return {}
    return {"map_difference": found.difference, "map_95_percent_interval": [found.low, found.high]}


FORMS: dict[str, Callable[[Sequence[Scored], Sequence[Pair]], str]] = {
    ".json": as_json,
    ".csv": comma_separated,
    ".md": markdown,
}
