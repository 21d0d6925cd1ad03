"""`table:ADDRESS`: what is found in tables that are right, and what is said of those that are not."""

import dataclasses
import json
import logging
import re
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.data.tables.tables import PICTURES, write_parquet, write_pictures, write_table
from tests.data.trees import age
from trainer.data.inspect.bad_pictures import BadPictureError
from trainer.data.sources import SourceOptions, gives_several, open_source
from trainer.values import TrainerError, UsageError

PLAIN = "file,label\n1.jpg,roses\n2.jpg,daisy\n3.jpg,roses\n4.jpg,daisy\n5.jpg,roses\n6.jpg,daisy\n"
IDS = list(PICTURES)
LABELS = [1, 0, 1, 0, 1, 0]


def plainly(source):
    return list(source.ids), source.labels.tolist(), source.class_names


@pytest.fixture
def opened(options, tmp_path):
    """opened(text, name="photos.csv", **options) -> the source of a table beside six pictures."""

    def open_(text, name="photos.csv", **given):
        return open_source(write_table(tmp_path, text, name), dataclasses.replace(options, **given))

    return open_


SAME = {
    "as it is": PLAIN,
    "with a byte order mark": b"\xef\xbb\xbf" + PLAIN.encode(),
    "UTF-16": PLAIN.encode("utf-16"),
    "UTF-32": PLAIN.encode("utf-32"),
    "a word to Excel": "sep=;\n" + PLAIN.replace(",", ";"),
    "semicolons": PLAIN.replace(",", ";"),
    "tabs": PLAIN.replace(",", "\t"),
    "bars": PLAIN.replace(",", "|"),
    "line ends of Windows": PLAIN.replace("\n", "\r\n"),
    "no line end at the end": PLAIN.rstrip(),
    "empty lines": PLAIN.replace("\n", "\n\n"),
    "quotes": re.sub(r"(\w+\.jpg)", r'"\1"', PLAIN),
    "blanks after commas": PLAIN.replace(",", ", "),
    "blanks before quotes": re.sub(r",(\w+)", r', "\1"', PLAIN),
    "no header": PLAIN.split("\n", 1)[1],
    "no endings": PLAIN.replace(".jpg", ""),
    "another order of columns": re.sub(r"(?m)^(.*),(.*)$", r"\2,\1", PLAIN),
    "a number before": re.sub(r"(?m)^", "7,", PLAIN).replace("7,file", "n,file").rstrip("7,"),
    "unknown names": PLAIN.replace("file,label", "what,ever"),
    "other columns with one name": re.sub(r"(?m)^(.+)$", r"\1,x,y", PLAIN).replace(",x,y", ",a,a", 1),
    "paths with dots": PLAIN.replace("1.jpg", "./1.jpg").replace("2.jpg", "x/../2.jpg"),
}


@pytest.mark.parametrize("text", SAME.values(), ids=SAME)
def test_tables_that_say_the_same(opened, text):
    assert plainly(opened(text)) == (IDS, LABELS, ("daisy", "roses"))


def test_a_byte_order_mark_is_no_part_of_a_name(opened):
    for form in ("with a byte order mark", "UTF-16"):
        assert plainly(opened(SAME[form], image_column="file"))[0] == IDS


def test_the_pictures_are_those_that_the_rows_name(opened):
    source = opened("file,label\n3.jpg,roses\n1.jpg,daisy\n")
    assert [source.read(0), source.read(1)] == [PICTURES["3.jpg"], PICTURES["1.jpg"]]
    # Nothing is told by the order of a table, so splits are to be shuffled.
    assert source.sorted_by_class


def test_latin_1_is_read_and_said(opened, caplog):
    caplog.set_level(logging.WARNING, logger="trainer")
    source = opened("file,label\n1.jpg,rosé\n2.jpg,gänse\n".encode("latin-1"))
    assert source.class_names == ("gänse", "rosé")
    assert "is not UTF-8: read as Windows-1252 (latin-1)" in caplog.text


def test_json_lines_and_lists(opened, tmp_path):
    rows = [{"file_name": name, "label": "ba"[k % 2]} for k, name in enumerate(PICTURES)]
    lines = "\n".join(map(json.dumps, rows))
    assert plainly(opened(lines, "metadata.jsonl")) == (IDS, LABELS, ("a", "b"))
    assert plainly(opened(json.dumps(rows), "rows.json")) == (IDS, LABELS, ("a", "b"))
    # With a byte order mark, as editors on Windows write it.
    assert plainly(opened("\ufeff" + lines, "metadata.jsonl")) == (IDS, LABELS, ("a", "b"))
    assert plainly(opened("\ufeff" + json.dumps(rows), "rows.json")) == (IDS, LABELS, ("a", "b"))


