"""What docs/sources.md shows of TFRecord and WebDataset is run as it stands there."""

import dataclasses
import io
import re
import tarfile
from pathlib import Path

import pytest
import tensorflow as tf

from tests.data.pictures import jpeg
from trainer.data.sources import open_source

PAGE = Path(__file__).parents[3] / "docs" / "sources.md"
DATA = [jpeg(k) for k in range(6)]


def run_block(name: str) -> None:
    [code] = re.findall(rf'```python title="{name}"\n(.*?)```', PAGE.read_text(), re.DOTALL)
    exec(compile(code, name, "exec"), {})


def opened(name, options, folder):
    source = open_source(f"tfds:{name}", dataclasses.replace(options, data_dir=str(folder)))
    assert source.class_names == ("daisy", "roses")
    assert list(source.native_splits) == ["train"]
    return {source.read(k): label for k, label in enumerate(source.labels.tolist())}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_tfrecords(options, tmp_path):
    (tmp_path / "photos/1.0.0").mkdir(parents=True)
    path = tmp_path / "photos/1.0.0/photos-train.tfrecord-00000-of-00001"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for k, data in enumerate(DATA):
            image = tf.train.Feature(bytes_list=tf.train.BytesList(value=[data]))
            label = tf.train.Feature(int64_list=tf.train.Int64List(value=[k % 2]))
            features = tf.train.Features(feature={"image": image, "label": label})
            writer.write(tf.train.Example(features=features).SerializeToString())
    run_block("tfrecord")
    assert opened("photos", options, tmp_path) == {data: k % 2 for k, data in enumerate(DATA)}


def test_webdataset(options, tmp_path):
    (tmp_path / "shards").mkdir()
    for shard in range(2):
        with tarfile.open(tmp_path / f"shards/train-{shard:04d}.tar", "w") as packed:
            for k in range(3 * shard, 3 * shard + 3):
                for ending, data in (("jpg", DATA[k]), ("cls", str(k % 2).encode())):
                    member = tarfile.TarInfo(f"{k:04d}.{ending}")
                    member.size = len(data)
                    packed.addfile(member, io.BytesIO(data))
    run_block("webdataset")
    assert opened("web_photos", options, tmp_path) == {data: k % 2 for k, data in enumerate(DATA)}
