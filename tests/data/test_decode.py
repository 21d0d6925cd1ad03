"""Every kind of picture, from its header to its pixels. Pillow is the second opinion."""

import functools
import io
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from tests.data.kinds import JPEGS, LOSSLESS, OTHERS, exif, with_alpha
from tests.data.pictures import blocks, encode, noise
from tests.helpers.processes import run_program
from tests.helpers.undrawn import PLAIN
from trainer.data.decode import decode, scale, to_contract
from trainer.data.inspect.headers import inspect_picture
from trainer.data.inspect.trial import Trial
from trainer.values import Contract


@tf.function(input_signature=[tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.int32)])
def decode_in_graph(encoded, orientation):
    return decode(encoded, orientation)


def pixels(data: bytes, orientation: int = 1) -> np.ndarray:
    return decode_in_graph(data, orientation).numpy()


def by_pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def contract(size=(8, 6), value_range=(0.0, 1.0), resize="bilinear") -> Contract:
    return Contract(*size, value_range, 10, any_size=True, resize=resize)


@pytest.mark.parametrize("kind", LOSSLESS)
def test_formats_without_loss_give_pillows_pixels(kind):
    data = LOSSLESS[kind]
    Trial().check(data, name=kind)
    np.testing.assert_array_equal(pixels(data), by_pillow(data))


@pytest.mark.parametrize("kind", JPEGS)
def test_jpegs_give_the_very_pixels_of_decode_jpeg(kind):
    assert Trial().check(JPEGS[kind], name=kind).format == "JPEG"
    expected = tf.io.decode_jpeg(JPEGS[kind], channels=3).numpy()
    np.testing.assert_array_equal(pixels(JPEGS[kind]), expected)
    assert np.abs(expected.astype(int) - by_pillow(JPEGS[kind])).mean() < 3


def test_cmyk_jpeg_gets_the_right_colours():
    image = pixels(encode(blocks().convert("CMYK"), "JPEG", quality=95))
    for (y, x), colour in {(4, 2): (30, 40, 220), (4, 30): (200, 30, 40), (20, 30): (20, 180, 90)}.items():
        np.testing.assert_allclose(image[y, x].astype(int), colour, atol=3)


def test_ycck_jpeg_gets_pillows_colours():
    data = OTHERS["ycck jpeg"]
    difference = pixels(data).astype(int) - by_pillow(data)
    assert np.abs(difference).mean() < 3
    assert np.abs(pixels(data).astype(int) - pixels(OTHERS["cmyk jpeg"])).mean() > 30


def test_sixteen_bit_png_keeps_the_upper_eight():
    ramp = (np.arange(24 * 40).reshape(24, 40) * 65).astype(np.uint16)
    image = pixels(encode(Image.fromarray(ramp), "PNG"))
    np.testing.assert_array_equal(image, np.repeat((ramp >> 8).astype(np.uint8)[..., None], 3, axis=2))


def test_sixteen_bit_colours_keep_the_upper_eight():
    image = pixels(OTHERS["16 bit png rgb"])
    expected = np.arange(2880).reshape(24, 40, 3) * 22 >> 8
    np.testing.assert_array_equal(image, expected)


def test_transparent_pixels_keep_their_colour():
    assert pixels(encode(with_alpha(), "PNG"))[4, 2].tolist() == [30, 40, 220]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_orientation_is_applied_as_pillow_does(form, orientation):
    options = {"quality": 95} if form == "JPEG" else {"lossless": True} if form == "WEBP" else {}
    data = encode(blocks(), form, exif=exif(orientation), **options)
    info = inspect_picture(data, name="x")
    assert (info.width_px, info.height_px, info.orientation) == (40, 24, orientation)
    stored = Image.fromarray(pixels(data))
    stored.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(stored))
    np.testing.assert_array_equal(pixels(data, orientation), expected)
    assert (expected.shape[0] > expected.shape[1]) == (orientation >= 5)