def test_numbers_are_classes_in_their_order(opened):
    text = "file,label\n1.jpg,10\n2.jpg,9\n3.jpg,9\n4.jpg,10\n5.jpg,2\n6.jpg,2\n"
    assert opened(text).class_names == ("2", "9", "10")
    # As pandas writes a column in which a label was missing.
    assert opened(re.sub(r"(?m)(\d+)$", r"\1.0", text)).class_names == ("2", "9", "10")
    assert opened(re.sub(r"(?m),(\d)$", r",00\1", text)).class_names == ("002", "009", "10")


def test_labels_of_mixed_types(opened):
    rows = [
        {"file": f"{k}.jpg", "label": label} for k, label in enumerate((1, "1", 2.0, "2", True, "x"), start=1)
    ]
    source = opened("\n".join(map(json.dumps, rows)), "rows.jsonl")
    assert source.class_names == ("1", "2", "true", "x")
    assert source.labels.tolist() == [0, 0, 1, 1, 2, 3]


def test_columns_of_0_and_1(opened):
    one = "file,daisy,roses\n1.jpg,0,1\n2.jpg,1.0,0.0\n"
    assert plainly(opened(one)) == (["1.jpg", "2.jpg"], [1, 0], ("daisy", "roses"))
    several = "file,sea,sun,n\n1.jpg,1,1,8\n2.jpg,0,0,9\n"
    source = opened(several, label_column="sun, sea")
    assert gives_several(source)
    assert source.labels.tolist() == [(0, 1), ()]
    assert source.class_names == ("sun", "sea")
    with pytest.raises(TrainerError, match=r"line 3: no label: column sun is '2', neither 0 nor 1"):
        opened(several.replace("2.jpg,0,0", "2.jpg,0,2"), label_column="sea,sun")


@pytest.mark.parametrize(
    "labels",
    [
        ["sea,sun", "sea", "sun", "sea,sun", "sun"],
        ["['sea', 'sun']", "['sea']", "['sun']", "['sun', 'sea']", "['sun']"],
        ["sea; sun", "sea", "sun", "sun; sea", "sun"],
        ["['sea' 'sun']", "['sea']", "['sun']", "['sun'\n 'sea']", "['sun']"],
        ["sea,sun,", "sea,", "sun,", "sun, ,sea", "sun"],
    ],
    ids=["commas", "brackets", "semicolons", "as NumPy writes them", "blanks"],
)  # fmt: skip
def test_lists_of_labels_in_a_column(opened, labels):
    lines = "".join(f'{k}.jpg,"{label}"\n' for k, label in enumerate(labels, start=1))
    source = opened(f"file,labels\n{lines}")
    assert source.class_names == ("sea", "sun")
    assert source.labels.tolist() == [(0, 1), (0,), (1,), (0, 1), (1,)]


def test_numbers_as_numpy_writes_them(opened):
    """The first list may be empty, and names may look like what is no name."""
    labels = ["[]", "[1 2]", "[ 2.  3.]", "[3]", "[2]"]
    lines = "".join(f'{k}.jpg,"{label}"\n' for k, label in enumerate(labels, start=1))
    source = opened(f"file,labels\n{lines}", several=True)
    assert (source.class_names, source.labels.tolist()) == (("1", "2", "3"), [(), (0, 1), (1, 2), (2,), (1,)])
    fruit = opened(
        "file,labels\n1.jpg,\"['banana' 'nan']\"\n2.jpg,\"['banana']\"\n3.jpg,\"['kiwi' 'banana']\"\n"
    )
    assert fruit.class_names == ("banana", "kiwi", "nan")


def in_parquet(folder, **columns):
    """The address of a table beside six pictures."""
    write_pictures(folder)
    parquet.write_table(pa.table({"file": IDS, **columns}), folder / "photos.parquet")
    return f"table:{folder / 'photos.parquet'}"


@pytest.mark.parametrize(
    ("written", "other"),
    [("[1, 0, 1]", "[0, 0, 1]"), ("[1 0 1]", "[0 0 0]"), ("1,0,1", "1,1,1"), ("[1. 0.]", "[1. 1.]")],
)
def test_a_vector_of_0_and_1_has_no_names(opened, written, other, options, tmp_path):
    lines = [f'{k}.jpg,"{written if k % 2 else other}"' for k in range(1, 7)]
    with pytest.raises(UsageError, match=r"the column labels has [23] numbers 0 and 1 in each row, and no"):
        opened("\n".join(["file,labels", *lines]), several=True)
    address = in_parquet(tmp_path, labels=[[1, 0, 0], [0, 1, 0]] * 3)
    with pytest.raises(UsageError, match="write a column for each class"):
        open_source(address, dataclasses.replace(options, several=True))
    # Numbers of classes.
    pairs = "file,labels\n" + "".join(f'{k}.jpg,"[0, {k % 2}]"\n' for k in (1, 3, 5))
    assert opened(pairs, several=True).labels.tolist() == [(0, 1)] * 3


