"""What every source promises."""

import dataclasses
import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf

from tests.data.pictures import jpeg
from tests.data.tables.tables import write_parquet
from tests.data.trees import FILES, OTHERS, prepare_tiny, write_tgz, write_tree, write_zip
from trainer.data.decode import decode
from trainer.data.inspect.bad_pictures import name_problem
from trainer.data.inspect.headers import inspect_picture
from trainer.data.sources import Source, SourceOptions, open_source
from trainer.values import UsageError

KINDS = ["folder", "split folder", "tgz", "zip", "url", "tfds", "table", "shards", "joined", "synthetic"]


@pytest.fixture(params=KINDS)
def address(request, tmp_path, options, server) -> str:
    """The address of a source of each kind."""
    files = {**FILES, **OTHERS}
    match request.param:
        case "folder":
            return f"folder:{write_tree(tmp_path / 'photos', files)}"
        case "split folder":
            write_tree(tmp_path / "photos/train", files)
            write_tree(tmp_path / "photos/val", {"roses/1.jpg": jpeg(20)})
            return f"folder:{write_tree(tmp_path / 'photos/test', {'daisy/1.jpg': jpeg(21)}).parent}"
        case "tgz":
            return f"archive:{write_tgz(tmp_path / 'photos.tgz', files)}"
        case "zip":
            return f"archive:{write_zip(tmp_path / 'photos.zip', files)}"
        case "url":
            server.files["/photos.tgz"] = write_tgz(tmp_path / "x.tgz", files).read_bytes()
            return f"archive:{server.url}/photos.tgz"
        case "tfds":
            prepare_tiny(options.data_dir)
            return "tfds:tiny_blooms:plain"
        case "table":
            lines = "".join(f"{path},{path.partition('/')[0]}\n" for path in FILES)
            (write_tree(tmp_path, files) / "photos.csv").write_text(f"file_name,label\n{lines}")
            return f"table:{tmp_path}/photos.csv"
        case "shards":
            for split, data in {"train": list(FILES.values()), "test": [jpeg(20), jpeg(21)]}.items():
                labels = [k % 2 for k in range(len(data))]
                write_parquet(tmp_path / f"data/{split}-00000-of-00001.parquet", data, label=labels)
            return f"table:{tmp_path}/data"
        case "joined":
            write_tree(tmp_path / "a", files)
            write_tree(tmp_path / "b", {"roses/1.jpg": jpeg(20), "asters/1.jpg": jpeg(21)})
            return f'joined:["folder:{tmp_path}/a", "synthetic:flowers", "folder:{tmp_path}/b"]'
    return "synthetic:flowers"


def facts(source: Source):
    return (source.class_names, list(source.ids), source.labels.tolist(), source.native_splits)


def test_contract_of_every_source(address, options):
    source: Source = open_source(address, options)
    again = open_source(address, options)
    number = len(source.ids)
    assert source.name == address
    assert number > 5
    assert facts(source) == facts(again)
    assert len(set(source.ids)) == number
    assert all(isinstance(name, str) and name.encode() for name in [*source.ids, *source.class_names])
    assert not any(map(name_problem, source.ids))
    assert source.labels.dtype == np.int64
    assert source.labels.shape == (number,)
    assert len(source.class_names) == len(set(source.class_names)) >= 2
    assert source.stamp() is None or len(source.stamp()) == 64
    assert set(source.labels.tolist()) <= set(range(len(source.class_names)))
    assert isinstance(source.sorted_by_class, bool)
    ends = [0, *(stop for _, stop in source.native_splits.values())]
    assert list(source.native_splits.values()) == list(itertools.pairwise(ends))
    assert ends[-1] in (0, number)
    data = [source.read(index) for index in range(number)]
    for index, encoded in enumerate(data):
        info = inspect_picture(encoded, name=source.ids[index])
        image = decode(tf.constant(encoded), tf.constant(1))
        assert image.shape == (info.height_px, info.width_px, 3)
    positions = list(np.random.default_rng(0).permutation(number)) * 4
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(source.read, positions)) == [data[at] for at in positions]
    assert [again.read(index) for index in range(number)] == data


@pytest.mark.parametrize("budget_bytes", [0, 1000])
def test_a_small_budget_changes_no_source(address, options, budget_bytes):
    source = open_source(address, options)
    small = open_source(address, dataclasses.replace(options, memory_budget_bytes=budget_bytes))
    assert facts(small) == facts(source)
    small.load()
    number = len(source.ids)
    for _ in range(2):
        assert [small.read(index) for index in range(number)] == [
            source.read(index) for index in range(number)
        ]
    assert list(options.spill_folder.glob("*")) == []


KNOWN = (
    'folder:PATH, archive:PATH_OR_URL, joined:["SOURCE","SOURCE",...], synthetic:flowers, '
    "table:FILE_FOLDER_OR_PATTERN, tfds:NAME[/CONFIG][:VERSION]"
)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (
            "photos",
            f"--source=photos is not one of {KNOWN}; a folder of pictures is written --source=folder:photos",
        ),
        ("ftp:x", f"--source=ftp:x is not one of {KNOWN}"),
        ("", f"--source= is not one of {KNOWN}"),
        ("foldr:x", f"--source=foldr:x is not one of {KNOWN}: is it folder:PATH?"),
        ("folder:", "--source=folder:: expected folder:PATH"),
        ("folder", "--source=folder: expected folder:PATH"),
        ("synthetic:roses", "--source=synthetic:roses: only synthetic:flowers can be drawn"),
    ],
)
def test_addresses_of_no_known_scheme(address, message):
    with pytest.raises(UsageError) as caught:
        open_source(address, SourceOptions())
    assert str(caught.value) == message