def test_eight_thousand_by_six_thousand():
    data = encode(Image.new("RGB", (8000, 6000), (200, 30, 40)), "JPEG", quality=50)
    info = inspect_picture(data, name="x")
    assert (info.width_px, info.height_px) == (8000, 6000)
    image = decode(tf.constant(data), tf.constant(6))
    assert image.shape == (8000, 6000, 3)
    np.testing.assert_allclose(
        to_contract(image, contract())[0, 0], [200 / 255, 30 / 255, 40 / 255], atol=0.01
    )


def test_to_contract_is_bit_equal_to_the_textbook():
    image = tf.constant(np.asarray(noise(61, 43)))
    textbook = tf.image.resize(tf.image.convert_image_dtype(image, tf.float32), [8, 6])
    made = to_contract(image, contract())
    assert (made.shape, made.dtype) == ((8, 6, 3), tf.float32)
    np.testing.assert_array_equal(made, textbook)
    assert not np.array_equal(made, to_contract(image, contract(resize="bicubic")))


def test_what_is_made_much_smaller_is_the_textbook_to_the_last_bit():
    """Of a large photo, only the pixels that count become floats."""
    draw = np.random.default_rng(0)
    shapes = [((7, 7), (1, 1)), ((6, 7), (1, 1)), ((1201, 7), (200, 1)), ((2000, 1500), (224, 224))]
    shapes += [(draw.integers(200, 900, 2), draw.integers(1, 60, 2)) for _ in range(60)]
    for shape, wanted in shapes:
        image = tf.constant(draw.integers(0, 256, [*shape, 3]), tf.uint8)
        textbook = tf.image.resize(tf.image.convert_image_dtype(image, tf.float32), wanted)
        size = tuple(int(side) for side in wanted)
        np.testing.assert_array_equal(to_contract(image, contract(size)), textbook)


def test_a_graph_may_not_change_that():
    """Graphs are optimized, and whole ones otherwise than those of a dataset."""
    draw = np.random.default_rng(1)
    pictures = [draw.integers(0, 256, [*shape, 3]).astype(np.uint8) for shape in [(1201, 997), (433, 700)]]
    for size in [(224, 224), (41, 97), (60, 40), (7, 13)]:
        traced = tf.function(
            functools.partial(to_contract, contract=contract(size)), autograph=False
        ).get_concrete_function(tf.TensorSpec([None, None, 3], tf.uint8))
        for picture in pictures:
            image = tf.constant(picture)
            textbook = tf.image.resize(tf.image.convert_image_dtype(image, tf.float32), size)
            np.testing.assert_array_equal(traced(image), textbook)
            data = tf.data.Dataset.from_tensors(image).map(
                lambda x, size=size: to_contract(x, contract(size))
            )
            np.testing.assert_array_equal(next(iter(data)), textbook)


@pytest.mark.parametrize("method", ["bilinear", "bicubic", "lanczos3", "nearest"])
def test_bytes_are_resized_where_the_contract_says_so(method):
    draw = np.random.default_rng(1)
    for shape in [(61, 43), (9, 7), (8, 6), (1, 1)]:
        image = tf.constant(draw.integers(0, 256, [*shape, 3]), tf.uint8)
        floats = replace(contract(resize=method), antialias=True)
        made = to_contract(image, replace(floats, resizes_bytes=True))
        of_bytes = tf.cast(tf.image.resize(image, [8, 6], method=method, antialias=True), tf.float32)
        np.testing.assert_array_equal(made, of_bytes * (1 / 255))
        np.testing.assert_allclose(made, to_contract(image, floats), rtol=0, atol=1e-6)


def columns(values, height) -> np.ndarray:
    """A grey picture whose columns have these values, 0 to 255."""
    return np.repeat(np.broadcast_to(np.uint8(values), [height, len(values)])[..., None], 3, axis=2)


def fitted(picture: np.ndarray, size, **options) -> np.ndarray:
    """The first channel, 0 to 255, of what a network sees."""
    made = to_contract(tf.constant(picture), Contract(*size, (0.0, 1.0), 10, any_size=True, **options))
    assert (made.shape, made.dtype) == ((*size, 3), tf.float32)
    return made.numpy()[..., 0] * 255


