"""Fonts for the letters of a figure that the usual font lacks, as far as one is installed."""

import functools
import logging
import os
import unicodedata
from collections.abc import Iterable

import matplotlib
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

_log = logging.getLogger("trainer")
# They have a box, or nothing, for every letter there is.
_NO_LETTERS = ("last resort", "lastresort", "adobe blank", "adobeblank", "adobe notdef")
_MOST_SHOWN = 10
_CJK = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO")
_told: set[str] = set()


def fit_fonts(figure: Figure) -> None:
    """Adds fonts behind the usual one for the letters in a figure that it lacks.

    Where none that is installed has them, a line in the log says which, once for each script.
    """
    texts: list[Text] = [text for text in figure.findobj(Text) if not text.get_text().isascii()]
    if not texts:
        return
    missing = _letters(text.get_text() for text in texts) - _usual_letters()
    if not missing:
        return
    families, boxes = fallbacks(frozenset(missing))
    for text in texts:
        text.set_fontfamily([*text.get_fontfamily(), *families])
    _tell(boxes)


@functools.lru_cache(maxsize=64)
def fallbacks(letters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Returns the families of installed fonts that have letters, and the letters that none has.

    As few families as it takes; of those that have as many, a regular one without serifs.
    """
    fonts = _installed()
    found: list[str] = []
    left = set(letters)
    while left and fonts:
        best = min(fonts, key=lambda font: (-len(left & _letters_of(font[1])), _oddity(*font), font))
        if not left & _letters_of(best[1]):
            break
        found.append(best[0])
        left -= _letters_of(best[1])
    return tuple(found), frozenset(left)


def _letters(texts: Iterable[str]) -> set[str]:
    """Returns what is drawn: no spaces, and nothing that only joins or turns what is beside it."""
    kinds = {letter: unicodedata.category(letter) for text in texts for letter in text}
    return {letter for letter, kind in kinds.items() if kind == "Co" or kind[0] not in "ZC"}


@functools.cache
def _usual_letters() -> frozenset[str]:
    return _letters_of(font_manager.findfont(font_manager.FontProperties()))


@functools.cache
def _letters_of(path: str) -> frozenset[str]:
    try:
        return frozenset(map(chr, FT2Font(path).get_charmap()))
    except Exception:  # Fonts of bitmaps, damaged ones: FreeType has an error for each.
        return frozenset()


def _installed() -> list[tuple[str, str]]:
    """Returns (family, path) of all fonts but those that come with Matplotlib."""
    manager, own = font_manager.fontManager, matplotlib.get_data_path()
    known = {entry.fname for entry in manager.ttflist}
    # Matplotlib remembers what there was: who installs a font because of our line is to see it.
    for path in sorted(set(font_manager.findSystemFonts()) - known):
        try:
            manager.addfont(path)
        except Exception:  # As above.
            _log.debug("the font %s cannot be read", path)
    fonts = {(entry.name, entry.fname) for entry in manager.ttflist if not entry.fname.startswith(own)}
    return sorted(font for font in fonts if not font[0].lower().strip(".").startswith(_NO_LETTERS))


def _oddity(family: str, path: str) -> tuple[bool, bool, int]:
    name = f"{family} {os.path.basename(path)}".lower()
    return (
        any(word in name for word in ("bold", "italic", "oblique", "black", "light", "thin", "mono")),
        "serif" in name.replace("sans serif", "") or "mincho" in name or "ming" in name,
        len(family),
    )


def _tell(boxes: Iterable[str]) -> None:
    scripts: dict[str, list[str]] = {}
    for letter in sorted(boxes):
        scripts.setdefault(_script(letter), []).append(letter)
    new = {script: letters for script, letters in scripts.items() if script not in _told}
    if not new:
        return
    _told.update(new)
    shown = "; ".join(
        f"{script}: {' '.join(letters[:_MOST_SHOWN])}{' ...' if len(letters) > _MOST_SHOWN else ''}"
        for script, letters in new.items()
    )
    package = "fonts-noto-cjk" if any(script in _CJK for script in new) else "fonts-noto-core"
    _log.warning(
        "figures show boxes for letters that no installed font has (%s): install one that has them, such as "
        "Noto (package %s). index.html shows them where it is opened",
        shown, package,
    )  # fmt: skip


def _script(letter: str) -> str:
    """Returns what the letters of a script are called in Unicode, such as DEVANAGARI; other for signs."""
    if not unicodedata.category(letter).startswith(("L", "M")):
        return "other signs"
    return unicodedata.name(letter, "other signs").split(" ")[0].split("-")[0]
