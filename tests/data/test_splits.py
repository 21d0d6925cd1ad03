"""take/skip: sizes known by hand, errors, and pictures that are in two splits."""

import contextlib
import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trainer.data.sources import MemorySource
from trainer.data.splits import (
    Splits,
    check_counts,
    drop_shared,
    find_again,
    keep_together,
    leave_out,
    make_splits,
    missing_classes,
    shared_pictures,
)
from trainer.tasks import make_task
from trainer.values import TrainerError, UsageError


def source(total, *, num_classes=1, sorted_by_class=False, native=None, labels=None):
    if labels is None:
        labels = (
            np.arange(total) * num_classes // total if sorted_by_class else np.arange(total) % num_classes
        )
    return MemorySource(
        name="memory:test",
        class_names=tuple(f"class{k}" for k in range(int(max(labels)) + 1)),
        ids=[f"picture{i}" for i in range(total)],
        labels=np.asarray(labels, np.int64),
        encoded=[b""] * total,
        sorted_by_class=sorted_by_class,
        native_splits=native or {},
    )


def sizes(splits):
    return {name: len(part) for name, part in splits.indices.items()}


def ranges(splits):
    """The splits as {name: (first, last)}, after checking that each is in order and without a hole."""
    found = {}
    for name, part in splits.indices.items():
        np.testing.assert_array_equal(part, np.arange(part[0], part[-1] + 1))
        found[name] = (int(part[0]), int(part[-1]))
    return found


@pytest.mark.parametrize(
    ("total", "spec", "expected"),
    [
        (3670, "50%,25%,25%", [1835, 918, 917]),
        (2569, "50%,25%,25%", [1284, 643, 642]),
        (3670, "1835,918,rest", [1835, 918, 917]),
        (3670, "1835,918,917", [1835, 918, 917]),
        (3670, "80%,20%", [2936, 734]),
        (3670, "auto", [2936, 367, 367]),
        (10, "80%,10%,10%", [8, 1, 1]),
        (10, "33.3%,33.3%,33.3%", [3, 3, 4]),
        (10, "50%,rest", [5, 5]),
        (10, "4,50%,10%", [4, 5, 1]),
        (10, "3,2", [3, 2]),
        (3670, "80pictures, 20 pictures", [80, 20]),
        (7, "50%, 25%, 25%", [3, 2, 2]),
    ],
)
def test_sizes(total, spec, expected):
    splits = make_splits(source(total), spec)
    assert sizes(splits) == dict(zip(("train", "validation", "test"), expected, strict=False))
    bounds = np.cumsum([0, *expected]).tolist()
    assert list(ranges(splits).values()) == [(a, b - 1) for a, b in itertools.pairwise(bounds)]


def test_says_what_it_took_and_what_it_left():
    assert make_splits(source(10), "3,2").how == "3,2 of 10, in the source's order; 5 left unused"
    assert "left unused" not in make_splits(source(10), "50%,50%").how
    by_class = source(10, sorted_by_class=True)
    stratified = make_splits(by_class, "50%,50%", seed=7)
    assert stratified.how == "50%,50% of 10, class by class, shuffled (--split_seed=7)"
    assert make_splits(source(10), "5,5", order="permuted").how == "5,5 of 10, shuffled (--split_seed=42)"
    assert [
        make_splits(of, "50%,50%", order=order).order
        for of in (by_class, source(10))
        for order in ("auto", "take_skip")
    ] == ["stratified", "permuted", "source", "source"]


TRAIN_TEST = {"train": (0, 100), "test": (100, 130)}
ALL_THREE = {"train": (0, 100), "validation": (100, 120), "test": (120, 130)}


