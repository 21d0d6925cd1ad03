"""TFLite files in the LiteRT interpreter, their metadata, and their calibration."""

import io
import zipfile

import flatbuffers
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from trainer.export.metadata import About, read_about
from trainer.export.tflite import FORMATS, Converter
from trainer.values import Contract, TrainerError

NAMES = ("red", "green and\nmore", "blue")
ABOUT = About(NAMES, Contract(4, 6, (-1.0, 1.0), feature_width=2, any_size=True), "apply", "exact")
PICTURES = np.random.default_rng(0).uniform(0.2, 0.7, [20, 4, 6, 3]).astype(np.float32)


def network(images):
    """A convolution, and then the share of each colour."""
    kernel = np.eye(3, dtype=np.float32).reshape(1, 1, 3, 3) * [9.0, 3.0, 1.0]
    maps = tf.nn.relu6(tf.nn.conv2d(images * 2 - 1, tf.constant(kernel, tf.float32), 1, "SAME"))
    return tf.nn.softmax(tf.reduce_mean(maps, [1, 2]))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """{format: path of a .tflite file}."""
    folder, paths = tmp_path_factory.mktemp("tflite"), {}
    with Converter(network, about=ABOUT, folder=folder) as converter:
        for form in FORMATS:
            paths[form] = folder / f"{form}.tflite"
            paths[form].write_bytes(converter.convert(form, pictures=lambda: PICTURES))
    assert sorted(folder.iterdir()) == sorted(paths.values())
    return paths


@pytest.mark.parametrize("form", [name for name in FORMATS if name != "int8"])
def test_floats_in_and_out(form, files):
    interpreter = Interpreter(str(files[form]))
    run = interpreter.get_signature_runner()
    for image in PICTURES[:5]:
        found = run(images=image[None])["probabilities"]
        np.testing.assert_allclose(
            found, network(image[None]).numpy(), atol=1e-6 if form == "float32" else 0.02
        )
        assert (found.dtype, found.shape) == (np.float32, (1, 3))


def test_bytes_in_and_out(files):
    interpreter = Interpreter(str(files["int8"]))
    interpreter.allocate_tensors()
    [taken], [given] = interpreter.get_input_details(), interpreter.get_output_details()
    # Whatever the pictures of the calibration were, 0 to 255 are 0 to 1.
    assert (taken["dtype"], taken["quantization"][1]) == (np.uint8, 0)
    assert taken["quantization"][0] == pytest.approx(1 / 255)
    assert (given["dtype"], given["quantization"]) == (np.uint8, (1 / 256, 0))
    run = interpreter.get_signature_runner("images")
    for image in (PICTURES[:8] * 255).astype(np.uint8):
        found = run(images=image[None])["probabilities"] / 256
        np.testing.assert_allclose(found, network(image[None].astype(np.float32) / 255).numpy(), atol=0.05)


def test_bytes_are_what_they_are_where_resizing_goes_beyond_black_and_white(tmp_path):
    """Bicubic does, at edges; a byte cannot."""
    beyond = [np.clip(1.4 * picture - 0.2, -0.2, 1.2).astype(np.float32) for picture in PICTURES]
    with Converter(network, about=ABOUT, folder=tmp_path) as converter:
        interpreter = Interpreter(model_content=converter.convert("int8", pictures=lambda: beyond))
    [taken] = interpreter.get_input_details()
    assert taken["quantization"] == (pytest.approx(1 / 255), 0)


def test_kernels_of_int8_have_a_scale_for_each_channel(files):
    interpreter = Interpreter(str(files["int8"]))
    interpreter.allocate_tensors()
    scales = [
        len(t["quantization_parameters"]["scales"])
        for t in interpreter.get_tensor_details()
        if t["dtype"] == np.int8
    ]
    assert max(scales) == 3


