"""Heat drawn over pictures, by the pixels that come out."""

import io

import numpy as np
import pytest
from PIL import Image

from trainer.report.overlays import contact_sheet, overlay, overlay_png, panels_png


def pixels_of(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) / 255


def test_what_is_cold_is_dim_and_grey_and_what_is_hot_is_bright():
    picture = np.full((8, 16, 3), [0.2, 0.6, 1.0])
    heat = np.zeros((8, 16))
    heat[:, 8:] = 1
    found = overlay(picture, heat)
    assert (found.shape, found.min() >= 0, found.max() <= 1) == ((8, 16, 3), True, True)
    grey = 0.299 * 0.2 + 0.587 * 0.6 + 0.114 * 1.0
    np.testing.assert_allclose(found[:, 0], 0.6 * grey)
    # The upper end of the colours is a pale yellow.
    red, green, blue = found[0, -1]
    assert min(red, green) > 0.6 > blue > found[0, 0, 0]


def test_the_picture_is_seen_in_the_heat_and_heat_rises():
    heat = np.ones((1, 4))
    black, white = (overlay(np.full((1, 4, 3), value), heat)[0, 0] for value in (0.0, 1.0))
    assert (white - black > 0.3).all()
    reds = overlay(np.full((1, 9, 3), 0.5), np.linspace(0, 1, 9)[None])[0, :8, 0]
    assert (np.diff(reds) > 0).all()


def test_heat_is_stretched_over_the_picture():
    picture = np.full((40, 80, 3), 0.5)
    found = overlay(picture, np.array([[0.0, 1.0]], np.float32))
    np.testing.assert_allclose(found[:, 0], 0.3)
    assert found.shape == picture.shape
    # The middle, by straight lines, is half as hot.
    middle = overlay(picture[:, :1], np.array([[0.5]], np.float32))[0, 0]
    np.testing.assert_allclose(found[0, 39:41].mean(axis=0), middle, atol=0.03)


def test_an_overlay_has_the_size_of_its_picture():
    picture = np.random.default_rng(0).random((30, 50, 3))
    heat = np.random.default_rng(1).random((3, 5))
    np.testing.assert_allclose(pixels_of(overlay_png(picture, heat)), overlay(picture, heat), atol=0.5 / 255)


@pytest.mark.parametrize("size", [(480, 480), (320, 480), (480, 20), (1, 480), (5, 3)])
def test_panels_of_any_shape_with_any_title(size):
    picture = np.full((*size, 3), [0.0, 1.0, 0.0])
    title = (
        "$a$ <b> "
        + "long " * 60
        + "\n\ud83c\udf3c\u82b1.jpg".encode("utf-16", "surrogatepass").decode("utf-16")
    )
    found = pixels_of(panels_png(picture, np.zeros((2, 2), np.float32), title=title))
    height, width = found.shape[:2]
    assert 90 < height < 620
    assert 700 < width < 1600
    green = (found == [0, 1, 0]).all(axis=-1)
    # The picture is the left one of three, in its own aspect.
    rows, columns = np.flatnonzero(green.any(axis=1)), np.flatnonzero(green.any(axis=0))
    assert columns[-1] < width / 3
    assert np.ptp(rows) + 1 == pytest.approx(480 * size[0] / max(size), abs=3)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_contact_sheet_of_different_sizes(count):
    colours = np.eye(3)[np.arange(count) % 3]
    overlays = [np.full((10 + 3 * i, 20, 3), colour) for i, colour in enumerate(colours)]
    png = contact_sheet(overlays, [f"name {i}\ntruly $x$ and more" for i in range(count)])
    found = pixels_of(png)
    for colour in np.unique(colours, axis=0):
        assert (found == colour).all(axis=-1).sum() > 240 * 100
    assert png == contact_sheet(overlays, [f"name {i}\ntruly $x$ and more" for i in range(count)])
