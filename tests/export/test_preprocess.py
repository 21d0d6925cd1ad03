"""The file that export puts beside its models: as training reads and resizes, on files of every kind."""

import ast
import importlib.util
import json
import struct
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.data.kinds import KINDS, exif
from tests.data.pictures import encode
from trainer.data.decode import decode, to_contract
from trainer.data.inspect.bad_pictures import BadPictureError
from trainer.data.inspect.headers import inspect_picture
from trainer.export import preprocess
from trainer.values import FITS, Contract

CONTRACT = Contract(48, 32, (0.0, 1.0), feature_width=2, any_size=True)


def photo(width: int, height: int) -> Image.Image:
    """A picture with edges and fine detail, which smoothing would change."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 1.7) * np.cos(y / 2.3), np.sin((x + y) / 3.1), (x // 5 + y // 3) % 2 - 0.5]
    return Image.fromarray(np.uint8(127 + 100 * np.stack(waves, axis=-1)))


@pytest.fixture
def read_picture(tmp_path):
    """read(data, **changes of export.json) with the file as it is shipped, in a folder of its own."""
    place = tmp_path / "preprocess.py"
    place.write_text(Path(preprocess.__file__).read_text())
    spec = importlib.util.spec_from_file_location("shipped", place)
    shipped = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(shipped)

    def read(data, *, as_bytes=False, contract=CONTRACT, **changes):
        about = {"exif": "apply", "decoding": "exact", **changes, "contract": contract}
        if isinstance(contract, Contract):
            about["contract"] = asdict(contract)
        (tmp_path / "export.json").write_text(json.dumps(about))
        return shipped.read_picture(data, as_bytes=as_bytes)

    return read


def as_training(
    data: bytes, *, decoding: str = "exact", exif: str = "apply", contract: Contract = CONTRACT
) -> np.ndarray:
    turn = inspect_picture(data, name="x").orientation if exif == "apply" else 1
    at_least = (CONTRACT.height_px, CONTRACT.width_px) if decoding == "scaled" else None
    image = decode(tf.constant(data), tf.constant(turn), at_least=at_least)
    return to_contract(image, contract).numpy()


def test_resizing_is_that_of_training_to_the_last_bit():
    draw = np.random.default_rng(0)
    for _ in range(60):
        (height, width), (to_height, to_width) = draw.integers(1, 500, 2), draw.integers(1, 300, 2)
        pixels = draw.integers(0, 256, [height, width, 3]).astype(np.uint8)
        image01 = tf.image.convert_image_dtype(pixels, tf.float32)
        wanted = tf.image.resize(image01, [to_height, to_width]).numpy()
        found = preprocess.resize(pixels, int(to_height), int(to_width))
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, wanted)


def test_every_fit_is_that_of_training():
    """To the last bit, or, where it is smoothed, within 1e-5; whatever shapes picture and network have."""
    draw = np.random.default_rng(1)
    shapes = [(1, 1), (1, 3000), (3000, 1), (48, 32), (7, 2001), *draw.integers(1, 400, [20, 2]).tolist()]
    for shape in shapes:
        pixels = draw.integers(0, 256, [*shape, 3]).astype(np.uint8)
        to_height, to_width = draw.integers(1, 200, 2).tolist()
        for fit in FITS:
            for antialias in (False, True):
                how = {"fit": fit, "antialias": antialias, "resizes_bytes": antialias}
                contract = Contract(to_height, to_width, (0.0, 1.0), 2, any_size=True, **how)
                wanted = to_contract(tf.constant(pixels), contract).numpy()
                found = preprocess.to_contract(pixels, asdict(contract))
                assert (found.shape, found.dtype) == (wanted.shape, np.float32)
                np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * antialias)


@pytest.mark.parametrize("method", ["bicubic", "lanczos3", "lanczos5", "nearest"])
@pytest.mark.parametrize("antialias", [False, True])
def test_every_method_is_that_of_training(method, antialias):
    draw = np.random.default_rng(2)
    for shape in [(1, 1), (1, 300), (48, 32), *draw.integers(1, 200, [12, 2]).tolist()]:
        pixels = draw.integers(0, 256, [*shape, 3]).astype(np.uint8)
        height, width = draw.integers(1, 100, 2).tolist()
        image01 = tf.image.convert_image_dtype(pixels, tf.float32)
        wanted = tf.image.resize(image01, [height, width], method=method, antialias=antialias).numpy()
        found = preprocess.resize(pixels, height, width, antialias=antialias, method=method)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("turn", [1, 6])
@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_pictures_are_upright_before_they_are_cropped_or_padded(fit, turn, read_picture):
    contract = replace(CONTRACT, fit=fit, antialias=True)
    data = encode(photo(400, 300), "PNG", exif=exif(turn))
    found = read_picture(data, contract=contract)
    np.testing.assert_allclose(found[0], as_training(data, contract=contract), atol=1e-5)
    in_bytes = read_picture(data, contract=contract, as_bytes=True)
    np.testing.assert_array_equal(in_bytes, np.round(found * 255).astype(np.uint8))


def test_a_model_that_is_older_than_the_choice_stretches(read_picture, tmp_path):
    data = encode(photo(40, 30), "PNG")
    wanted = read_picture(data)
    old = {name: value for name, value in asdict(CONTRACT).items() if name not in ("fit", "antialias")}
    np.testing.assert_array_equal(read_picture(data, contract=old), wanted)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_pictures_are_upright(form, turn, read_picture, tmp_path):
    data = encode(photo(400, 300), form, exif=exif(turn), **({"lossless": True} if form == "WEBP" else {}))
    found = read_picture(data)
    assert (found.shape, found.dtype) == ((1, 48, 32, 3), np.float32)
    np.testing.assert_allclose(found[0], as_training(data), atol=0.04 if form == "JPEG" else 0)
    (tmp_path / "a b.jpg").write_bytes(data)
    np.testing.assert_array_equal(read_picture(str(tmp_path / "a b.jpg")), found)
    np.testing.assert_array_equal(read_picture(data, as_bytes=True), np.round(found * 255).astype(np.uint8))


@pytest.mark.parametrize("turn", [1, 6])
def test_as_the_run_was_told(turn, read_picture):
    """--decode=scaled and --exif=ignore; a JPEG of eight times the size is decoded at an eighth."""
    data = encode(photo(8 * 48 + 7, 8 * 48 + 3), "JPEG", exif=exif(turn), quality=95)
    for options in ({"decoding": "scaled"}, {"exif": "ignore"}, {"decoding": "scaled", "exif": "ignore"}):
        found, wanted = read_picture(data, **options)[0], as_training(data, **options)
        # Of waves as short as these, the decoders round a few pixels by 11 of 255.
        np.testing.assert_allclose(found, wanted, atol=0.06)
        assert np.abs(found - wanted).mean() < 0.01
    assert np.abs(as_training(data) - as_training(data, decoding="scaled")).max() > 0.1


def test_the_orientation_is_that_of_training_whatever_its_type(read_picture):
    for kind, form in ((6, "b"), (8, "h"), (9, "i")):
        entry = struct.pack(">HHI", 0x0112, kind, 1) + struct.pack(f">{form}", 6).ljust(4, b"\0")
        block = b"MM\0*" + struct.pack(">IH", 8, 1) + entry + bytes(4)
        app1 = b"\xff\xe1" + struct.pack(">H", len(block) + 8) + b"Exif\0\0" + block
        whole = encode(photo(40, 30), "JPEG")
        data = whole[:2] + app1 + whole[2:]
        assert inspect_picture(data, name="x").orientation == 6
        np.testing.assert_allclose(read_picture(data)[0], as_training(data), atol=0.04)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_kind_of_picture(read_picture):
    """What training reads, within the rounding of a decoder."""
    far = {}
    for name, data in KINDS.items():
        try:
            wanted = as_training(data)
        except BadPictureError:
            continue
        far[name] = float(np.abs(read_picture(data)[0] - wanted).max())
    assert len(far) > 20
    assert {name: value for name, value in far.items() if value > 0.07} == {}


def test_what_is_transparent_in_a_gif_is_as_training_sees_it(read_picture):
    """Black, whatever colour its palette has there."""
    picture = photo(48, 32).convert("P")
    white = Image.new("P", (48, 32))
    white.putpalette([255, 255, 255, 200, 30, 60, *[0] * 762])
    white.paste(1, (8, 8, 40, 24))
    for one in (picture, white):
        data = encode(one, "GIF", transparency=0)
        found = read_picture(data)[0]
        np.testing.assert_allclose(found, as_training(data), atol=0.01)
    assert (found[0, 0] == 0).all()
    assert found[24, 16].max() > 0.5


def test_what_it_cannot_do_is_an_error(read_picture):
    other = Contract(48, 32, (0.0, 1.0), feature_width=2, any_size=True, resize="gaussian")
    with pytest.raises(ValueError, match="does not resize by gaussian"):
        read_picture(encode(photo(40, 30), "PNG"), contract=other)
    with pytest.raises(ValueError, match="does not know how to fold a picture"):
        read_picture(encode(photo(40, 30), "PNG"), contract=replace(CONTRACT, fit="fold"))
    for data in (b"text", encode(photo(40, 30), "PNG")[:100]):
        with pytest.raises((OSError, SyntaxError)):
            read_picture(data)


def test_it_needs_nothing_but_numpy_and_pillow():
    tree = ast.parse(Path(preprocess.__file__).read_text())
    statements = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {getattr(node, "module", None) or node.names[0].name for node in statements}
    assert names == {"collections.abc", "io", "json", "pathlib", "typing", "numpy", "PIL"}