@pytest.mark.parametrize("form", FORMATS)
def test_files_are_inside_as_unzip_finds_them(form, files):
    with zipfile.ZipFile(files[form]) as archive:
        assert archive.testzip() is None
        assert {info.filename: info.compress_type for info in archive.infolist()} == {
            "labels.txt": zipfile.ZIP_STORED, "export.json": zipfile.ZIP_STORED,
        }  # fmt: skip
        assert archive.read("labels.txt").decode() == "red\ngreen and more\nblue\n"
    assert read_about(files[form], flag="x") == ABOUT
    # Readers less kind than Python's want places counted from the beginning of the file.
    data = files[form].read_bytes()
    place = int.from_bytes(data[-6:-2], "little")
    assert (data[-22:-18], data[place : place + 4]) == (b"PK\5\6", b"PK\1\2")


class Reader:
    """A table of FlatBuffers by the places of its fields."""

    def __init__(self, data: bytes, at: int):
        self._table = flatbuffers.table.Table(bytearray(data), at)

    def _at(self, slot):
        return self._table.Offset(4 + 2 * slot)

    def number(self, slot):
        return self._table.Get(flatbuffers.number_types.Uint8Flags, self._table.Pos + self._at(slot))

    def text(self, slot):
        return self._table.String(self._table.Pos + self._at(slot)).decode()

    def table(self, slot):
        return Reader(self._table.Bytes, self._table.Indirect(self._table.Pos + self._at(slot)))

    def tables(self, slot):
        start = self._table.Vector(self._at(slot))
        count = self._table.VectorLen(self._at(slot))
        return [Reader(self._table.Bytes, self._table.Indirect(start + 4 * i)) for i in range(count)]

    def floats(self, slot):
        start, count = self._table.Vector(self._at(slot)), self._table.VectorLen(self._at(slot))
        return np.frombuffer(bytes(self._table.Bytes), "<f4", count, start).tolist()


@pytest.mark.parametrize(("form", "std", "highest"), [("float16", 255.0, 1.0), ("int8", 1.0, 255.0)])
def test_metadata_as_its_schema_has_it(form, std, highest, files):
    """The places are those of metadata_schema.fbs; tools read class names, and what is done to bytes."""
    model = schema.ModelT.InitFromPackedBuf(bytearray(files[form].read_bytes()), 0)
    [entry] = [entry for entry in model.metadata if entry.name == b"TFLITE_METADATA"]
    data = bytes(model.buffers[entry.buffer].data)
    assert data[4:8] == b"M001"
    root = Reader(data, int.from_bytes(data[:4], "little"))
    assert (root.text(0), root.text(7)) == (f"3 classes, {form}", "1.0.0")
    [graph] = root.tables(3)
    [image], [probability] = graph.tables(2), graph.tables(3)
    assert (image.text(0), probability.text(0)) == ("image", "probability")
    content = image.table(3)
    assert (content.number(0), content.table(1).number(0)) == (2, 1)  # A picture, RGB.
    [unit] = image.tables(4)
    assert (unit.number(0), unit.table(1).floats(0), unit.table(1).floats(1)) == (1, [0.0], [std])
    assert (image.table(5).floats(0), image.table(5).floats(1)) == ([highest], [0.0])
    [labels] = probability.tables(6)
    assert (labels.text(0), labels.number(2)) == ("labels.txt", 2)


def test_the_same_model_gives_the_same_bytes(files, tmp_path):
    with Converter(network, about=ABOUT, folder=tmp_path) as converter:
        again = converter.convert("float32", pictures=lambda: PICTURES)
    with zipfile.ZipFile(io.BytesIO(again)) as new, zipfile.ZipFile(files["float32"]) as old:
        assert [info.date_time for info in new.infolist()] == [info.date_time for info in old.infolist()]
    assert len(again) == files["float32"].stat().st_size


def test_a_network_that_cannot_be_converted_is_told(tmp_path):
    def odd(images):
        return tf.cast(tf.linalg.det(tf.reshape(images, [1, 3, 24])[:, :, :3]), tf.float32)[:, None]

    with (
        Converter(odd, about=ABOUT, folder=tmp_path) as converter,
        pytest.raises(
            TrainerError, match=r"--formats=float32: TensorFlow cannot convert this network: .*Det.*; leave"
        ),
    ):
        converter.convert("float32", pictures=lambda: PICTURES)
    assert list(tmp_path.iterdir()) == []
