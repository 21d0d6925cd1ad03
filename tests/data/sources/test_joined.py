"""Several sources as one."""

import json

import pytest

from tests.data.pictures import jpeg
from tests.data.tables.tables import write_table
from tests.data.trees import age, write_tree
from trainer.cli import flags
from trainer.data.sources import gives_several, open_source
from trainer.data.sources.joined import origins_of, parts_of
from trainer.values import UsageError

A = {"daisy/1.jpg": jpeg(11), "roses/1.jpg": jpeg(12), "roses/2.jpg": jpeg(13)}


def joined(*addresses):
    return f"joined:{json.dumps(addresses)}"


def test_classes_are_matched_by_name(options, tmp_path):
    folder = write_tree(tmp_path / "a", A)
    table = write_table(tmp_path / "b", "file,label,who\n2.jpg,roses,x\n1.jpg,asters,y\n")
    source = open_source(joined(f"folder:{folder}", table), options)
    assert source.class_names == ("asters", "daisy", "roses")
    assert source.ids == ["a/daisy/1.jpg", "a/roses/1.jpg", "a/roses/2.jpg", "photos/2.jpg", "photos/1.jpg"]
    assert source.labels.tolist() == [1, 2, 2, 2, 0]
    assert [source.read(k) for k in range(4)] == [*A.values(), jpeg(2)]
    # Each can be named by --splits.
    assert source.native_splits == {"a": (0, 3), "photos": (3, 5)}
    age(tmp_path)
    stamp = source.stamp()
    assert stamp
    assert stamp == open_source(source.name, options).stamp()
    (tmp_path / "b/2.jpg").write_bytes(jpeg(5))
    age(tmp_path)
    assert open_source(source.name, options).stamp() != stamp


def test_splits_of_one_name_come_together(options, tmp_path):
    for part in ("train", "test"):
        write_tree(tmp_path / f"a/{part}", A)
    rows = "file,label,split\n1.jpg,roses,test\n2.jpg,daisy,train\n3.jpg,daisy,val\n"
    table = write_table(tmp_path / "b", rows)
    other = write_tree(tmp_path / "c", A)
    source = open_source(joined(f"folder:{tmp_path}/a", table, f"folder:{other}"), options)
    assert source.native_splits == {"train": (0, 7), "validation": (7, 8), "test": (8, 12)}
    assert source.ids[3:9] == [
        *("photos/2.jpg", "c/daisy/1.jpg", "c/roses/1.jpg", "c/roses/2.jpg"),
        *("photos/3.jpg", "a/test/daisy/1.jpg"),
    ]


def test_folders_that_are_called_train_and_test_are_that(options, tmp_path):
    addresses = [f"folder:{write_tree(tmp_path / part, A)}" for part in ("Test", "training")]
    assert open_source(joined(*addresses), options).native_splits == {"train": (0, 3), "test": (3, 6)}


def test_groups_and_weights_of_some(options, tmp_path):
    import dataclasses

    table = write_table(tmp_path / "b", "file,label,who,w\n1.jpg,roses,x,2\n2.jpg,daisy,x,0.5\n")
    options = dataclasses.replace(options, label_column="label", group_column="who", weight_column="w")
    source = open_source(joined(table, f"folder:{write_tree(tmp_path / 'a', A)}"), options)
    assert source.groups.tolist()[:2] == ["x", "x"]
    assert len(set(source.groups.tolist())) == 4
    assert source.weights.tolist() == [2, 0.5, 1, 1, 1]


def test_one_with_several_labels_makes_all_so(options, tmp_path):
    table = write_table(tmp_path / "b", 'file,label\n1.jpg,"roses,daisy"\n2.jpg,daisy\n3.jpg,roses\n')
    source = open_source(joined(table, f"folder:{write_tree(tmp_path / 'a', A)}"), options)
    assert gives_several(source)
    assert source.labels.tolist() == [(0, 1), (0,), (1,), (0,), (1,), (1,)]
    (tmp_path / "b/photos.csv").write_text('file,label\n1.jpg,"roses,asters"\n2.jpg,asters\n3.jpg,roses\n')
    source = open_source(source.name, options)
    assert source.class_names == ("asters", "daisy", "roses")
    assert source.labels.tolist() == [(0, 2), (0,), (2,), (1,), (2,), (2,)]


def test_short_names():
    assert origins_of(["folder:x/a b/", "table:x/a.b.csv", "synthetic:flowers", "folder:y/flowers"]) == [
        *("a_b_1", "a_b_2", "flowers_3", "flowers_4")
    ]
    # What another one is called is taken.
    assert origins_of(["folder:a/photos", "folder:b/photos", "folder:c/photos_1"]) == [
        *("photos_1_", "photos_2", "photos_1")
    ]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (
            "joined:x",
            '--source=joined:x: expected a list such as ["folder:a","table:b.csv"]; or give --source',
        ),
        ('joined:["folder:a"]', '--source=joined:["folder:a"]: expected a list'),
        (joined("folder:a", "folder:a"), "--source=folder:a is given twice: its pictures would count double"),
        (joined("folder:/", "foldr:b"), "--source=foldr:b is not one of"),
    ],
)
def test_what_cannot_be_joined(options, address, message):
    with pytest.raises(UsageError) as caught:
        open_source(address, options)
    assert str(caught.value).startswith(message)


def source_of(*arguments):
    return flags.parse(["trainer", *map(str, arguments)]).config.data.source


def test_sources_that_stand_together_are_joined(tmp_path):
    assert source_of("--source=folder:a") == "folder:a"
    both = 'joined:["folder:a", "table:b.csv"]'
    assert source_of("--source=folder:a", "--seed=3", "--source", "table:b.csv") == both
    (tmp_path / "two.flags").write_text("--source=folder:a\n# and\n--source=table:b.csv\n")
    assert source_of(f"--flagfile={tmp_path}/two.flags") == both
    # The command line takes the place of what a flagfile says.
    assert source_of(f"--flagfile={tmp_path}/two.flags", "--source=folder:c") == "folder:c"
    (tmp_path / "one.flags").write_text("--source=folder:a\n")
    assert source_of(f"--flagfile={tmp_path}/one.flags", "--source=folder:c") == "folder:c"
    # And what a run writes of itself gives the same again.
    config = flags.parse(["trainer", "--source=folder:a", "--source=table:ü.csv"]).config
    (tmp_path / "again.flags").write_text(config.flagfile())
    assert source_of(f"--flagfile={tmp_path}/again.flags") == 'joined:["folder:a", "table:ü.csv"]'


def test_half_of_a_character_is_in_no_address():
    with pytest.raises(UsageError, match=r"^--source: half of a character \(\\ud800\) is in no path$"):
        parts_of(r'["folder:\ud800","folder:a"]', flag="--source")