@pytest.mark.parametrize(
    ("native", "spec", "expected"),
    [
        (TRAIN_TEST, "train[:80%],train[80%:],test", [(0, 79), (80, 99), (100, 129)]),
        (TRAIN_TEST, "train[:10],train[90:]", [(0, 9), (90, 99)]),
        (TRAIN_TEST, "train[10:20],train[20:25],test[50%:]", [(10, 19), (20, 24), (115, 129)]),
        (TRAIN_TEST, "train[:33%],train[33%:],test", [(0, 32), (33, 99), (100, 129)]),
        (TRAIN_TEST, "test,train", [(100, 129), (0, 99)]),
        (TRAIN_TEST, "auto", [(0, 89), (90, 99), (100, 129)]),
        (ALL_THREE, "auto", [(0, 99), (100, 119), (120, 129)]),
        ({"train": (0, 100), "validation": (100, 130)}, "auto", [(0, 99), (100, 129)]),
        # As a column of a table calls them.
        ({"train": (0, 100), "hold-out": (100, 130)}, "train,hold-out", [(0, 99), (100, 129)]),
        ({"2019-2020": (0, 100), "test A": (100, 130)}, "2019-2020,test A[:50%]", [(0, 99), (100, 114)]),
        ({"2018": (0, 100), "2019-2020": (100, 130)}, "2018,2019-2020", [(0, 99), (100, 129)]),
        ({"train": (0, 130)}, "auto", [(0, 103), (104, 116), (117, 129)]),
        ({}, "auto", [(0, 103), (104, 116), (117, 129)]),
    ],
)
def test_named_ranges_and_auto(native, spec, expected):
    splits = make_splits(source(130, native=native), spec)
    assert ranges(splits) == dict(zip(("train", "validation", "test"), expected, strict=False))


def test_bounds_of_two_ranges_meet_at_odd_shares():
    splits = make_splits(source(7, native={"train": (0, 7)}), "train[:50%],train[50%:]")
    assert sizes(splits) == {"train": 4, "validation": 3}


def test_sorted_sources_are_permuted_by_seed_and_others_are_not():
    by_class = source(100, num_classes=5, sorted_by_class=True)
    splits = make_splits(by_class, "50%,50%", order="take_skip", seed=3)
    order = np.concatenate(list(splits.indices.values()))
    np.testing.assert_array_equal(order, np.random.default_rng(3).permutation(100))
    assert order.dtype == np.int64
    again = make_splits(by_class, "50%,50%", order="take_skip", seed=3)
    other = make_splits(by_class, "50%,50%", order="take_skip", seed=4)
    np.testing.assert_array_equal(again.indices["train"], splits.indices["train"])
    assert again.indices["train"].tolist() != other.indices["train"].tolist()
    assert set(by_class.labels[splits.indices["train"]].tolist()) == set(range(5))
    for order in ("auto", "take_skip"):
        mixed = make_splits(source(100, num_classes=5), "50%,50%", order=order, seed=3)
        assert ranges(mixed) == {"train": (0, 49), "validation": (50, 99)}


def counted(splits, of):
    """How many pictures of each class are in each split, {split: [K]}."""
    size = len(of.class_names)
    return {
        name: np.bincount(of.labels[part], minlength=size).tolist() for name, part in splits.indices.items()
    }


def test_shares_of_a_sorted_source_are_taken_class_by_class():
    rare = source(303, sorted_by_class=True, labels=[0] * 300 + [1] * 3)
    splits = make_splits(rare, "80%,10%,10%")
    assert counted(splits, rare) == {"train": [240, 2], "validation": [31, 0], "test": [29, 1]}
    assert missing_classes(rare, splits.indices) == {"validation": ["class1"]}
    # In the order of the permutation: not class after class.
    place = np.empty(303, np.int64)
    place[np.random.default_rng(42).permutation(303)] = np.arange(303)
    assert all((np.diff(place[part]) > 0).all() for part in splits.indices.values())
    other = make_splits(rare, "80%,10%,10%", seed=43)
    assert counted(other, rare) == counted(splits, rare)
    assert other.indices["test"].tolist() != splits.indices["test"].tolist()


def test_counts_that_leave_pictures_unused_are_stratified_too():
    three = source(600, sorted_by_class=True, labels=[0] * 100 + [1] * 200 + [2] * 300)
    splits = make_splits(three, "60,30,30")
    assert counted(splits, three) == {"train": [10, 20, 30], "validation": [5, 10, 15], "test": [5, 10, 15]}
    assert splits.how.endswith("; 480 left unused")


