"""Heads that are fitted: neighbours worked out by hand, and logistic regression as scikit-learn gives it."""

import numpy as np
import pytest
import tensorflow as tf
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from trainer.model import fits
from trainer.model.fits import STRENGTHS, Labelled, Probe, fit_probe
from trainer.model.heads import make_head
from trainer.tasks import SINGLE_LABEL, make_task
from trainer.values import UsageError


def head_of(text, train, *, num_logits, validation=None):
    width = train.features.shape[1]
    head = make_head(
        text,
        num_classes=max(num_logits, 2),
        num_logits=num_logits,
        dropout=0.0,
        seed=0,
        num_examples=len(train.labels),
        width=width,
        task=SINGLE_LABEL,
    )
    head.build(tf.TensorShape([None, width]))
    head.fit(train, validation or train, task=SINGLE_LABEL)
    return head


def probabilities(head, features):
    logits = SINGLE_LABEL.logits(head(tf.constant(features, tf.float32)))
    return SINGLE_LABEL.probabilities(logits.numpy())


# Cosines with (1, 0): 1, 0.6, 0 and -1, however long they are.
FOUR = Labelled(np.float32([[3, 0], [3, 4], [0, 0.1], [-2, 0]]), np.int64([0, 1, 1, 2]))


@pytest.mark.parametrize(
    ("text", "votes"),
    [
        ("knn(1)", [1, 0, 0]),
        ("knn(2,0.4)", [1, np.exp(-1), 0]),
        ("knn(k=3,temperature=0.4)", [1, np.exp(-1) + np.exp(-2.5), 0]),
        ("knn(4,1000)", [1, np.exp(-0.0004) + np.exp(-0.001), np.exp(-0.002)]),
        # There are four.
        ("knn(20,1000)", [1, np.exp(-0.0004) + np.exp(-0.001), np.exp(-0.002)]),
    ],
)
def test_neighbours_vote_by_their_cosine(text, votes):
    # One more votes for all three alike.
    expected = (np.array(votes) + 1 / 3) / (sum(votes) + 1)
    got = probabilities(head_of(text, FOUR, num_logits=3), [[7, 0]])
    np.testing.assert_allclose(got, [expected], rtol=1e-5)
    np.testing.assert_allclose(got.sum(), 1, rtol=1e-12)


def test_one_logit_gives_the_probabilities_of_two():
    two = Labelled(FOUR.features, np.int64([0, 1, 1, 0]))
    features = np.random.default_rng(0).normal(size=(20, 2))
    for text in ("knn(3)", "probe(1)"):
        one, both = (head_of(text, two, num_logits=n) for n in (1, 2))
        assert one(tf.constant(features, tf.float32)).shape == (20, 1)
        np.testing.assert_allclose(probabilities(one, features), probabilities(both, features), rtol=1e-5)


def test_neighbours_of_equal_votes_give_the_earlier_class_and_of_no_features_all_alike():
    same = Labelled(np.float32([[1, 0], [1, 0], [0, 0]]), np.int64([2, 1, 0]))
    got = probabilities(head_of("knn(2)", same, num_logits=3), [[1, 0], [0, 0]])
    assert got[0, 1] == got[0, 2] > got[0, 0]
    # All are at a cosine of 0: of equal ones, the first are taken.
    np.testing.assert_allclose(got[1], [1 / 9, 4 / 9, 4 / 9], rtol=1e-6)


def blobs(n, *, width=6, num_classes=3, seed=0, spread=1.0):
    draw = np.random.default_rng(seed)
    middles = np.random.default_rng(9).normal(size=(num_classes, width))
    labels = np.arange(n) % num_classes
    features = middles[labels] + spread * draw.normal(size=(n, width))
    # Of sizes that standardising must make alike.
    return Labelled(np.float32(features * 10.0 ** np.arange(-2, width - 2) + 5), labels)


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("strength", [0.01, 1.0])
def test_a_probe_is_what_scikit_learn_gives(num_classes, strength):
    train, other = blobs(60, num_classes=num_classes), blobs(30, num_classes=num_classes, seed=1)
    scaler = StandardScaler().fit(train.features.astype(np.float64))
    model = LogisticRegression(C=strength, max_iter=fits.MOST_ITERATIONS)
    model.fit(scaler.transform(train.features), train.labels)
    head = head_of(f"probe({strength})", train, num_logits=num_classes)
    got, expected = (
        probabilities(head, other.features),
        model.predict_proba(scaler.transform(other.features.astype(np.float64))),
    )
    np.testing.assert_allclose(got, expected, atol=2e-4)
    assert got.min() > 0.02 or strength == 1.0


def losses(train, validation):
    found = {}
    for strength in STRENGTHS:
        head = head_of(f"probe({strength:g})", train, num_logits=3)
        logits = head(tf.constant(validation.features)).numpy()
        found[strength] = SINGLE_LABEL.means(validation.labels, logits)["loss"]
    return found


def test_validation_chooses_the_strength():
    train, validation = blobs(45, spread=2.0), blobs(90, seed=1, spread=2.0)
    by_strength = losses(train, validation)
    best = min(by_strength, key=by_strength.get)
    found = fit_probe(Probe(0.0), train, validation, num_classes=3, task=SINGLE_LABEL)
    # Neither end: the search has looked beyond it.
    assert found.strength == best not in (STRENGTHS[0], STRENGTHS[-1])
    # On what it is fitted to, the closest fit is best.
    assert fit_probe(Probe(0.0), train, train, num_classes=3, task=SINGLE_LABEL).strength == STRENGTHS[-1]


