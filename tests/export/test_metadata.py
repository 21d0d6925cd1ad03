"""What a model says about itself, where the file is not one of ours."""

import zipfile

import pytest

from trainer.export.metadata import NAME, read_about
from trainer.values import TrainerError


def write_model(path, *, method=zipfile.ZIP_DEFLATED, size=100):
    with zipfile.ZipFile(path, "w", method) as packed:
        packed.writestr(NAME, " " * size)
    return path


def test_a_bomb_is_not_unpacked(tmp_path):
    path = write_model(tmp_path / "m.tflite", size=101 * 10**6)
    with pytest.raises(TrainerError, match=f"^x is damaged: {NAME} inside of it has 101,000,000 bytes$"):
        read_about(path, flag="x")


def test_what_python_cannot_unpack_is_told_in_a_line(tmp_path):
    path = write_model(tmp_path / "m.tflite")
    data = bytearray(path.read_bytes())
    for mark, at in ((b"PK\1\2", 10), (b"PK\3\4", 8)):
        data[data.index(mark) + at] = 9  # Deflate64.
    path.write_bytes(data)
    with pytest.raises(TrainerError, match=r"^x cannot be read: That compression method is not supported$"):
        read_about(path, flag="x")
