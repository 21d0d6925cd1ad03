"""The pages of an audit and of near duplicates: files that hold all they show."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from trainer.report.page import STYLE, thumbnail

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_PAIRS_STYLE = """
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(17.5rem, 1fr)); gap: 1rem; }
.pair { display: flex; gap: .4rem; background: var(--card); border-radius: .4rem; padding: .5rem; }
.pair figure { margin: 0; width: 50%; font-size: .8rem; line-height: 1.3; }
.pair img { display: block; width: 100%; } .pair small { color: var(--soft); }
"""


@dataclass(frozen=True)
class Shown:
    """A picture on a page: `image` is [H, W, 3] float in [0, 1], `suggested` empty or another class."""

    image: np.ndarray
    label: str
    suggested: str
    name: str


def audit_page(
    source: str,
    sections: Sequence[tuple[str, int, Sequence[Shown]]],
    pairs: Sequence[tuple[Shown, Shown]],
    *,
    num_pairs: int,
) -> str:
    """Returns the page of an audit.

    Args:
      source: whose pictures.
      sections: (reason, how many pictures there are, the first of them), those with pictures are shown.
      pairs: the first near duplicates.
      num_pairs: how many there are.
    """
    parts = [
        "<h1>Pictures to look at</h1>",
        f'<p class="soft">{escape(source)}. Nothing was changed. To correct labels, write a class, or '
        "<code>leave out</code>, into the column <code>new_label</code> of audit.csv, and train with "
        "<code>--relabel=audit.csv</code>.</p>",
    ]
    for reason, count, shown in sections:
        if count:
            parts += [_title(reason.capitalize(), count, len(shown)), _grid(shown)]
    if num_pairs:
        parts += [_title("Near duplicates", num_pairs, len(pairs), unit="pairs"), _pairs(pairs)]
    if len(parts) == 2:
        parts.append("<p>Nothing was found.</p>")
    return _whole("Pictures to look at", parts)


def pairs_page(
    source: str, pairs: Sequence[tuple[Shown, Shown]], *, num_pairs: int, num_crossing: int, what: str
) -> str:
    """Returns the page of the near duplicates of a run.

    Args:
      source: whose pictures.
      pairs: the first of them.
      num_pairs: how many there are.
      num_crossing: how many were in two splits.
      what: value of --near_duplicates, which says what became of those.
    """
    effect = {
        "report": "Nothing was changed: the score may be too good",
        "group": "All pictures that hang together were then put into one split",
        "drop": "The earlier split then lost its copy, so that the later one stays whole",
    }[what]
    parts = [
        "<h1>Near duplicates</h1>",
        f'<p class="soft">{escape(source)}. {num_crossing:,} of {num_pairs:,} pairs were in two splits '
        f"when the pictures were divided. {effect} (<code>--near_duplicates={escape(what)}</code>). All are "
        "in near_duplicates.csv.</p>",
        _title("Pairs", num_pairs, len(pairs), unit="pairs") if num_pairs else "<p>There are none.</p>",
        _pairs(pairs),
    ]
    return _whole("Near duplicates", parts)


def _title(name: str, count: int, shown: int, *, unit: str = "pictures") -> str:
    more = f", the first {shown:,} of them here" if shown < count else ""
    return f'<h2>{escape(name)}</h2><p class="soft">{count:,} {unit}{more}.</p>'


def _grid(shown: Sequence[Shown]) -> str:
    return f'<div class="pictures">{"".join(map(_figure, shown))}</div>'


def _pairs(pairs: Sequence[tuple[Shown, Shown]]) -> str:
    cells = (f'<div class="pair">{_figure(one)}{_figure(other)}</div>' for one, other in pairs)
    return f'<div class="pairs">{"".join(cells)}</div>'


def _figure(one: Shown) -> str:
    instead = f' &rarr; <b class="wrong">{escape(one.suggested)}?</b>' if one.suggested else ""
    return (
        f'<figure><img alt="" src="{thumbnail(one.image)}"><figcaption>{escape(one.label)}{instead}<br>'
        f"<small>{escape(one.name)}</small></figcaption></figure>"
    )


def _whole(title: str, parts: Sequence[str]) -> str:
    # Whatever a name or a label holds: nothing is run, and nothing is loaded.
    head = (
        '<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{_PAIRS_STYLE}</style>"
    )
    body = "\n".join(parts)
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n'
