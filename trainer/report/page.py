"""The page of a report: one file that holds all it shows, light or dark as the reader's system is."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from trainer.report import several
from trainer.report.sections import (
    by_class,
    calibration,
    confusions,
    facts,
    headline,
    left_out,
    measured,
    missing,
    numbers,
    percent,
    pretrained,
    prevalence,
)

STYLE = """
:root { color-scheme: light dark; --ink: #1c2126; --soft: #5b6670; --paper: #fff; --card: #f4f6f8;
  --line: #dde2e7; --accent: #1f6fb2; --wrong: #b3261e; --right: #1e7d3a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #9aa5af; --paper: #14181c;
  --card: #1f252b; --line: #333c45; --accent: #6db3f2; --wrong: #ff8a80; --right: #7bd492; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 62rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { margin: 0; font-size: 1.4rem; } h2 { margin: 2.5rem 0 .5rem; font-size: 1.2rem; }
p { margin: .5rem 0; max-width: 48rem; } .soft { color: var(--soft); } a { color: var(--accent); }
.big { font-size: 3.2rem; font-weight: 650; line-height: 1.15; margin: 1rem 0 0; }
.interval { position: relative; height: 1.1rem; margin: .8rem 0 .2rem; background: var(--card);
  border-radius: .3rem; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.interval i { position: absolute; top: 0; bottom: 0; background: var(--accent); }
.interval .range { opacity: .4; border-radius: .3rem; } .interval .point { width: 3px; margin-left: -1px; }
.ends { display: flex; justify-content: space-between; font-size: .8rem; color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .7rem;
  margin: 1.2rem 0; }
.card { background: var(--card); border-radius: .5rem; padding: .6rem .8rem; break-inside: avoid; }
.card b { display: block; font-size: 1.3rem; } .card span { font-size: .85rem; color: var(--soft); }
.scroll { overflow-x: auto; max-height: 42rem; overflow-y: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; } thead th { position: sticky; top: 0; background: var(--paper); }
.scroll th, .scroll td { overflow-wrap: normal; } th.name { font-weight: 400; min-width: 8rem;
  overflow-wrap: anywhere !important; } .n { text-align: right; }
.mean th, .mean td { color: var(--soft); }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.6rem, 1fr)); gap: .9rem; }
.pictures figure { margin: 0; font-size: .85rem; line-height: 1.35; break-inside: avoid; }
.pictures img { display: block; width: 128px; height: 128px; object-fit: contain; border-radius: .3rem;
  background: var(--card); }
.pictures small { color: var(--soft); } .wrong { color: var(--wrong); } .right { color: var(--right); }
img.chart { display: block; max-width: 100%; height: auto; margin: .8rem 0; padding: .5rem; background: #fff;
  border-radius: .4rem; break-inside: avoid; }
details { margin: .5rem 0; } summary { cursor: pointer; }
.note { border-left: 4px solid var(--accent); background: var(--card); padding: .5rem .8rem; }
@media (max-width: 32rem) { table { font-size: .8rem; } th, td { padding-right: .5rem; }
  th.name { min-width: 4.5rem; } }
@media print { body { max-width: none; padding: 0; font-size: 11pt; } .scroll { max-height: none;
  overflow: visible; } h2 { break-after: avoid; } }