def test_blanks_in_lists_are_no_classes(options, tmp_path):
    labels = [["sea", ""], ["sun"], [" "], ["sea", "sun"], [], ["sun", ""]]
    source = open_source(in_parquet(tmp_path, labels=labels), dataclasses.replace(options, several=True))
    assert source.class_names == ("sea", "sun")
    assert source.labels.tolist() == [(0,), (1,), (), (0, 1), (), (1,)]


def test_a_name_with_a_comma_is_no_list(opened):
    source = opened(
        'file,label\n1.jpg,"tench, Tinca tinca"\n2.jpg,"goldfish, Carassius"\n3.jpg,"goldfish, Carassius"\n'
    )
    assert source.class_names == ("goldfish, Carassius", "tench, Tinca tinca")
    assert source.labels.tolist() == [1, 0, 0]


def test_lists_where_several_are_asked_for_need_no_second_label(opened):
    source = opened("file,label\n1.jpg,sea\n2.jpg,sun\n3.jpg,\n", several=True)
    assert source.labels.tolist() == [(0,), (1,), ()]


def test_columns_that_are_not_used_are_named_and_a_patient_is_a_group(opened, caplog):
    caplog.set_level(logging.INFO, logger="trainer")
    text = "file,label,Patient_ID,age\n1.jpg,a,p1,7\n2.jpg,b,p1,8\n3.jpg,a,p2,9\n"
    opened(text, label_column="label")
    told = "not used: Patient_ID, age"
    hint = " (--group_column=Patient_ID keeps rows that share a value of it in one split)"
    assert told + hint in caplog.text
    caplog.clear()
    opened(text, label_column="label", group_column="Patient_ID")
    assert "not used: age" in caplog.text
    assert "--group_column" not in caplog.text


def test_one_column_of_0_and_1_is_one_label(opened):
    text = "file,red\n1.jpg,1\n2.jpg,0\n3.jpg,1\n"
    source = opened(text, several=True, label_column="red")
    assert source.class_names == ("red",)
    assert source.labels.tolist() == [(0,), (), (0,)]
    # With one label a picture they are two classes.
    assert opened(text, label_column="red").class_names == ("0", "1")


SPLIT = (
    "file,label,split\n1.jpg,a,test\n2.jpg,b,Train\n3.jpg,a,train\n4.jpg,b,val\n5.jpg,b,test\n6.jpg,a,valid\n"
)


def test_splits_in_a_column(opened):
    source = opened(SPLIT)
    assert source.native_splits == {"train": (0, 2), "validation": (2, 4), "test": (4, 6)}
    assert source.ids == ["2.jpg", "3.jpg", "4.jpg", "6.jpg", "1.jpg", "5.jpg"]
    with pytest.raises(UsageError, match=r"split of .* has Train and trian: correct what is no split"):
        opened(SPLIT.replace(",train\n4", ",trian\n4"))
    # What else a row says goes with its picture.
    lines = SPLIT.splitlines()
    weighted = "\n".join([f"{lines[0]},w", *(f"{line},{k}" for k, line in enumerate(lines[1:], start=1))])
    assert opened(weighted, weight_column="w").weights.tolist() == [2, 3, 4, 6, 1, 5]
    # Other words are splits where somebody says so.
    text = SPLIT.replace("Train", "left").replace("train", "left").replace("split", "side")
    assert opened(text, label_column="label").native_splits == {}
    assert list(opened(text, split_column="side").native_splits) == ["validation", "test", "left"]


def test_a_split_without_labels_is_left_out(opened, caplog):
    caplog.set_level(logging.WARNING, logger="trainer")
    source = opened(SPLIT.replace(",a,test", ",,test").replace(",b,test", ",,test"))
    assert list(source.native_splits) == ["train", "validation"]
    assert len(source.ids) == 4
    assert "left out the split test, which has no labels" in caplog.text


def test_of_several_a_split_that_says_nothing_is_left_out(opened, caplog):
    text = SPLIT.replace(",a,test", ",,test").replace(",b,test", ",,test")
    source = opened(text, several=True)
    assert list(source.native_splits) == ["train", "validation"]
    assert "left out the split test, which has no labels" in caplog.text
    # Some of its pictures may have none.
    source = opened(SPLIT.replace(",a,test", ",,test"), several=True)
    assert source.labels.tolist()[-2:] == [(), (1,)]