@pytest.mark.parametrize(
    ("height", "width", "size", "seen"),
    [
        # Columns that are seen, of a picture whose columns are 0, 10, 20, ...
        (4, 8, (4, 4), [20, 30, 40, 50]),
        (4, 9, (4, 4), [20, 30, 40, 50]),
        (4, 4, (4, 4), [0, 10, 20, 30]),
        (8, 4, (4, 4), [0, 10, 20, 30]),
        (8, 8, (4, 4), [5, 25, 45, 65]),
        (8, 16, (4, 4), [45, 65, 85, 105]),
        # A network that wants twice as wide as high.
        (4, 12, (4, 8), [20, 30, 40, 50, 60, 70, 80, 90]),
        (6, 4, (2, 4), [0, 10, 20, 30]),
        # 1.5 of the 3 columns: 2.
        (3, 3, (4, 2), [0, 10]),
    ],
)
def test_crop_sees_the_middle(height, width, size, seen):
    picture = columns(10 * np.arange(width), height)
    np.testing.assert_allclose(fitted(picture, size, fit="crop"), [seen] * size[0], atol=1e-4)
    upright = fitted(picture.swapaxes(0, 1), size[::-1], fit="crop")
    np.testing.assert_allclose(upright.T, [seen] * size[0], atol=1e-4)


GREY = 127.5


@pytest.mark.parametrize(
    ("height", "width", "size", "rows", "row"),
    [
        # How often each row is there, and the picture's row within grey.
        (2, 4, (4, 4), [(1, GREY), (2, None), (1, GREY)], [0, 10, 20, 30]),
        (1, 4, (4, 4), [(1, GREY), (1, None), (2, GREY)], [0, 10, 20, 30]),
        (4, 4, (4, 4), [(4, None)], [0, 10, 20, 30]),
        (4, 2, (4, 4), [(4, None)], [GREY, 0, 10, GREY]),
        (4, 8, (4, 4), [(1, GREY), (2, None), (1, GREY)], [5, 25, 45, 65]),
        # A network that wants twice as wide as high.
        (4, 4, (4, 8), [(4, None)], [GREY, GREY, 0, 10, 20, 30, GREY, GREY]),
        # 2.5 rows: 3.
        (5, 8, (4, 4), [(3, None), (1, GREY)], [5, 25, 45, 65]),
    ],
)
def test_pad_shows_all_in_the_middle_of_grey(height, width, size, rows, row):
    picture = columns(10 * np.arange(width), height)
    seen = [row if grey is None else [grey] * size[1] for count, grey in rows for _ in range(count)]
    np.testing.assert_allclose(fitted(picture, size, fit="pad"), seen, atol=1e-4)
    upright = fitted(picture.swapaxes(0, 1), size[::-1], fit="pad")
    np.testing.assert_allclose(upright.T, seen, atol=1e-4)


def test_antialias_takes_all_pixels_by_hand():
    edge = columns([0, 0, 0, 0, 200, 200, 200, 200], 8)
    # Half as many: of four pixels each, with weights 1, 3, 3, 1.
    np.testing.assert_allclose(fitted(edge, (4, 4), antialias=True), [[0, 25, 175, 200]] * 4, atol=1e-3)
    np.testing.assert_allclose(fitted(edge, (4, 4)), [[0, 0, 200, 200]] * 4, atol=1e-3)
    # Lines of one pixel: a third as many see one of three, or all.
    lines = columns([0, 200] * 12, 24)
    np.testing.assert_allclose(fitted(lines, (8, 8))[0], [200, 0] * 4, atol=1e-3)
    assert np.ptp(fitted(lines, (8, 8), antialias=True)[0, 1:-1]) < 25
    # What grows is the same.
    np.testing.assert_allclose(fitted(edge, (16, 20), antialias=True), fitted(edge, (16, 20)), atol=1e-3)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (2, 3)])