def test_a_probe_is_the_same_to_the_last_bit():
    pair = [fit_probe(Probe(0.0), blobs(99), blobs(33), num_classes=3, task=SINGLE_LABEL) for _ in "12"]
    assert pair[0].kernel.tobytes() == pair[1].kernel.tobytes()


def test_a_class_that_train_has_not_is_never_predicted_and_its_loss_is_finite():
    train = Labelled(blobs(40, num_classes=2).features, np.arange(40) % 2 * 3)
    for text in ("probe", "knn(5)"):
        head = head_of(text, train, num_logits=5)
        logits = head(tf.constant(train.features)).numpy()
        assert set(logits.argmax(axis=1)) == {0, 3}
        assert np.isfinite(SINGLE_LABEL.means(np.full(40, 2), logits)["loss"])


@pytest.mark.parametrize("text", ["probe", "probe(1)", "knn"])
@pytest.mark.parametrize(
    "train",
    [
        Labelled(np.float32([[1, 2], [2, 1]]), np.int64([0, 1])),
        Labelled(np.float32([[0.1, 0.1]] * 6), np.int64([0, 1, 2, 0, 1, 0])),
        Labelled(np.zeros([4, 2], np.float32), np.int64([0, 1, 2, 0])),
        Labelled(np.float32([[1, 2], [2, 1]]), np.int64([1, 1])),
        Labelled(np.float32([[3e30, 1], [-3e30, 2], [1, 1]]), np.int64([0, 1, 2])),
    ],
    ids=["one a class", "constant", "zero", "one class", "huge"],
)
def test_few_and_odd_pictures(text, train):
    got = probabilities(head_of(text, train, num_logits=3), train.features)
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got.sum(axis=1), 1, rtol=1e-6)


def test_constant_features_give_the_shares_of_the_classes():
    train = Labelled(np.float32([[0.1, 0.1]] * 6), np.int64([0, 1, 2, 0, 1, 0]))
    got = probabilities(head_of("probe(1)", train, num_logits=3), train.features)
    np.testing.assert_allclose(got[0], [1 / 2, 1 / 3, 1 / 6], atol=1e-3)


def large(text, *, num_classes, num_examples):
    sizes = {"num_classes": num_classes, "num_logits": num_classes, "num_examples": num_examples}
    return make_head(text, **sizes, dropout=0.0, seed=0, width=1280, task=SINGLE_LABEL)


def test_too_many_classes_are_refused_and_of_many_pictures_an_even_choice_is_fitted(monkeypatch):
    with pytest.raises(UsageError, match=r"1,000 classes of 1,280 features would take too long .* 1\.6"):
        fits.most_pictures(1000, 1280, work=2e9)
    assert fits.most_pictures(1000, 1280) == 15_625
    with pytest.raises(UsageError, match=r"--head=probe: 5,000 classes .*take too long"):
        large("probe", num_classes=5000, num_examples=9)
    monkeypatch.setattr(fits, "most_pictures", lambda num_classes, width: 20)
    found = fit_probe(Probe(1.0), blobs(60), blobs(9), num_classes=3, task=SINGLE_LABEL)
    # Every third is of one class here: nothing but its own bias is left.
    assert found.num_fitted == 20
    np.testing.assert_array_equal(found.bias, np.float32([0, -30, -30]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("knn(0)", "k=0 must be a whole number from 1 to 10000"),
        ("knn(5,0)", "temperature=0 must be a number from 0.001 to 1000"),
        ("probe(-1)", "strength=-1 must be a number 0 or more"),
    ],
)
def test_wrong_arguments_are_refused(text, message):
    with pytest.raises(UsageError, match=message):
        head_of(text, FOUR, num_logits=3)


def test_neighbours_that_would_be_too_large_are_refused():
    with pytest.raises(UsageError, match=r"keeps 1,280 features of each of 1,000,000 .* 5\.1 GB, and 1\.1"):
        large("knn", num_classes=2, num_examples=1_000_000)


def test_features_that_are_no_numbers_are_refused():
    train = Labelled(np.float32([[np.nan, 1], [1, 2]]), np.int64([0, 1]))
    with pytest.raises(UsageError, match="no finite numbers"):
        head_of("probe", train, num_logits=2)


def test_a_label_each_by_itself():
    """As scikit-learn's own regressions; of what all pictures have, or none, a constant."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=[60, 4]).astype(np.float32)
    labels = np.stack(
        [features[:, 0] > 0, features[:, 1] + rng.normal(size=60) > 0.5, np.ones(60), np.zeros(60)], axis=1
    ).astype(np.float32)
    given, task = Labelled(features, labels), make_task("multi_label")
    found = fit_probe(Probe(0.1), given, given, num_classes=4, task=task)
    logits = features @ found.kernel + found.bias
    inputs = (features - features.mean(axis=0)) / features.std(axis=0)
    for k in (0, 1):
        alone = LogisticRegression(C=0.1, max_iter=200).fit(inputs, labels[:, k])
        assert logits[:, k] == pytest.approx(alone.decision_function(inputs), abs=2e-3)
    assert logits[:, 2:].tolist() == [[30.0, -30.0]] * 60


@pytest.mark.parametrize("text", ["probe", "knn"])
def test_a_task_whose_logits_are_not_those_of_the_classes_has_heads_that_are_trained(text):
    given = {"dropout": 0.0, "seed": 0, "num_examples": 9, "width": 8, "task": SINGLE_LABEL}
    with pytest.raises(UsageError, match=rf"--head={text}: .* each of 5 classes, and this task has 4"):
        make_head(text, num_classes=5, num_logits=4, **given)
    assert make_head("linear", num_classes=5, num_logits=4, **given)
    assert make_head(text, num_classes=2, num_logits=1, **given)
