"""Any bytes are a bad picture, with a reason, or pixels: nothing that a scan passes fails in training."""

import contextlib
import ctypes
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.data.kinds import KINDS
from trainer.data.inspect.scan import Scan, scan
from trainer.data.pipeline import Pipeline
from trainer.data.sources import MemorySource
from trainer.values import Contract

# The long ones are the same as others but for their length.
SMALL = {kind: data for kind, data in KINDS.items() if len(data) < 10_000}
MAX_PIXELS = 1_000_000
CONTRACT = Contract(8, 6, (-1.0, 1.0), feature_width=1, any_size=True)
A_BATCH = 50
# Numbers that are on the edge of something, and beginnings of what decoders look for.
VALUES = [
    *(number.to_bytes(width, order) for width in (1, 2, 4) for order in ("little", "big")
      for number in (0, 1, 2, 127, 128, 255)),
    *(number.to_bytes(4, order) for order in ("little", "big")
      for number in (65535, 65536, 2**24 - 1, 2**31 - 1, 2**31, 2**32 - 1)),
    *(bytes([0xFF, marker]) for marker in (0xC0, 0xC2, 0xC4, 0xC9, 0xD0, 0xD8, 0xD9, 0xDA, 0xDB, 0xDD, 0xE1)),
    b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"acTL", b"eXIf", b"GIF87a", b"\x21\xf9\x04", b",", b";",
    b"BM", b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"EXIF", b"Exif\0\0II*\0", b"Adobe",
]  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A picture of some kind with up to six changes, or a few bytes that are none."""
    data = bytearray(SMALL[draw(st.sampled_from(sorted(SMALL)))])
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3, 6]))):
        # In the header as often as elsewhere.
        end = draw(st.sampled_from([60, 60, 700, len(data)]))
        at = draw(st.integers(0, max(1, min(end, len(data)))))
        length = draw(st.integers(1, 60))
        match draw(st.sampled_from(["bit", "value", "cut", "insert", "delete", "zero", "splice", "double"])):
            case "bit" if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "value":
                value = draw(st.sampled_from(VALUES))
                data[at : at + len(value)] = value
            case "cut":
                del data[at:]
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=40))
            case "delete":
                del data[at : at + length]
            case "zero":
                data[at : at + length] = bytes(length)
            case "splice":
                other = SMALL[draw(st.sampled_from(sorted(SMALL)))]
                start = draw(st.integers(0, len(other)))
                data[at : at + length] = other[start : start + draw(st.integers(1, 200))]
            case "double":
                data[at:at] = data[at : at + length]
    return with_right_checksums(bytes(data)) if draw(st.booleans()) else bytes(data)


def with_right_checksums(data: bytes) -> bytes:
    """A PNG with the checksums that its chunks should have: with wrong ones, nobody looks inside."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    made, at = data[:8], 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        made += data[at:end] + zlib.crc32(data[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return made + data[at:]


def fill_fresh_memory(value: int) -> None:
    """Has glibc fill what it hands out, so that pixels that nobody wrote differ from one time to the next."""
    with contextlib.suppress(AttributeError):
        perturb = -6
        ctypes.CDLL(None).mallopt(perturb, value)


def pixels(source: MemorySource, found: Scan, good: list[int], decoding: str) -> np.ndarray:
    """What training would be fed: [n, H, W, 3]."""
    pipeline = Pipeline(source, found, contract=CONTRACT, batch_size=A_BATCH, seed=0, decoding=decoding)
    (batch,) = pipeline.once(np.array(good, np.int64))
    assert batch["id"].numpy()[: len(good)].tolist() == good
    return batch["image"].numpy()[: len(good)]


def assert_bad_or_pixels(encoded: list[bytes]) -> None:
    try:
        assert_all_bad_or_pixels(encoded)
    except Exception:
        for data in encoded:
            print(data.hex())  # Shown of a test that fails: the last one is to blame.
            assert_all_bad_or_pixels([data])
        raise


def assert_all_bad_or_pixels(encoded: list[bytes]) -> None:
    count = len(encoded)
    ids = [str(k) for k in range(count)]
    source = MemorySource("memory:fuzz", ("a",), ids, np.zeros(count, np.int64), encoded)
    found = scan(source, max_pixels=MAX_PIXELS)
    for reason in found.bad.values():
        assert reason
        assert reason.isprintable()
        assert len(reason) <= 300
    good = [index for index in range(count) if index not in found.bad]
    print("STAT", count, len(good), len(set(encoded)))
    if good:
        for decoding in ("exact", "scaled"):
            fill_fresh_memory(0x55)
            first = pixels(source, found, good, decoding)
            fill_fresh_memory(0xAA)
            again = pixels(source, found, good, decoding)
            assert np.isfinite(first).all()
            assert first.min() >= -1
            assert first.max() <= 1
            np.testing.assert_array_equal(first, again)


BATCHES = st.lists(mutated(), min_size=A_BATCH, max_size=A_BATCH)
# What fails is printed, and small enough: to shrink a batch of pictures would take hours.
RUN = settings(
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)


@pytest.fixture(autouse=True)
def ordinary_memory():
    yield
    fill_fresh_memory(0)


def test_the_pictures_that_are_changed_are_whole():
    pictures = list(SMALL.values())
    source = MemorySource("m", ("a",), list(SMALL), np.zeros(len(SMALL), np.int64), pictures)
    assert scan(source, max_pixels=MAX_PIXELS).bad == {}


@settings(RUN, max_examples=3, derandomize=True)
@given(BATCHES)
def test_changed_pictures_are_bad_or_pixels(encoded):
    assert_bad_or_pixels(encoded)


@pytest.mark.slow
@settings(RUN, max_examples=50)
@given(BATCHES)
def test_2500_changed_pictures_are_bad_or_pixels(encoded):
    assert_bad_or_pixels(encoded)


@settings(RUN, max_examples=10, derandomize=True)
@given(
    st.lists(
        st.builds(bytes.__add__, st.sampled_from(VALUES), st.binary(max_size=60)), min_size=10, max_size=10
    )
)
def test_any_bytes_are_bad(encoded):
    assert_bad_or_pixels(encoded)