def test_any_shape_fits(shape, fit, antialias):
    picture = np.full([*shape, 3], 200, np.uint8)
    found = fitted(picture, (8, 6), fit=fit, antialias=antialias)
    # No grey runs into the picture, or the other way.
    is_seen = np.abs(found - 200) < 1e-3
    assert np.logical_or(is_seen, found == GREY).all()
    assert is_seen.any()
    assert is_seen.all() or fit == "pad"


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("size", [(160, 480), (480, 160)])
def test_what_is_decoded_smaller_is_large_enough_to_crop_and_pad(fit, size):
    """A square network of 40 px: a quarter is enough, and what is cut out of it has 40 px."""
    x, y = np.meshgrid(*(np.linspace(0, 9, side) for side in size))
    waves = np.uint8(127 + 60 * np.stack([np.sin(x + y), np.cos(x), np.sin(y)], axis=-1))
    data = encode(Image.fromarray(waves), "JPEG", quality=95)
    reduced = scaled(data, (40, 40))
    assert min(reduced.shape[:2]) == 40
    small, large = (fitted(of, (40, 40), fit=fit, antialias=True) for of in (reduced, pixels(data)))
    np.testing.assert_allclose(small, large, atol=8)


def test_scale_maps_to_the_value_range():
    image01 = tf.constant([0.0, 0.25, 1.0])
    assert scale(image01, contract()) is image01
    assert scale(image01, contract(value_range=(-1.0, 1.0))).numpy().tolist() == [-1.0, -0.5, 1.0]


# Scaled: a JPEG at the smallest of 1/1, 1/2, 1/4 and 1/8 that covers what is wanted.


@functools.cache
def scaling(at_least: tuple[int, int]):
    return tf.function(lambda encoded, turn: decode(encoded, turn, at_least=at_least))


def scaled(data: bytes, at_least: tuple[int, int], orientation: int = 1) -> np.ndarray:
    return scaling(tuple(at_least))(tf.constant(data), tf.constant(orientation)).numpy()


@pytest.mark.parametrize(
    ("size", "at_least", "ratio", "decoded"),
    [
        # (width, height) of the picture and of what is decoded; (height, width) that is wanted.
        ((800, 600), (299, 299), 2, (400, 300)),
        ((800, 598), (299, 299), 2, (400, 299)),
        ((800, 597), (299, 299), 1, (800, 597)),
        ((1200, 1200), (150, 150), 8, (150, 150)),
        ((1199, 1200), (150, 150), 4, (300, 300)),
        ((1200, 1199), (150, 150), 4, (300, 300)),
        ((2400, 1200), (150, 150), 8, (300, 150)),
        ((128, 128), (16, 16), 8, (16, 16)),
        ((64, 127), (16, 16), 4, (16, 32)),
        ((63, 63), (16, 16), 2, (32, 32)),
        ((31, 31), (16, 16), 1, (31, 31)),
        ((12, 10), (16, 16), 1, (12, 10)),
        # More is never left out than an eighth.
        ((320, 320), (10, 10), 8, (40, 40)),
        # Not square: 20 high and 40 wide is wanted, then 40 high and 20 wide.
        ((160, 80), (20, 40), 4, (40, 20)),
        ((160, 80), (40, 20), 2, (80, 40)),
    ],
)
def test_the_smallest_that_covers_is_decoded(size, at_least, ratio, decoded):
    data = encode(noise(*size), "JPEG")
    image = scaled(data, at_least)
    assert image.shape == (decoded[1], decoded[0], 3)
    np.testing.assert_array_equal(image, tf.io.decode_jpeg(data, channels=3, ratio=ratio))


@pytest.mark.parametrize(
    ("orientation", "at_least", "shape"),
    [
        # 160 x 80 px are stored; upright by 6 and 8, they are 80 wide and 160 high.
        (1, (40, 20), (40, 80)),
        (3, (40, 20), (40, 80)),
        (6, (40, 20), (40, 20)),
        (8, (40, 20), (40, 20)),
        (6, (20, 40), (80, 40)),
        (6, (160, 80), (160, 80)),
    ],
)
def test_what_is_wanted_is_wanted_upright(orientation, at_least, shape):
    data = encode(noise(160, 80), "JPEG", exif=exif(orientation))
    image = scaled(data, at_least, orientation)
    assert image.shape == (*shape, 3)
    ratio = 160 // max(shape)
    stored = Image.fromarray(tf.io.decode_jpeg(data, channels=3, ratio=ratio).numpy())
    stored.getexif()[0x0112] = orientation
    np.testing.assert_array_equal(image, np.asarray(ImageOps.exif_transpose(stored)))


