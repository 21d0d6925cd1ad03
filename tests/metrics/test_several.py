"""Numbers of any number of labels an example, worked out by hand or by scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics as sk_metrics

from trainer.metrics import several
from trainer.tasks import make_task

# Four pictures, three labels, the last of which none has.
LABELS = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]])
LOGITS = np.array([[2.0, -1.0, -3.0], [0.5, 1.0, -3.0], [1.0, -2.0, -3.0], [-1.0, -1.5, -3.0]])


def drawn(count=200, labels=4):
    rng = np.random.default_rng(1)
    truth = (rng.random([count, labels]) < 0.3).astype(int)
    return truth, np.round(rng.normal(size=truth.shape) + truth, 1)


def scored(labels=LABELS, logits=LOGITS, **options):
    return make_task("multi_label").scores(labels, logits, ("a", "b", "c"), **options)


def test_average_precision_by_hand():
    # a: right at ranks 1 and 3, (1 + 2/3) / 2. b: at ranks 1 and 4, (1 + 2/4) / 2. c: nobody has it.
    found = several.average_precisions(LABELS, LOGITS)
    assert found == [pytest.approx(5 / 6), pytest.approx(3 / 4), None]
    values = scored()
    assert values["map"] == pytest.approx((5 / 6 + 3 / 4) / 2)
    assert values["undefined"]["map"] == "no picture has c; it is the mean of the other labels"
    assert values["classes"]["c"]["average_precision"] is None


def test_f1_in_three_ways_by_hand():
    # Predicted from 0.5 on, where the logit is 0: a of pictures 0, 1, 2; b of picture 1.
    values = scored()
    assert values["classes"]["a"] | {} == {
        "precision": pytest.approx(2 / 3), "recall": 1.0, "f1": pytest.approx(4 / 5), "support": 2,
        "predicted": 3, "average_precision": pytest.approx(5 / 6), "roc_auc": pytest.approx(3 / 4),
    }  # fmt: skip
    assert values["classes"]["b"]["f1"] == pytest.approx(2 / 3)
    # c is neither there nor predicted: it is left out of the mean of the labels.
    assert values["macro"]["f1"] == pytest.approx((4 / 5 + 2 / 3) / 2)
    # 3 right of 4 predicted and 4 true.
    assert values["micro"]["f1"] == pytest.approx(2 * 3 / 8)
    # Right, right, nothing right of one each, and nothing where nothing is.
    assert values["samples"]["f1"] == pytest.approx((1 + 1 + 0 + 1) / 4)
    assert (values["num_correct"], values["accuracy"]) == (3, 3 / 4)
    # Of 12 decisions, a of picture 2 is wrong, and b.
    assert values["hamming_loss"] == pytest.approx(2 / 12)
    assert values["cooccurrence"] == [[2, 1, 0], [1, 2, 0], [0, 0, 0]]


def test_as_scikit_learn_has_it():
    labels, logits = drawn()
    names = list("abcd")
    values = make_task("multi_label").scores(labels, logits, names)
    said = (logits >= 0).astype(int)
    chances = 1 / (1 + np.exp(-logits))
    assert values["map"] == pytest.approx(sk_metrics.average_precision_score(labels, logits))
    assert values["roc_auc"] == pytest.approx(sk_metrics.roc_auc_score(labels, logits))
    for kind in ("micro", "macro"):
        assert values[kind]["f1"] == pytest.approx(sk_metrics.f1_score(labels, said, average=kind))
    by_hand = sk_metrics.f1_score(labels, said, average="samples", zero_division=1)
    assert values["samples"]["f1"] == pytest.approx(by_hand)
    assert values["log_loss"] == pytest.approx(
        np.mean([sk_metrics.log_loss(labels[:, k], chances[:, k]) for k in range(4)])
    )
    assert values["hamming_loss"] == pytest.approx(sk_metrics.hamming_loss(labels, said))


def test_thresholds_are_as_near_to_a_half_as_one_standard_error_allows():
    labels, logits = drawn()
    # A network that is never sure: at 0.5 next to nothing is predicted.
    chances = 1 / (1 + np.exp(3 - logits))

    def f1_at(threshold, k):
        return sk_metrics.f1_score(labels[:, k], chances[:, k] >= threshold, zero_division=0)

    for k, threshold in enumerate(several.fit_thresholds(labels, chances)):
        best = max(f1_at(t, k) for t in np.unique(chances[:, k]))
        least = best - np.sqrt(best * (1 - best) / labels[:, k].sum())
        assert f1_at(0.5, k) < least <= f1_at(threshold, k)
        # All that are nearer, and predict others, are worse.
        _, *nearer = np.unique([t for t in chances[:, k] if threshold < t <= 0.5])
        assert nearer
        assert all(f1_at(t, k) < least for t in nearer)
        assert threshold == np.float32(threshold)


def test_a_half_stays_where_nothing_is_clearly_better():
    truth = np.repeat([1, 0], [20, 20])
    chances = np.concatenate([np.linspace(0.49, 0.99, 20), np.linspace(0.01, 0.45, 20)])
    # All would be right from 0.47 on; from 0.5 on one is missed.
    assert several.fit_thresholds(truth[:, None], chances[:, None]).tolist() == [pytest.approx(0.47)]
    # Where one more is wrong, that may be chance.
    chances[-1] = 0.6
    assert several.fit_thresholds(truth[:, None], chances[:, None]).tolist() == [0.5]


def test_a_threshold_lies_in_the_middle_and_a_rare_label_has_none():
    truth = np.array([1, 1, 1, 1, 1, 0, 0, 0])
    chances = np.array([0.9, 0.8, 0.7, 0.6, 0.4, 0.2, 0.1, 0.1])
    both = np.stack([truth, np.eye(8, dtype=int)[0]], axis=1)
    found = several.fit_thresholds(both, np.stack([chances, chances], axis=1))
    assert found.tolist() == [pytest.approx(0.3, abs=1e-6), 0.5]
    # What all have needs no threshold either.
    assert several.fit_thresholds(np.ones([8, 1]), chances[:, None]).tolist() == [0.5]


def test_calibration_by_label():
    # Label a: 0.9 for each, and half of them have it. b: 0.25, and a quarter has it.
    labels = np.array([[1, 1], [0, 0], [1, 0], [0, 0]])
    logits = np.tile(np.log([0.9 / 0.1, 0.25 / 0.75]), [4, 1])
    values = make_task("multi_label").scores(labels, logits, ("a", "b"))["calibration"]
    assert values["by_label"] == {"a": pytest.approx(0.4), "b": pytest.approx(0.0, abs=1e-9)}
    assert values["expected_calibration_error"] == pytest.approx(0.2)


def test_a_temperature_gives_the_lowest_loss():
    labels, logits = drawn()
    task = make_task("multi_label")
    found = task.fit_temperature(labels, 3 * logits)
    losses = [task.means(labels, 3 * logits / t)["loss"] for t in (0.98 * found, found, 1.02 * found)]
    assert losses[1] == min(losses)
    values = task.scores(labels, 3 * logits, list("abcd"), temperature=found, temperature_from="here")
    calibration = values["calibration"]
    assert calibration["log_loss_scaled"] == pytest.approx(losses[1] / 4)
    assert calibration["expected_calibration_error_scaled"] < calibration["expected_calibration_error"]


def test_what_is_no_number_is_told_and_ranked_last():
    logits = LOGITS.copy()
    logits[0, 0] = np.nan
    values = scored(logits=logits)
    assert values["log_loss"] is None
    assert values["calibration"]["expected_calibration_error"] is None
    assert set(values["undefined"]) >= {"log_loss", "brier_score", "calibration"}
    # a: right at ranks 2 and 4.
    assert several.average_precisions(LABELS, logits)[0] == pytest.approx((1 / 2 + 2 / 4) / 2)
