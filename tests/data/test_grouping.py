"""Groups that are divided as a whole, and folds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from trainer.data.grouping import divide_groups, groups_of, in_turn
from trainer.data.sources import MemorySource
from trainer.data.splits import make_splits
from trainer.values import TrainerError, UsageError


def source(labels, groups=None, *, ids=None, native=None):
    labels = np.array(labels)
    names = tuple("abcdefgh"[: labels.max() + 1])
    made = MemorySource("here", names, ids or [f"{k}.jpg" for k in range(len(labels))], labels, [])
    made.native_splits, made.groups = native or {}, groups
    return made


def splits_of(labels, groups, spec="50%,25%,25%", **given):
    return make_splits(source(labels), spec, groups=np.array(groups, object), **given)


def test_a_division_that_can_only_be_one():
    # Groups of 4, 2 and 2, of half a and half b each.
    groups = list("xxxxyyzz")
    labels = [0, 0, 1, 1, 0, 1, 0, 1]
    splits = splits_of(labels, groups)
    assert sorted(splits.indices["train"].tolist()) == [0, 1, 2, 3]
    assert {tuple(sorted(splits.indices[name].tolist())) for name in ("validation", "test")} == {
        (4, 5),
        (6, 7),
    }
    assert splits.how == (
        "50%,25%,25% of 8, class by class, shuffled (--split_seed=42); 3 groups of up to 4 kept together"
    )


def test_classes_are_spread_though_groups_have_one_each():
    groups = np.repeat(np.arange(20), 5)
    labels = np.repeat(np.arange(20) % 2, 5)
    splits = splits_of(labels, groups, "80%,10%,10%")
    for name, count in {"train": 40, "validation": 5, "test": 5}.items():
        assert np.bincount(labels[splits.indices[name]]).tolist() == [count, count]


def test_a_class_in_few_groups_is_in_train_with_the_largest_and_then_in_test():
    # Class 1 is in groups 0 (8 examples), 1 (2) and 2 (1); all others are class 0.
    groups = np.concatenate([np.repeat([0, 1, 2], [8, 2, 1]), np.arange(3, 60)])
    labels = np.array([1] * 11 + [0] * 57)
    indices = splits_of(labels, groups, "80%,10%,10%").indices
    found = {name: int((labels[positions] == 1).sum()) for name, positions in indices.items()}
    assert found == {"train": 8, "test": 2, "validation": 1}


def test_a_class_that_comes_with_a_rarer_one_goes_to_test_next():
    # Classes 0 and 1 are in the group of the pair, and 0 in one more; the rarer one brings 0 to train.
    groups = np.array(["pair", "pair", *["other"] * 3, *range(45)], object)
    strata = np.array([0, 1, *[0] * 3, *[2] * 45])
    train, validation, test = divide_groups(groups, strata, [40, 5, 5], order=[0, 2, 1])
    assert {0, 1} <= set(train.tolist())
    assert {2, 3, 4} <= set(test.tolist())
    assert len(validation) == 5


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 11), st.integers(0, 2)), min_size=12, max_size=80),
    st.sampled_from(["stratified", "permuted", "source"]),
    st.integers(0, 3),
)
def test_no_group_crosses_and_nothing_is_lost(rows, order, seed):
    groups, labels = np.array([g for g, _ in rows]), np.array([k for _, k in rows])
    made = source(labels)
    try:
        splits = make_splits(made, "60%,20%,20%", groups=groups, order=order, seed=seed)
    except TrainerError:
        return  # Too few groups, or a class that is not in train: told, not passed over.
    parts = list(splits.indices.values())
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(rows)))
    of = [set(groups[part].tolist()) for part in parts]
    assert sum(map(len, of)) == len(set().union(*of))
    again = make_splits(made, "60%,20%,20%", groups=groups, order=order, seed=seed)
    assert all((again.indices[name] == part).all() for name, part in splits.indices.items())


def chi_squared(parts, strata):
    whole = np.bincount(strata) / len(strata)
    return sum(
        float(
            ((np.bincount(strata[part], minlength=len(whole)) - whole * len(strata) / len(parts)) ** 2).sum()
        )
        for part in parts
    )


def test_folds_are_as_even_as_those_of_scikit_learn():
    mine, theirs = 0.0, 0.0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        groups = rng.integers(0, 40, 400) ** 2 // 40
        strata = (groups * 7 % 5 + rng.integers(0, 2, 400)) % 5
        mine += chi_squared(divide_groups(groups, strata, [80] * 5, order=range(5)), strata)
        folds = StratifiedGroupKFold(5).split(strata, strata, groups)
        theirs += chi_squared([test for _, test in folds], strata)
    assert mine < theirs


def test_train_has_each_class_and_others_most():
    missing = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        groups = rng.integers(0, 30, 120)
        strata = np.minimum(rng.geometric(0.35, 120) - 1, 9)
        parts = divide_groups(groups, strata, [72, 24, 24], order=[0, 2, 1])
        assert set(strata[parts[0]].tolist()) == set(strata.tolist())
        # Of a class in two groups or more, test has one before validation has.
        missing += sum(
            len(set(groups[strata == k].tolist())) > 1 and not (strata[parts[2]] == k).any()
            for k in range(10)
        )
    assert missing <= 30


def test_groups_in_turn():
    parts = in_turn(np.array(list("aaabbcaa")), [4, 2, 2])
    assert [part.tolist() for part in parts] == [[0, 1, 2, 6, 7], [3, 4], [5]]


def test_folds_meet_every_example_once_in_test_and_validation():
    labels = np.arange(31) % 3
    folds = [make_splits(source(labels), "auto", fold=(k, 4), seed=1) for k in (1, 2, 3, 4)]
    for name in ("test", "validation"):
        assert sorted(np.concatenate([one.indices[name] for one in folds]).tolist()) == list(range(31))
    for one, following in zip(folds, [*folds[1:], folds[0]], strict=True):
        assert one.indices["validation"].tolist() == following.indices["test"].tolist()
        assert sorted(np.concatenate(list(one.indices.values())).tolist()) == list(range(31))
        counts = np.bincount(labels[one.indices["test"]], minlength=3)
        assert counts.max() - counts.min() <= 1
    assert folds[1].how == "fold 2 of 4 of 31, class by class, shuffled (--split_seed=1)"


def test_folds_keep_groups_together_whatever_the_source_came_with():
    groups = np.repeat(np.arange(10), 3)
    made = source(groups % 2, native={"train": (0, 20), "test": (20, 30)})
    found = [make_splits(made, "auto", fold=(k, 5), groups=groups).indices["test"] for k in range(1, 6)]
    assert [sorted(set(groups[part].tolist())) for part in found] != []
    assert all(len(part) == 6 and sorted(np.bincount(groups[part] % 2)) == [3, 3] for part in found)
    assert sorted(np.concatenate(found).tolist()) == list(range(30))


def test_a_rare_class_may_be_missing_in_the_train_of_a_fold():
    labels = np.array([0] * 29 + [1])
    counts = [
        int((labels[make_splits(source(labels), "auto", fold=(k, 3)).indices["train"]] == 1).sum())
        for k in (1, 2, 3)
    ]
    assert sorted(counts) == [0, 0, 1]


@pytest.mark.parametrize(
    ("fold", "spec", "message"),
    [
        ((1, 2), "auto", "--folds=2 must be 3 or more"),
        ((0, 5), "auto", "--fold=0 must be from 1 to 5, the number of --folds"),
        ((6, 5), "auto", "--fold=6 must be from 1 to 5"),
        ((1, 5), "80%,20%", "--folds=5 and --splits=80%,20% both divide the pictures: give one"),
    ],
)
def test_folds_that_cannot_be(fold, spec, message):
    with pytest.raises(UsageError) as caught:
        make_splits(source([0, 1] * 10), spec, fold=fold)
    assert str(caught.value).startswith(message)


def test_groups_across_the_splits_of_the_source_are_refused():
    groups = np.array(list("aabbccdd") + list("dd"), object)
    made = source([0, 1] * 5, native={"train": (0, 8), "test": (8, 10)})
    with pytest.raises(
        UsageError, match=r"1 groups are in two splits, such as d in (train|validation) and test: "
    ):
        make_splits(made, "auto", groups=groups)
    assert len(make_splits(made, "60%,20%,20%", groups=groups).indices["test"]) == 2


def test_more_splits_than_groups():
    with pytest.raises(TrainerError, match="split is empty: there are 2 groups, and each is in one split"):
        splits_of([0, 1, 0, 1], list("xxyy"))


def test_groups_by_the_names_of_pictures():
    ids = ["p1_a.jpg", "p1_b.jpg", "p2_a.jpg", "other.jpg"]
    made = source([0, 1, 0, 1], ids=ids)
    assert groups_of(made, pattern=r"^(p\d)_").tolist() == ["p1", "p1", "p2", "\0other.jpg"]
    assert groups_of(made, pattern=r"^p\d").tolist() == ["p1", "p1", "p2", "\0other.jpg"]
    assert groups_of(made) is None
    with pytest.raises(UsageError, match=r"--groups=zzz is found in no name of a picture, such as p1_a\.jpg"):
        groups_of(made, pattern="zzz")
    with pytest.raises(UsageError, match="is of --source=table:; for here use --groups"):
        groups_of(made, column="who")
    with pytest.raises(UsageError, match="give one"):
        groups_of(made, column="who", pattern="x")


def test_each_of_several_labels_is_spread():
    # 60 groups of two; each class is in 20 groups, some in the same ones.
    has = np.zeros((120, 3), np.float32)
    for k in range(3):
        has[np.arange(20) * 2 + k * 20, k] = 1
    parts = divide_groups(np.repeat(np.arange(60), 2), has, [60, 30, 30], order=[0, 2, 1])
    assert [len(part) for part in parts] == [60, 30, 30]
    assert [has[part].sum(axis=0).tolist() for part in parts] == [[10] * 3, [5] * 3, [5] * 3]
