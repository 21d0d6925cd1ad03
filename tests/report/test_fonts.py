"""Letters that the usual font lacks: taken from another font, or named."""

import contextlib
import logging

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager

from trainer.report import fonts
from trainer.report.figures import confusion_figure, picture_grid, roc_figure

# For private use: no font of this machine has them.
TRIANGLE, SQUARE, NONE, OTHER = map(chr, range(0xF1234, 0xF1238))
MATRIX = np.array([[3, 1], [0, 4]])


def write_font(path, letters: dict[str, list[tuple[int, int]]]) -> None:
    """Writes a font of polygons."""
    drawn = {".notdef": [(0, 0), (0, 9), (9, 0)], **{f"u{ord(c):X}": points for c, points in letters.items()}}
    glyphs = {}
    for name, points in drawn.items():
        pen = TTGlyphPen(None)
        pen.moveTo(points[0])
        for point in points[1:]:
            pen.lineTo(point)
        pen.closePath()
        glyphs[name] = pen.glyph()
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder(list(drawn))
    font.setupCharacterMap({ord(letter): f"u{ord(letter):X}" for letter in letters})
    font.setupGlyf(glyphs)
    font.setupHorizontalMetrics(dict.fromkeys(drawn, (1000, 0)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": "Two Letters", "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(path)


@pytest.fixture
def two_letters(tmp_path):
    """Within the test a font is installed that has a triangle and a square."""
    path = str(tmp_path / "two.ttf")
    shapes = {TRIANGLE: [(0, 0), (500, 900), (900, 0)], SQUARE: [(0, 0), (0, 900), (900, 900), (900, 0)]}
    write_font(path, shapes)
    font_manager.fontManager.addfont(path)
    fonts.fallbacks.cache_clear()
    yield
    manager = font_manager.fontManager
    manager.ttflist = [entry for entry in manager.ttflist if entry.fname != path]
    fonts.fallbacks.cache_clear()


def test_letters_are_taken_from_a_font_that_has_them(two_letters, caplog):
    def figures(name):
        yield confusion_figure(MATRIX, ["a", name], title=name)
        yield picture_grid(np.zeros([1, 4, 4, 3]), [f"{name} >\n{name} 0.5"])
        yield roc_figure([(name, np.array([0.0, 1.0]), np.array([0.0, 1.0]))] * 2, title="")

    for triangle, square, again in zip(figures(TRIANGLE), figures(SQUARE), figures(SQUARE), strict=True):
        assert triangle != square
        assert square == again
    assert caplog.text == ""


def test_what_no_font_has_is_said_once(two_letters, caplog):
    with contextlib.suppress(KeyError):
        fonts._told.remove("other signs")
    drawn = [confusion_figure(MATRIX, ["a", f"b {name}"], title=TRIANGLE) for name in (NONE, OTHER)]
    assert drawn[0] == drawn[1]  # The same box.
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        f"figures show boxes for letters that no installed font has (other signs: {NONE}): install one that "
        "has them, such as Noto (package fonts-noto-core). index.html shows them where it is opened"
    )


def test_figures_of_usual_letters_are_as_they_were(two_letters):
    families, boxes = fonts.fallbacks(frozenset(TRIANGLE + NONE))
    assert (families, boxes) == (("Two Letters",), {NONE})
    names = ["naïve", "Größe", "кошка", "γάτα"]
    before = confusion_figure(np.eye(4, dtype=int), names, title="")
    font_manager.fontManager.ttflist = [
        entry for entry in font_manager.fontManager.ttflist if entry.name != "Two Letters"
    ]
    assert confusion_figure(np.eye(4, dtype=int), names, title="") == before


SCRIPTS = {"猫": "CJK", "ひ": "HIRAGANA", "क": "DEVANAGARI", "จ": "THAI", "한": "HANGUL", "🌼": "other signs"}


@pytest.mark.parametrize(("letter", "script"), SCRIPTS.items())
def test_scripts_have_names(letter, script):
    assert fonts._script(letter) == script