def test_a_split_that_nobody_uses_is_told(opened, caplog):
    text = SPLIT.replace(",b,val", ",b,holdout").replace("split", "side")
    opened(text, split_column="side")
    assert "1 rows of the split holdout are not used: --splits says which are" in caplog.text
    caplog.clear()
    opened(text, split_column="side", splits="train,validation,holdout")
    assert not caplog.text


def test_a_group_is_one_however_it_is_written(opened, options, tmp_path, caplog):
    who = ["p 1", " p  1 ", "cafe\u0301", "caf\u00e9", "7.0", "7"]
    text = "file,label,who\n" + "".join(
        f"{k}.jpg,{'ab'[k % 2]},{one}\n" for k, one in enumerate(who, start=1)
    )
    groups = opened(text, label_column="label", group_column="who").groups.tolist()
    assert groups == ["p 1", "p 1", "caf\u00e9", "caf\u00e9", "7", "7"]
    assert not caplog.text
    opened(text.replace("p 1\n2", "P 1\n2"), label_column="label", group_column="who")
    assert "the groups P 1 and p 1 of column who differ only in case, and count as two" in caplog.text
    # As pandas writes numbers where one is missing.
    parts = {"a": [3, 4, 5], "b": [3.0, 4.0, 6.0]}
    (tmp_path / "shards").mkdir()
    for at, (name, who) in enumerate(parts.items()):
        files = [f"../{one}" for one in IDS[3 * at : 3 * at + 3]]
        table = pa.table({"file": files, "label": ["x", "y", "x"], "who": who})
        parquet.write_table(table, tmp_path / "shards" / f"{name}.parquet")
    source = open_source(
        f"table:{tmp_path / 'shards'}", dataclasses.replace(options, group_column="who", label_column="label")
    )
    assert source.groups.tolist() == ["3", "4", "5", "3", "4", "6"]


def test_weights_that_are_all_0_are_refused(opened):
    text = "file,label,w\n1.jpg,a,0\n2.jpg,b,0.0\n"
    with pytest.raises(TrainerError, match="all weights in column w are 0, so that nothing would be learned"):
        opened(text, label_column="label", weight_column="w")


def test_groups_and_weights(opened):
    text = "file,label,who,w\n1.jpg,a,007,1\n2.jpg,b,7,0.5\n"
    source = opened(text, label_column="label", group_column="who", weight_column="w")
    assert source.groups.tolist() == ["007", "7"]
    assert source.weights.tolist() == [1.0, 0.5]
    with pytest.raises(TrainerError, match=r"photos.csv line 3: weight '-1', expected a number of 0 or more"):
        opened(text.replace("0.5", "-1"), group_column="who", weight_column="w")
    with pytest.raises(TrainerError, match=r"photos.csv line 3: no group in column who"):
        opened(text.replace(",7,", ",,"), group_column="who")


PROBLEMS = {
    "a missing label": (PLAIN.replace("3.jpg,roses", "3.jpg,"), "photos.csv line 4: no label"),
    "no picture": (PLAIN.replace("3.jpg", ""), "photos.csv line 4: no picture in column file"),
    "one value too many": (
        PLAIN.replace("3.jpg,", "3.jpg,,"),
        "line 4: 3 values, and the table has 2 columns",
    ),
    "one value too few": (PLAIN.replace("3.jpg,", "3.jpg "), "line 4: 1 values, and the table has 2 columns"),
    "another case": (
        PLAIN.replace("3.jpg,roses", "3.jpg,Roses"),
        "line 4: label 'Roses', and 'roses' in 2 others: they differ only in case or blanks",
    ),
    "a double row": (PLAIN + "3.jpg,roses\n", "line 8: 3.jpg is named by photos.csv line 4, too"),
}


@pytest.mark.parametrize(("text", "told"), PROBLEMS.values(), ids=PROBLEMS)
def test_rows_that_cannot_be_used(opened, text, told, caplog):
    with pytest.raises(TrainerError) as caught:
        opened(text)
    assert told in str(caught.value)
    assert "--on_bad_image=skip leaves it out:\n" in str(caught.value)
    caplog.set_level(logging.WARNING, logger="trainer")
    source = opened(text, on_bad_image="skip")
    kept = ["1.jpg", "2.jpg", "4.jpg", "5.jpg", "6.jpg"]
    assert sorted(source.ids) == (IDS if "double" in told or "named by" in told else kept)
    assert len(source.left_out) == 1
    assert "photos.csv, which cannot be used (1 with " in caplog.text
    assert told in ": ".join(source.left_out[0])
    assert told in caplog.text