def test_ranges_of_a_split_of_a_folder_are_stratified():
    labels = [0] * 40 + [1] * 50 + [2] * 10 + [0] * 3 + [1] * 7
    folder = source(110, sorted_by_class=True, labels=labels, native={"train": (0, 100), "test": (100, 110)})
    splits = make_splits(folder, "auto")
    assert counted(splits, folder) == {"train": [36, 45, 9], "validation": [4, 5, 1], "test": [3, 7, 0]}
    splits = make_splits(folder, "train[20%:],train[:20%]")
    assert counted(splits, folder) == {"train": [32, 40, 8], "validation": [8, 10, 2]}
    splits = make_splits(folder, "train[:50%],train[60%:70%],train[90%:]")
    assert counted(splits, folder) == {"train": [20, 25, 5], "validation": [4, 5, 1], "test": [4, 5, 1]}


def test_a_class_in_no_split_is_named():
    rare = source(100, sorted_by_class=True, labels=[0] * 99 + [1])
    with pytest.raises(TrainerError, match="'class1' has pictures, but none of them is in a split"):
        make_splits(rare, "50,40", order="source")
    assert counted(make_splits(rare, "50,40"), rare)["train"] == [49, 1]


def test_the_order_can_be_chosen():
    by_class = source(100, num_classes=1, sorted_by_class=True)
    assert ranges(make_splits(by_class, "50%,50%", order="source"))["train"] == (0, 49)
    mixed = make_splits(source(100), "50%,50%", order="permuted", seed=3)
    np.testing.assert_array_equal(mixed.indices["train"], np.random.default_rng(3).permutation(100)[:50])


def test_ranges_of_a_sorted_source_are_permuted_within_each_native_split():
    by_class = source(130, num_classes=5, sorted_by_class=True, native=TRAIN_TEST, labels=np.arange(130) % 5)
    splits = make_splits(by_class, "train[:50%],train[50%:],test", seed=1)
    both = np.concatenate([splits.indices["train"], splits.indices["validation"]])
    assert both.tolist() != list(range(100))
    assert sorted(both.tolist()) == list(range(100))
    assert sorted(splits.indices["test"].tolist()) == list(range(100, 130))


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("100%", UsageError, "2 or 3 parts"),
        ("40%,20%,20%,20%", UsageError, "2 or 3 parts"),
        ("80%,30%", UsageError, "more than 100%"),
        ("100,31", UsageError, "asks for 131 pictures or more; there are 130"),
        ("131,rest", UsageError, "there are 130"),
        ("half,rest", UsageError, "'half'"),
        ("80 percent,20", UsageError, "'80 percent'"),
        ("rest,50%", UsageError, "'rest'"),
        ("-5,10", UsageError, "'-5'"),
        ("train[:80%],train[70%:],test", UsageError, "picture70 is both in train and in validation"),
        ("train,train", UsageError, "picture0 is both in train and in validation"),
        ("train[:101],test", UsageError, "overruns the 100 pictures of train"),
        ("train[:101%],test", UsageError, "overruns the 100 pictures of train"),
        ("train,dev", UsageError, "no split 'dev'; it has: train, test"),
        ("train[1:2:3],test", UsageError, "is no range"),
        ("train,hold-out", UsageError, "'hold-out' is no range"),
        ("train[80%:10%],test", TrainerError, "the train split is empty"),
        ("100%,0%", TrainerError, "the validation split is empty"),
        ("130,rest", TrainerError, "the validation split is empty"),
        ("0,50", TrainerError, "the train split is empty"),
    ],
)
def test_wrong_specs(spec, error, message):
    with pytest.raises(TrainerError) as caught:
        make_splits(source(130, native=TRAIN_TEST), spec)
    assert type(caught.value) is error
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_class_missing_in_train_is_named():
    by_class = source(100, num_classes=5, sorted_by_class=True)
    with pytest.raises(TrainerError, match="class 'class4' is in the validation split but not in train"):
        make_splits(by_class, "80%,20%", order="source")


