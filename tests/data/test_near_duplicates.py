"""Near duplicates: planted copies of drawn pictures are found, and what is only alike is not."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from trainer.data.inspect.scan import scan
from trainer.data.near_duplicates import Pair, find_near_duplicates, group_keys
from trainer.data.sources.base import MemorySource
from trainer.tasks import SINGLE_LABEL


def scene(seed, size=(160, 120)):
    """A picture of soft blobs, as different from another seed's as two photos are."""
    small = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def jpeg(image, quality=95):
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()


def source_of(encoded):
    count = len(encoded)
    return MemorySource("m", ("a",), [f"{i}" for i in range(count)], np.zeros(count, np.int64), encoded)


def found_in(encoded, **more):
    source = source_of(encoded)
    return find_near_duplicates(source, scan(source), task=SINGLE_LABEL, **more)


COPIES = {
    "rescaled": lambda image: jpeg(image.resize((57, 44))),
    "recompressed": lambda image: jpeg(image, quality=25),
    "cropped": lambda image: jpeg(image.crop((9, 2, 152, 115))),
    "mirrored": lambda image: jpeg(ImageOps.mirror(image)),
    "grey": lambda image: jpeg(image.convert("L")),
    "all": lambda image: jpeg(ImageOps.mirror(image).crop((2, 5, 155, 118)).resize((90, 70)), quality=40),
}


@pytest.fixture(scope="module")
def with_copies():
    """Twelve scenes, then a copy of each kind of the first ones."""
    scenes = [scene(seed) for seed in range(12)]
    copies = [make(scenes[i]) for i, make in enumerate(COPIES.values())]
    return [*map(jpeg, scenes), *copies]


def test_every_kind_of_copy_is_found_and_nothing_else(with_copies):
    pairs = found_in(with_copies)
    assert sorted((pair.first, pair.second) for pair in pairs) == [(i, 12 + i) for i in range(len(COPIES))]
    assert [pair.bits for pair in pairs] == sorted(pair.bits for pair in pairs)


def test_the_same_bytes_are_the_same_picture_however_many(with_copies):
    pairs = found_in([with_copies[0]] * 15 + [with_copies[1]])
    assert group_keys(pairs, 16) == [0] * 15 + [15]
    assert {pair.bits for pair in pairs} == {0}


def test_a_picture_alone_a_plain_one_and_a_bad_one_are_nobodys_copy():
    plain = jpeg(Image.new("RGB", (50, 50), "white"))
    assert found_in([jpeg(scene(0))]) == []
    assert found_in([jpeg(scene(0)), plain, b"no picture", b"no picture"]) == []


def test_an_upright_picture_is_a_copy_of_one_that_is_turned_by_its_exif():
    image, exif = scene(3), Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    # Orientation 6: the file lies on its left side.
    image.transpose(Image.Transpose.ROTATE_90).save(buffer, format="JPEG", quality=95, exif=exif)
    assert [(p.first, p.second) for p in found_in([jpeg(image), buffer.getvalue(), jpeg(scene(4))])] == [
        (0, 1)
    ]


def test_a_search_is_recorded_and_a_damaged_record_is_made_anew(with_copies, tmp_path, caplog):
    caplog.set_level("INFO", "trainer")
    first = found_in(with_copies, recorded=tmp_path)
    (record,) = tmp_path.iterdir()
    caplog.clear()
    assert found_in(with_copies, recorded=tmp_path) == first
    assert "compared" not in caplog.text
    record.write_text('{"pairs": [[0, 99, 1]]}')
    assert found_in(with_copies, recorded=tmp_path) == first
    assert "compared" in caplog.text
    record.write_text("{")
    assert found_in(with_copies, recorded=tmp_path) == first
    # Another picture is another search.
    found_in([*with_copies[1:], jpeg(scene(99))], recorded=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_groups_are_what_hangs_together():
    assert group_keys([Pair(1, 2, 0), Pair(4, 5, 9), Pair(2, 4, 3)], 7) == [0, 1, 1, 3, 1, 1, 6]
    assert group_keys([], 2) == [0, 1]
