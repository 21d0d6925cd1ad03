"""TensorBoard's own projector reads what is written for it."""

import numpy as np
import pytest
import tensorflow as tf

from tests.helpers.tabs import Projector
from trainer.record.projector import framed, make_sprite, thumb_size, write_projector
from trainer.record.summaries import Summaries
from trainer.record.workdir import Workdir

FEATURES = np.array([[1.5, -2.0, 1e-7], [0.0, 123456.7, 3.0], [4.0, 5.0, 6.0]], np.float32)
COLUMNS = {
    "label": ["rose", "two\twords", "line\nbreak"],
    "prediction": ["rose", "tulip", "bad \udcff byte"],
    "id": ["a/1.jpg", "b/2.jpg", "c/3.jpg"],
}


def colours(count, size=4):
    """[count, size, size, 3] uint8: picture i is all i + 1."""
    return np.broadcast_to(np.arange(1, count + 1)[:, None, None, None], (count, size, size, 3)).astype(
        np.uint8
    )


def written(folder, count=3):
    workdir = Workdir(str(folder))
    summaries = Summaries(workdir)
    workdir.make()
    # Without event files, TensorBoard knows no run here.
    summaries.scalars("validation", 1, {"loss": 1.0})
    summaries.close()
    columns = {what: (words * count)[:count] for what, words in COLUMNS.items()}
    write_projector(
        workdir.root / "validation",
        name="features",
        features=np.resize(FEATURES, (count, 3)),
        sprite=make_sprite(colours(count), columns["label"]),
        columns=columns,
    )
    return workdir


@pytest.mark.parametrize(("logdir", "run"), [(".", "validation"), ("..", "mine/validation")])
def test_the_tab_opens_from_the_run_and_from_the_folder_of_all_runs(logdir, run, tmp_path):
    workdir = written(tmp_path / "mine")
    tab = Projector((workdir.root / logdir).resolve())
    assert tab.get("/runs").json == [run]
    [embedding] = tab.get("/info", run=run).json["embeddings"]
    assert embedding["tensorName"] == "features"
    assert embedding["tensorShape"] == [3, 3]
    found = np.frombuffer(tab.get("/tensor", run=run, name="features").data, np.float32)
    np.testing.assert_allclose(found.reshape(3, 3), FEATURES, rtol=1e-5)
    assert tab.get("/metadata", run=run, name="features").text.splitlines() == [
        "label\tprediction\tid",
        "rose\trose\ta/1.jpg",
        "two\\twords\ttulip\tb/2.jpg",
        "line\\nbreak\tbad ? byte\tc/3.jpg",
    ]
    sprite = tf.io.decode_png(tab.get("/sprite_image", run=run, name="features").data).numpy()
    width, height = embedding["sprite"]["singleImageDim"]
    assert (width, height) == (4, 4)
    assert sprite.shape == (8, 8, 3)


@pytest.mark.parametrize(("count", "side"), [(1, 1), (2, 2), (4, 2), (5, 3), (9, 3)])
def test_pictures_stand_row_by_row_in_a_square(count, side, tmp_path):
    workdir = written(tmp_path / "mine", count)
    sprite = tf.io.decode_png((workdir.root / "validation/projector/sprite.png").read_bytes()).numpy()
    assert sprite.shape == (4 * side, 4 * side, 3)
    for place in range(side * side):
        row, column = divmod(place, side)
        # Within the frame.
        part = sprite[4 * row + 1 : 4 * row + 3, 4 * column + 1 : 4 * column + 3]
        assert (part == (place + 1 if place < count else 0)).all()


def test_frames_have_the_colours_of_the_labels():
    labels = ["b", "a", "b", "c"]
    found = framed(colours(4, size=24), labels)
    assert (found[:, 2:-2, 2:-2] == colours(4, size=24)[:, 2:-2, 2:-2]).all()
    frames = found[:, 0, 0].astype(int)
    assert (frames[0] == frames[2]).all()
    for a, b in ((0, 1), (0, 3), (1, 3)):
        assert np.abs(frames[a] - frames[b]).max() > 100
    for edge in (found[:, :2], found[:, -2:], found[:, :, :2], found[:, :, -2:]):
        assert (edge == found[:, :1, :1]).all()


def test_it_is_the_same_again(tmp_path):
    found = []
    for _ in range(2):
        folder = written(tmp_path / "mine").root / "validation"
        found.append(
            {
                path: path.read_bytes()
                for path in folder.rglob("*")
                if "tfevents" not in path.name and path.is_file()
            }
        )
    assert found[0] == found[1]
    assert len(found[0]) == 4


def test_thumbnails_fit_into_what_browsers_can_show():
    assert [thumb_size(n) for n in (1, 500, 128 * 128)] == [64, 64, 64]
    assert thumb_size(128 * 128 + 1) == 63
    for count in (20_000, 10**6):
        assert thumb_size(count) * np.ceil(np.sqrt(count)) <= 8192