def test_rows_without_a_picture_are_told_with_the_others(opened):
    text = "file,label,split\n1.jpg,a,train\n2.jpg,,train\n7.jpg,b,train\n3.jpg,b,val\n8.jpg,,test\n"
    with pytest.raises(TrainerError) as caught:
        opened(text)
    first, *lines = str(caught.value).splitlines()
    assert "2 of 5 rows of " in first
    assert " cannot be used (1 with no label, 1 with no picture); " in first
    place, names = "photos.csv line ", (": no label", ": 7.jpg: there is no such file")
    assert [line.strip() for line in lines] == [
        f"{place}{at}{why}" for at, why in zip((3, 4), names, strict=True)
    ]
    # Where the rest is well it is for the scan to tell.
    assert opened(text.replace("2.jpg,,", "2.jpg,a,")).ids == ["1.jpg", "2.jpg", "7.jpg", "3.jpg"]
    assert opened(text, on_bad_image="skip").ids == ["1.jpg", "7.jpg", "3.jpg"]


def test_two_labels_for_one_picture_are_none(opened):
    text = PLAIN + "3.jpg,daisy\n"
    with pytest.raises(TrainerError, match=r"2 of 7 rows .* \(2 with a picture that another row names\)"):
        opened(text)
    assert opened(text, on_bad_image="skip").ids == ["1.jpg", "2.jpg", "4.jpg", "5.jpg", "6.jpg"]


def test_the_order_of_labels_is_no_contradiction_and_to_say_nothing_is_none(opened):
    lists = 'file,labels\n1.jpg,"sea,sun"\n2.jpg,sea\n3.jpg,sun\n1.jpg,"sun, sea"\n2.jpg,\n'
    source = opened(lists, several=True, on_bad_image="skip")
    assert source.ids == ["1.jpg", "2.jpg", "3.jpg"]
    assert source.labels.tolist() == [(0, 1), (0,), (1,)]
    assert [reason for _, reason in source.left_out] == [
        "1.jpg is named by photos.csv line 2, too", "2.jpg is named by photos.csv line 3, too",
    ]  # fmt: skip
    # The row that says something stays, wherever it is.
    turned = opened(
        "file,labels\n2.jpg,\n3.jpg,sun\n1.jpg,sea\n2.jpg,sea\n", several=True, on_bad_image="skip"
    )
    assert (turned.ids, turned.labels.tolist()) == (["3.jpg", "1.jpg", "2.jpg"], [(1,), (0,), (0,)])


def test_a_picture_of_three_rows_is_known_by_those_that_say_something(opened):
    text = "file,label\n2.jpg,\n2.jpg,{}\n2.jpg,b\n1.jpg,a\n3.jpg,b\n"
    same = opened(text.format("b"), on_bad_image="skip")
    assert (same.ids, same.labels.tolist()) == (["2.jpg", "1.jpg", "3.jpg"], [1, 0, 1])
    assert opened(text.format("a"), on_bad_image="skip").ids == ["1.jpg", "3.jpg"]


@pytest.mark.parametrize("name", ["my image.jpg", "a%20b.jpg", "caf\u00e9.jpg"])
def test_a_file_may_be_named_as_an_address(opened, tmp_path, name):
    (tmp_path / name).write_bytes(PICTURES["1.jpg"])
    for address in {(tmp_path / name).as_uri(), f"file://{tmp_path / name}"}:
        source = opened(f"file,label\n{address},roses\n2.jpg,daisy\n3.jpg,roses\n")
        assert source.read(0) == PICTURES["1.jpg"]


def test_a_missing_picture_keeps_its_place(opened):
    source = opened(PLAIN.replace("3.jpg", "lost.jpg"))
    assert source.ids[2] == "lost.jpg"
    with pytest.raises(BadPictureError, match=r"lost\.jpg .*: there is no such file"):
        source.read(2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        # Ids without an ending, as Kaggle has them, and paths of somebody else's machine.
        ("id,label\n1,a\n2,b\n", "the column id of {}/list.csv names pictures in {}/the pictures: write "),
        (
            "file;label\nC:\\x\\1.jpg;a\nC:\\x\\2.jpg;b\n",
            "2 of 2 pictures are not there, such as {}/C:\\x\\1.jpg: they are in {}/the pictures: write ",
        ),
    ],
)
def test_the_folder_beside_a_table_is_found_that_has_its_pictures(tmp_path, text, said):
    write_pictures(tmp_path / "the pictures")
    (tmp_path / "another").mkdir()
    (tmp_path / "list.csv").write_text(text)
    address = f"table:{tmp_path / 'list.csv'}"
    with pytest.raises(TrainerError) as error:
        open_source(address, SourceOptions())
    said = said.replace("{}", str(tmp_path)) + f"--image_root='{tmp_path}/the pictures', too"
    assert str(error.value) == f"--source={address}: {said}"
    source = open_source(address, SourceOptions(image_root=str(tmp_path / "the pictures")))
    assert source.ids == ["1.jpg", "2.jpg"]