@pytest.mark.parametrize("kind", LOSSLESS)
def test_only_jpegs_are_decoded_smaller(kind):
    np.testing.assert_array_equal(scaled(LOSSLESS[kind], (1, 1)), pixels(LOSSLESS[kind]))


@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_that_is_wanted_in_full_is_the_same(kind):
    image = pixels(JPEGS[kind])
    np.testing.assert_array_equal(scaled(JPEGS[kind], image.shape[:2]), image)


def test_grey_and_cmyk_jpegs_are_decoded_smaller_too():
    places = {(2, 1): (30, 40, 220), (2, 15): (200, 30, 40), (10, 15): (20, 180, 90)}
    image = scaled(encode(blocks().convert("CMYK"), "JPEG", quality=95), (12, 20))
    assert image.shape == (12, 20, 3)
    for (y, x), colour in places.items():
        np.testing.assert_allclose(image[y, x].astype(int), colour, atol=6)
    image = scaled(encode(blocks().convert("L"), "JPEG", quality=95), (12, 20))
    assert image.shape == (12, 20, 3)
    for (y, x), colour in places.items():
        np.testing.assert_allclose(image[y, x].astype(int), np.dot(colour, [0.299, 0.587, 0.114]), atol=6)


def test_a_phone_photo_that_holds_two_is_decoded_smaller():
    data = JPEGS["two in one file, as of phones"]
    np.testing.assert_array_equal(scaled(data, (12, 16)), tf.io.decode_jpeg(data, channels=3, ratio=4))


ROTATED = """
import sys
from trainer import runtime
runtime.owns_process = True
runtime.start_tensorflow()
import tensorflow as tf
from trainer.data.decode import decode
for at_least in (None, (4, 4)):
    picture = open(sys.argv[1], "rb").read()
    function = tf.function(lambda encoded, turn: decode(encoded, turn, at_least=at_least))
    print(*function(tf.constant(picture), tf.constant(6)).shape)
"""


def test_turning_a_picture_writes_nothing_on_the_terminal(tmp_path):
    # oneDNN complains once a process, so it takes a new one.
    (tmp_path / "turned.jpg").write_bytes(encode(noise(16, 8), "JPEG", exif=exif(6)))
    done = run_program([tmp_path / "turned.jpg"], code=ROTATED)
    assert (done.returncode, done.stdout, done.stderr) == (0, "16 8 3\n8 4 3\n", "")


@pytest.mark.slow
def test_scaled_decoding_is_another_run(tiny_backbone, flower_folder, tmp_path, run_main, figures_undrawn):
    # Their 12 x 10 px are decoded at 1/2 for a network of 4 x 4.
    pictures = flower_folder(tmp_path / "pictures")
    arguments = [
        f"--source=folder:{pictures}", f"--backbone=savedmodel:{tiny_backbone}", "--image_size=4",
        "--splits=60%,40%", "--head=linear", "--schedule=frozen", "--frozen_for=2steps", "--batch_size=4",
        "--precision=float32", *PLAIN,
    ]  # fmt: skip
    exact, small = tmp_path / "exact", tmp_path / "scaled"
    for kind, workdir in (("exact", exact), ("scaled", small)):
        status, _, err = run_main(*arguments, f"--workdir={workdir}", f"--decode={kind}")
        assert (status, err) == (0, "")
    assert (exact / "metrics.jsonl").read_bytes() != (small / "metrics.jsonl").read_bytes()
    status, _, err = run_main(*arguments, f"--workdir={exact}", "--decode=scaled")
    assert (status, err.count("\n")) == (1, 1)
    assert f"{exact} holds a run with other options: --decode was exact, now scaled. " in err