"""


THUMBNAIL_PX = 128
FILES = {
    "metrics.json": "all numbers",
    "predictions.csv": "a line per picture",
    "predictions.parquet": "the same, exact",
}
_ALT = {
    "confusion_matrix": "Confusion matrix: rows are true classes, columns predictions",
    "cooccurrence": "Labels seen together: rows have the one, columns the other, too",
    "per_class": "Recall, precision and F1 by class",
    "reliability": "Share of right predictions over their probability",
    "roc_curve": "Receiver operating characteristic",
    "learning_curves": "Loss and accuracy over the epochs of the run",
}


def make_page(
    values: Mapping[str, Any],
    *,
    figures: Mapping[str, bytes],
    mistakes: Sequence[np.ndarray | None],
    doubtful: Sequence[np.ndarray | None],
) -> str:
    """Returns a page in HTML that loads nothing from anywhere; links lead to files beside it.

    Args:
      values: what metrics.json holds.
      figures: {name of a file without .png: what it holds}.
      mistakes: pictures of `worst_mistakes`, each [H, W, 3] float in [0, 1], or None.
      doubtful: the same of `least_certain`.
    """
    title = f"{values['run']}: {values['split']}" if values.get("run") else f"Report: {values['split']}"
    worst = _pictures(values["worst_mistakes"], mistakes) or "<p>There are no mistakes.</p>"
    curve = _chart("roc_curve", figures)
    is_several = bool(values.get("several_labels"))
    told = "The most probable of the wrong predictions."
    if is_several:
        told = (
            "Wrong in a label or more, the surest first. The probability beside each is that its least "
            "certain label is as predicted."
        )
    parts = [
        (several.headline if is_several else headline)(values, title=title),
        missing(values),
        pretrained(values),
        prevalence(values),
        "<h2>Worst mistakes</h2>",
        f'<p class="soft">{told} A wrong label looks like this, too.</p>',
        worst,
        "<h2>Least certain</h2>",
        '<p class="soft">Right or wrong: the predictions with the lowest probability.</p>',
        _pictures(values["least_certain"], doubtful),
        "<h2>In numbers</h2>",
        *(_of_several(values, figures) if is_several else _of_one(values, figures)),
        measured(values),
        f"<h2>ROC curve</h2>{_SOFT.format(_OF_ROC)}{curve}" if curve else "",
        f"<h2>Training</h2>{_chart('learning_curves', figures)}" if "learning_curves" in figures else "",
        left_out(values),
        "<h2>The run</h2>",
        facts(values),
        _files(figures),
    ]
    # Whatever a name or a label holds: nothing is run, and nothing is loaded.
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    head = (
        '<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>"
    )
    body = "\n".join(part for part in parts if part)
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n'


_SOFT = '<p class="soft">{}</p>'
_OF_ROC = "How many of a class are found, and how many others with them, wherever the line is drawn."


def _of_one(values: Mapping[str, Any], figures: Mapping[str, bytes]) -> list[str]:
    """Returns the parts on numbers where an example has one class."""
    return [
        numbers(values),
        "<h2>Confusion matrix</h2>",
        _SOFT.format("Which classes are taken for which others."),
        confusions(values),
        _chart("confusion_matrix", figures),
        "<h2>By class</h2>",
        by_class(values),
        _chart("per_class", figures),
        "<h2>Calibration</h2>",
        _SOFT.format("Of the predictions with 80 % probability, 80 % should be right."),
        calibration(values["calibration"], why_not=values["undefined"].get("calibration", "")),
        _chart("reliability", figures),
    ]


def _of_several(values: Mapping[str, Any], figures: Mapping[str, bytes]) -> list[str]:
    """Returns the same where it has any number of labels."""
    return [
        several.numbers(values),
        "<h2>By label</h2>",
        several.by_label(values),
        _chart("per_class", figures),
        "<h2>Labels seen together</h2>",
        several.together(values),
        _chart("cooccurrence", figures),
        "<h2>Calibration</h2>",
        _SOFT.format("Of the predictions with 80 % probability, 80 % should be right."),
        several.calibration(values),
        _chart("reliability", figures),
    ]


def thumbnail(image: np.ndarray) -> str:
    """Returns a picture [H, W, 3] float in [0, 1] as a data: URI, no side longer than `THUMBNAIL_PX`."""
    picture = Image.fromarray(np.uint8(np.clip(image, 0.0, 1.0) * 255 + 0.5))
    picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=85)
    return _data_uri("jpeg", buffer.getvalue())


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _chart(name: str, figures: Mapping[str, bytes]) -> str:
    if name not in figures:
        return ""
    return f'<img class="chart" alt="{_ALT[name]}" src="{_data_uri("png", figures[name])}">'


def _pictures(listed: Sequence[Mapping[str, Any]], images: Sequence[np.ndarray | None]) -> str:
    """Returns what is listed in metrics.json, each with its picture where there is one."""
    if not listed:
        return ""
    cells = []
    for row, image in zip(listed, images, strict=True):
        kind = "right" if row["label"] == row["prediction"] else "wrong"
        seen = f'<img alt="" src="{thumbnail(image)}">' if image is not None else ""
        cells.append(
            f"<figure>{seen}<figcaption>{escape(row['label'])} &rarr; "
            f'<b class="{kind}">{escape(row["prediction"])}</b> {percent(row["probability"])}<br>'
            f"<small>{escape(row['id'])}</small></figcaption></figure>"
        )
    return f'<div class="pictures">{"".join(cells)}</div>'


def _files(figures: Mapping[str, bytes]) -> str:
    links = [f'<li><a href="{name}">{name}</a>: {what}</li>' for name, what in FILES.items()]
    # The curves of a run lie with its first report alone.
    links += [f'<li><a href="{n}.png">{n}.png</a></li>' for n in figures if n != "learning_curves"]
    return (
        f'<h2>Files</h2><p class="soft">Beside this page, where it was written.</p><ul>{"".join(links)}</ul>'
    )