REFUSED = {
    "an empty file": ("", "is empty: expected a line with the names of the columns"),
    "a header alone": ("file,label\n", "has a header and no row"),
    "no pictures": (
        "a,b\n1,2\n3,4\n",
        "no column of {} names pictures or holds them; it has the columns a, b",
    ),
    "no labels": (
        "file,u,v\n" + "".join(f"{k}.jpg,{k / 7},{k / 3}\n" for k in range(1, 7)),
        "it is not clear from {} which label a picture has; which of its columns has the labels: "
        "u (6 different), v (6 different)",
    ),
    "one class": (PLAIN.replace("daisy", "roses"), "has only one class, roses in column label"),
    "fractions": (re.sub("roses|daisy", "0.25", PLAIN), "numbers such as '0.25', which are no classes"),
    "two columns of one name": (PLAIN.replace("file", "label"), "has 2 columns of this name: rename one"),
    "pictures elsewhere": (PLAIN.replace(".jpg", "x.jpg"), "6 of 6 pictures are not there, such as"),
    "addresses": (
        re.sub(r"(\d\.jpg)", r"https://x.org/\1", PLAIN),
        "6 of 6 pictures are addresses, such as https://x.org/1.jpg",
    ),
    "something else": (b"\x1f\x8b\x08" + bytes(range(1, 256)) * 9, "names pictures or holds them; it has"),
    "UTF-16 without its mark": (PLAIN.encode("utf-16-le"), "{} holds zero bytes, as no text in UTF-8 does"),
    "half a UTF-16": (PLAIN.encode("utf-16")[:-1], "cannot be read"),
    "a value without end": (PLAIN + "x" * 200_000, "field larger than field limit"),
    "a quote that never ends": (
        PLAIN.replace("3.jpg", '"3.jpg'),
        "line 4: a quote begins there that does not end, or ends in line 7",
    ),
}


@pytest.mark.parametrize(("text", "told"), REFUSED.values(), ids=REFUSED)
def test_tables_that_are_refused(opened, text, told, tmp_path):
    with pytest.raises(TrainerError) as caught:
        opened(text)
    assert told.format(tmp_path / "photos.csv") in str(caught.value)


def test_a_guess_that_gives_too_many_classes_is_asked_about(opened, tmp_path):
    for k in range(7, 31):
        (tmp_path / f"{k}.jpg").write_bytes(PICTURES["1.jpg"])
    text = "file,who\n" + "".join(f"{k}.jpg,p{k}\n" for k in range(1, 31))
    with pytest.raises(
        UsageError, match=r"column who has 30 different values in 30 rows: is it the one with the labels"
    ):
        opened(text)
    assert len(opened(text, label_column="who").class_names) == 30


def test_lines_are_counted_from_the_first_of_the_file(opened):
    with pytest.raises(TrainerError, match=r"photos.csv line 5: no label"):
        opened(("sep=;\n" + PLAIN.replace(",", ";")).replace("3.jpg;roses", "3.jpg;"))


@pytest.mark.parametrize("name", ["photos.jsonl", "photos.json"])
def test_json_that_is_too_deep_is_none(opened, name):
    with pytest.raises(TrainerError, match=r"JSON"):
        opened("[" * 100_000, name=name)


def test_half_of_a_character_is_no_text(opened):
    rows = [{"file": f"{k}.jpg", "label": "ab"[k % 2]} for k in range(1, 7)]
    rows[2]["label"] = "a\ud800"
    for text, name in (("\n".join(map(json.dumps, rows)), "photos.jsonl"), (json.dumps(rows), "photos.json")):
        with pytest.raises(TrainerError, match=r" (line|entry) 3: half of a character \(\\ud800\)"):
            opened(text, name=name)


def test_a_number_of_too_many_digits_is_a_name(opened):
    long = "9" * 5000
    assert opened(PLAIN.replace("daisy", "1").replace("roses", long)).class_names == ("1", long)


def test_a_column_that_is_named_twice_is_no_two_classes(opened):
    text = PLAIN.replace("label", "a,b").replace("roses", "1,0").replace("daisy", "0,1")
    with pytest.raises(UsageError, match=r"--label_column=a,a names a twice"):
        opened(text, label_column="a,a")
    assert opened(text, label_column="a,b").labels.tolist() == [0, 1, 0, 1, 0, 1]


def test_columns_that_are_not_there(opened):
    with pytest.raises(
        UsageError, match=r"--label_column=lable: .* has no such column; it has .*file, label: is it label\?"
    ):
        opened(PLAIN, label_column="lable")