@settings(max_examples=200, deadline=None)
@given(
    total=st.integers(3, 5000),
    shares=st.lists(st.integers(1, 100), min_size=2, max_size=3),
    permuted=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_shares_of_anything_are_disjoint_in_order_and_cover(total, shares, permuted, seed):
    whole = sum(shares)
    # Three decimals, the last share being what is left of 100.
    parts = [round(100 * share / whole, 3) for share in shares[:-1]]
    parts.append(round(100 - sum(parts), 3))
    spec = ",".join(f"{part:.3f}%" for part in parts)
    order = "permuted" if permuted else "source"
    if total * min(parts) / 100 < 1:
        # Too few to give each split one for certain: then a split may be empty, and nothing else wrong.
        with contextlib.suppress(TrainerError):
            make_splits(source(total), spec, order=order, seed=seed)
        return
    splits = make_splits(source(total), spec, order=order, seed=seed)
    joined = np.concatenate(list(splits.indices.values()))
    expected = np.random.default_rng(seed).permutation(total) if permuted else np.arange(total)
    np.testing.assert_array_equal(joined, expected)
    for part, count in zip(parts, sizes(splits).values(), strict=True):
        assert abs(count - total * part / 100) < 1.5


def by_hand(**indices):
    return Splits({name: np.array(part, np.int64) for name, part in indices.items()}, "by hand")


def test_pictures_are_found_again_by_bytes_and_class_whatever_they_are_called():
    there = MemorySource(
        name="memory:moved",
        class_names=("cafe\u0301", "tea"),
        ids=["a", "b", "c", "d", "e"],
        labels=np.array([0, 0, 1, 1, 0]),
        encoded=[b""] * 5,
    )
    recorded = {
        "train": [("y", "cafe\u0301", "1"), ("x", "tea", "2")],
        # Alike but for their names: b is in test. The same bytes in another class are another picture.
        "test": [("b", "caf\u00e9", "1"), ("z", "tea", "1"), ("w", "tea", "3")],
    }
    found = find_again(recorded, there, ["1", "1", "2", "4", "9"])
    assert {name: part.tolist() for name, part in found.items()} == {"train": [0, 2], "test": [1, -1, -1]}


def test_pictures_of_several_labels_are_found_again_whatever_order_the_labels_have():
    """Columns of a table are in the order of the file."""
    there = MemorySource(
        name="memory:moved",
        class_names=("trees", "sea"),
        ids=["a", "b", "c"],
        labels=np.array([[1, 1], [0, 1], [0, 0]], np.float32),
        encoded=[b""] * 3,
    )
    recorded = {"train": [("a", "sea, trees", "1"), ("b", "sea", "2")], "test": [("c", "(none)", "3")]}
    found = find_again(recorded, there, ["1", "2", "3"], task=make_task("multi_label"))
    assert {name: part.tolist() for name, part in found.items()} == {"train": [0, 1], "test": [2]}


# a is in all three splits, c twice in train, d in validation and test.
DIGESTS = ["a", "c", "c", "b", "a", "d", "e", "d", "a"]
THREE = by_hand(train=[0, 1, 2, 3], validation=[4, 5, 6], test=[7, 8])


def test_shared_pictures_are_those_in_two_splits():
    assert shared_pictures(THREE.indices, DIGESTS) == [
        [("train", 0), ("validation", 4), ("test", 8)],
        [("validation", 5), ("test", 7)],
    ]
    assert shared_pictures(THREE.indices, list("abcdefghi")) == []


def test_the_earlier_split_loses_what_a_later_one_has():
    kept = drop_shared(THREE, DIGESTS)
    assert {name: part.tolist() for name, part in kept.indices.items()} == {
        "train": [1, 2, 3],
        "validation": [6],
        "test": [7, 8],
    }
    assert kept.how == "by hand; 3 repeated pictures dropped"
    assert all(part.dtype == np.int64 for part in kept.indices.values())
    assert shared_pictures(kept.indices, DIGESTS) == []
    assert drop_shared(THREE, list("abcdefghi")).how == "by hand"


def test_a_split_that_is_all_repeats_is_an_error():
    with pytest.raises(TrainerError, match="validation split empty"):
        drop_shared(by_hand(train=[0], validation=[1, 2], test=[3, 4]), ["x", "a", "b", "a", "b"])


def together(splits, keys, classes):
    """Of pictures that have one class each."""
    return keep_together(splits, keys, classes_of=lambda at: {int(classes[at])})


def test_groups_come_to_be_whole_and_nobody_else_moves():
    # Pairs (0, 5), (3, 7) and (8, 9) of THREE with splits 0 to 4, 5 and 6, 7 to 9.
    before = by_hand(train=[0, 1, 2, 3, 4], validation=[5, 6], test=[7, 8, 9])
    keys = [0, 1, 2, 3, 4, 0, 6, 3, 8, 8]
    kept = together(before, keys, np.zeros(10, np.int64))
    assert shared_pictures(kept.indices, keys) == []
    # Train lacks two, and gets the first pair. Of the others, which lack one, test has had one of the second.
    assert {name: part.tolist() for name, part in kept.indices.items()} == {
        "train": [1, 2, 4, 0, 5],
        "validation": [6],
        "test": [8, 9, 3, 7],
    }
    assert kept.how == "by hand; 2 groups of near duplicates put into one split each"
    assert together(before, range(10), np.zeros(10, np.int64)) is not None
    assert together(before, range(10), np.zeros(10, np.int64)).how == "by hand"


def test_where_everything_is_in_groups_the_splits_stay_about_as_large():
    # 60 scenes of 10 pictures in turn, so that every scene is torn.
    before = by_hand(train=range(480), validation=range(480, 540), test=range(540, 600))
    keys = [at % 60 for at in range(600)]
    classes = np.array([at % 60 % 3 for at in range(600)])
    kept = together(before, keys, classes)
    assert shared_pictures(kept.indices, keys) == []
    assert sizes(kept) == {"train": 480, "validation": 60, "test": 60}
    for part in kept.indices.values():
        assert np.bincount(classes[part]).tolist() == [len(part) // 3] * 3


def test_a_class_that_is_one_group_is_in_train():
    before = by_hand(train=[0, 1, 2, 3], validation=[4, 5, 6], test=[7])
    kept = together(before, [0, 1, 2, 9, 9, 9, 6, 7], np.array([0, 0, 0, 1, 1, 1, 0, 0]))
    assert kept.indices["train"].tolist() == [0, 1, 2, 3, 4, 5]


def test_of_several_labels_a_rare_combination_of_known_ones_may_leave_train():
    """200 scenes of 3 frames with 2 to 4 of 20 labels: hardly two scenes have the same ones."""
    rng = np.random.default_rng(0)
    of_scene = np.stack([rng.permutation(np.arange(20) < rng.integers(2, 5)) for _ in range(200)])
    scenes = np.arange(600) % 200
    labels, task = of_scene[scenes].astype(np.float32), make_task("multi_label")
    before = by_hand(train=range(480), validation=range(480, 540), test=range(540, 600))
    kept = keep_together(before, scenes.tolist(), classes_of=lambda at: task.classes_in(labels[at : at + 1]))
    assert shared_pictures(kept.indices, scenes.tolist()) == []
    assert sum(map(len, kept.indices.values())) == 600
    for name, part in before.indices.items():
        assert abs(len(kept.indices[name]) - len(part)) <= 6
    assert task.classes_in(labels[kept.indices["train"]]) == set(range(20))


def test_a_split_that_groups_leave_empty_is_an_error():
    with pytest.raises(TrainerError, match="--near_duplicates=group leaves the validation split empty"):
        together(by_hand(train=[0, 1], validation=[2]), [0, 1, 1], np.zeros(3, np.int64))


def test_bad_pictures_leave_and_nobody_else_moves():
    whole = make_splits(source(100, num_classes=5, sorted_by_class=True), "50%,30%,20%", seed=3)
    kept = leave_out(whole, {7, 40, 99}, source(100, num_classes=5, sorted_by_class=True))
    for name, positions in whole.indices.items():
        assert kept.indices[name].tolist() == [p for p in positions.tolist() if p not in (7, 40, 99)]
        assert kept.indices[name].dtype == np.int64
    assert kept.how == whole.how + "; 3 bad pictures left out"
    assert leave_out(whole, (), source(100, num_classes=5)).how == whole.how


def test_bad_pictures_that_were_in_no_split_leave_none():
    splits = make_splits(source(100), "50,20", order="source")
    kept = leave_out(splits, {70, 99}, source(100))
    assert sizes(kept) == {"train": 50, "validation": 20}
    assert kept.how == splits.how
    assert leave_out(splits, {69, 99}, source(100)).how.endswith("; 1 bad pictures left out")


def test_a_split_of_bad_pictures_is_an_error():
    splits = make_splits(source(10), "8,2", order="source")
    with pytest.raises(TrainerError) as caught:
        leave_out(splits, {1, 8, 9}, source(10))
    assert str(caught.value) == "the validation split is empty without bad pictures: all 2 in it are bad"


def test_a_class_of_bad_pictures_is_an_error():
    by_class = source(10, labels=[0, 0, 1, 1, 0, 1, 0, 1, 1, 1], native={"train": (0, 5), "test": (5, 8)})
    splits = make_splits(by_class, "train,test")
    assert sizes(leave_out(splits, {2, 8}, by_class)) == {"train": 4, "validation": 3}
    for bad in ({2, 3}, {2, 3, 5, 7}):
        with pytest.raises(TrainerError) as caught:
            leave_out(splits, bad, by_class)
        text = "class 'class1' has only bad pictures in train: nothing could learn it"
        assert str(caught.value) == text
        # In another fold it has pictures.
        left = sizes(leave_out(splits, bad, by_class, may_lack_classes=True))
        assert left == {"train": 3, "validation": 3 - len(bad - {2, 3})}


@settings(max_examples=300, deadline=None)
@given(st.text("0123456789²٣%:[],. train-rest", max_size=20))
@example("train[%:],test")
@example("train[:%],test")
@example("²,1,rest")
@example("٣,1,rest")
@example("9" * 5000 + ",1,rest")
@example("train[" + "9" * 5000 + "%:],test")
def test_any_text_divides_or_is_refused_in_a_line(spec):
    native = {"train": (0, 20), "test": (20, 30)}
    told = ""
    try:
        make_splits(source(30, native=native), spec)
    except TrainerError as error:
        told = str(error)
    assert "\n" not in told


@pytest.mark.parametrize(
    ("spec", "total", "asked"),
    [
        (
            "80,20",
            3670,
            "takes 100 pictures and leaves 3,570 of 3,670 unused; did you mean --splits=80%,20%? ",
        ),
        ("80,10,10", 40, "takes 100 pictures and there are only 40; did you mean --splits=80%,10%,10%? "),
        (
            "60,20,20",
            103,
            "takes 100 pictures and leaves 3 of 103 unused; did you mean --splits=60%,20%,20%? ",
        ),
        ("0.8, 0.2", 3670, "is neither shares nor counts; did you mean --splits=80%,20%?"),
        (".8,.1,.1", 50, "is neither shares nor counts; did you mean --splits=80%,10%,10%?"),
        ("33.3,66.7", 50, "is neither shares nor counts; did you mean --splits=33.3%,66.7%?"),
        ("0.5,1.7", 50, "is neither shares nor counts; they add up to 2.2; shares are written 80%,20%"),
    ],
)
def test_numbers_that_look_like_shares_are_asked_about(spec, total, asked):
    with pytest.raises(UsageError) as raised:
        check_counts(spec, total)
    told = str(raised.value).removeprefix(f"--splits={spec} ")
    exactly = spec.replace(",", "pictures,")
    way_on = f"For exactly these numbers of pictures write --splits={exactly}pictures"
    assert told == asked + way_on * asked.endswith(" ")


@pytest.mark.parametrize(
    ("spec", "total"),
    [
        ("2935,367,368", 3670), ("24,8,8", 40), ("24,8,8", 80), ("80,20", 100), ("10,10", 18),
        ("80%,20%", 90), ("80,20,rest", 3670), ("80pictures,20pictures", 3670), ("train[:80],test", 3670),
        ("auto", 3670),
    ],
)  # fmt: skip
def test_honest_numbers_are_not_asked_about(spec, total):
    assert check_counts(spec, total) == ""


def test_numbers_that_leave_most_pictures_unused_are_warned_of():
    assert check_counts("500,100", 3670) == (
        "--splits=500,100 takes 600 pictures and leaves 3,070 of 3,670 unused; shares are written 80%,20%"
    )