def test_a_table_that_a_run_is_scored_on_may_have_other_columns(opened):
    scored = {"label_column": "species", "run_classes": ("daisy", "roses", "tulips")}
    assert plainly(opened(PLAIN, **scored)) == (IDS, LABELS, ("daisy", "roses"))
    both = PLAIN.replace("label", "species").replace("\n", ",x\n").replace("species,x", "species,label")
    assert opened(both, **scored).class_names == ("daisy", "roses")


def test_paths_of_other_machines(options, tmp_path):
    write_pictures(tmp_path / "here/photos")
    rows = ["C:\\Users\\me\\photos\\1.jpg,a", "/data/photos/2.jpg,b", "photos\\3.jpg,a", "4.jpg,b"]
    path = tmp_path / "table.csv"
    path.write_text("\n".join(["file,label", *rows]))
    rooted = dataclasses.replace(options, image_root=str(tmp_path / "here"), on_bad_image="skip")
    source = open_source(f"table:{path}", rooted)
    assert source.ids[:3] == ["photos/1.jpg", "photos/2.jpg", "photos/3.jpg"]
    assert [source.read(k) for k in range(3)] == [PICTURES[f"{k}.jpg"] for k in (1, 2, 3)]
    with pytest.raises(BadPictureError):
        source.read(3)
    with pytest.raises(UsageError, match=r"--image_root=.*nowhere is no folder"):
        open_source(f"table:{path}", dataclasses.replace(options, image_root=str(tmp_path / "nowhere")))


def test_a_folder_of_pictures_with_its_table(options, tmp_path):
    for split, names in {"train": IDS, "test": IDS[:2]}.items():
        write_pictures(tmp_path / split)
        lines = "".join(f"{name},{'ab'[k % 2]}\n" for k, name in enumerate(names))
        (tmp_path / split / "metadata.csv").write_text(f"file_name,label\n{lines}")
    source = open_source(f"table:{tmp_path}", options)
    assert source.native_splits == {"train": (0, 6), "test": (6, 8)}
    assert source.ids[:2] == ["train/1.jpg", "train/2.jpg"]
    assert source.ids[6:] == ["test/1.jpg", "test/2.jpg"]


def shards(folder):
    data = list(PICTURES.values())
    write_parquet(
        folder / "data/train-00000-of-00002.parquet",
        data[:3],
        paths=["x.jpg", "y.jpg", None],
        label=[1, 0, 1],
    )
    write_parquet(folder / "data/train-00001-of-00002.parquet", data[3:5], label=[0, 0])
    write_parquet(folder / "data/test-00000-of-00001.parquet", [*data[5:], data[0]], label=[1, 0])
    return f"table:{folder}"


@pytest.mark.parametrize("budget_bytes", [0, 10**6])
def test_shards_with_pictures_inside(options, tmp_path, budget_bytes):
    source = open_source(shards(tmp_path), dataclasses.replace(options, memory_budget_bytes=budget_bytes))
    assert source.class_names == ("daisy", "roses")
    assert source.native_splits == {"train": (0, 5), "test": (5, 7)}
    assert source.labels.tolist() == [1, 0, 1, 0, 0, 1, 0]
    assert source.ids[0] == "data/train-00000-of-00002.parquet:1/x.jpg"
    assert source.ids[2] == "data/train-00000-of-00002.parquet:3"
    data = [*PICTURES.values(), PICTURES["1.jpg"]]
    order = np.random.default_rng(0).permutation(7)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(source.read, order.tolist())) == [data[at] for at in order]


def test_paths_that_tell_pictures_apart_are_ids(options, tmp_path):
    write_parquet(tmp_path / "a.parquet", list(PICTURES.values()), paths=IDS, label=LABELS)
    assert plainly(open_source(f"table:{tmp_path}/a.parquet", options)) == (IDS, LABELS, ("daisy", "roses"))


def test_parquet_without_pictures_names_files(options, tmp_path):
    """As `Dataset.to_parquet` writes pictures that it was given by their paths."""
    write_pictures(tmp_path)
    write_parquet(tmp_path / "a.parquet", [None] * 6, paths=IDS, label=LABELS)
    source = open_source(f"table:{tmp_path}/a.parquet", options)
    assert plainly(source) == (IDS, LABELS, ("daisy", "roses"))
    assert source.read(4) == PICTURES["5.jpg"]


def test_what_parquet_may_lack(options, tmp_path):
    path = write_parquet(
        tmp_path / "a.parquet", [PICTURES["1.jpg"], None, PICTURES["2.jpg"]], label=[0, 1, 1]
    )
    source = open_source(f"table:{path}", options)
    with pytest.raises(BadPictureError, match=r"a\.parquet:2 .*: there is no picture in column image"):
        source.read(1)
    write_parquet(path, [PICTURES["1.jpg"]] * 3, label=[0, -1, 5])
    with pytest.raises(TrainerError, match=r"row 2: no label\n .*row 3: label 5, expected 0 to 1"):
        open_source(f"table:{path}", options)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(TrainerError, match=r"a\.parquet cannot be read: "):
        open_source(f"table:{path}", options)


@pytest.mark.parametrize(
    "columns",
    [
        {"image": list(PICTURES.values()), "label": [b"daisy", b"roses"] * 3},
        {"image": [name.encode() for name in PICTURES], "label": [b"daisy", b"roses"] * 3},
        {"image": pa.array(PICTURES.values()).dictionary_encode(), "label": ["daisy", "roses"] * 3},
        {"image": list(PICTURES), "label": pa.array(["daisy", "roses"] * 3).dictionary_encode()},
        {"image": list(PICTURES), "label": [Decimal(7), Decimal("7.5").to_integral()] * 3},
    ],
    ids=["texts as bytes", "paths as bytes", "a dictionary of pictures", "a dictionary", "decimals"],
)
def test_types_that_parquet_may_have(options, tmp_path, columns):
    write_pictures(tmp_path)
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    source = open_source(f"table:{tmp_path}/a.parquet", options)
    numbers = isinstance(columns["label"][0], Decimal)
    assert source.class_names == (("7", "8") if numbers else ("daisy", "roses"))
    assert source.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert [source.read(k) for k in range(6)] == list(PICTURES.values())


def test_arrow_as_save_to_disk_leaves_it(options, tmp_path):
    rows = [{"bytes": data, "path": name} for name, data in PICTURES.items()]
    for split, part in {"train": rows[:4], "test": rows[4:]}.items():
        table = pa.table({"image": part, "label": [f"c{k % 2}" for k in range(len(part))]})
        (tmp_path / split).mkdir()
        path = tmp_path / split / "data-00000-of-00001.arrow"
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=3)
        (tmp_path / split / "state.json").write_text("{}")
    source = open_source(f"table:{tmp_path}", options)
    assert plainly(source) == (IDS, [0, 1, 0, 1, 0, 1], ("c0", "c1"))
    assert source.native_splits == {"train": (0, 4), "test": (4, 6)}
    assert [source.read(k) for k in (5, 0, 3)] == [PICTURES[f"{k}.jpg"] for k in (6, 1, 4)]


@pytest.mark.parametrize("ending", ["arrow", "parquet"])
def test_a_column_may_have_a_dot_in_its_name(options, tmp_path, ending):
    """As `Dataset.flatten` leaves them."""
    write_pictures(tmp_path)
    table = pa.table({"file": IDS, "label": ["a", "b"] * 3, "meta.width": range(6), "meta.of": ["x"] * 6})
    path = tmp_path / f"photos.{ending}"
    if ending == "parquet":
        parquet.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    assert plainly(open_source(f"table:{path}", options)) == (IDS, [0, 1] * 3, ("a", "b"))
    given = dataclasses.replace(options, label_column="label", weight_column="meta.width")
    assert open_source(f"table:{path}", given).weights.tolist() == list(range(6))


@pytest.mark.parametrize("file", ["run.json", "sweep.flags", "cross_validation.json", None])
def test_what_this_program_wrote_beside_a_table_is_none(options, tmp_path, file):
    write_table(tmp_path, PLAIN)
    results = tmp_path / "runs" / "mine"
    (results / "report").mkdir(parents=True)
    parquet.write_table(pa.table({"id": ["9.jpg"], "label": ["x"]}), results / "report/predictions.parquet")
    (results / "relabel.csv").write_text("id,label\n9.jpg,x\n")
    if file:
        (results / file).write_text("{}")
    else:
        # One that has not written anything that it is known by.
        options = dataclasses.replace(options, results=(results,))
    assert plainly(open_source(f"table:{tmp_path}", options)) == (IDS, LABELS, ("daisy", "roses"))


def test_a_stamp_changes_with_table_and_pictures(options, tmp_path):
    address = write_table(tmp_path, PLAIN)
    age(tmp_path)
    stamp = open_source(address, options).stamp()
    assert stamp == open_source(address, options).stamp()
    (tmp_path / "4.jpg").write_bytes(PICTURES["5.jpg"])
    age(tmp_path)
    assert open_source(address, options).stamp() not in (stamp, None)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda folder: folder / "x.csv", "x.csv does not exist: expected a .csv"),
        (lambda folder: folder / "*.csv", "no file has a name like"),
        (lambda folder: folder, "holds no table"),
        (lambda folder: write_pictures(folder) / "1.jpg", "1.jpg is no table that can be read"),
    ],
)
def test_what_is_no_table(options, tmp_path, make, told):
    with pytest.raises(TrainerError, match=re.escape(told)):
        open_source(f"table:{make(tmp_path)}", options)
