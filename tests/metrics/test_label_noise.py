"""Confident learning on probabilities that are worked out by hand."""

import numpy as np
import pytest

from trainer.metrics.label_noise import find_label_issues
from trainer.metrics.outliers import far_out, neighbour_distances


def test_what_another_class_claims_with_its_usual_confidence_is_probably_wrong():
    # Usual confidence: of class 0 (0.9 + 0.9 + 0.3) / 3 = 0.7, of class 1 (0.8 + 0.8 + 0.2 + 0.6) / 4 = 0.6.
    first = [0.9, 0.9, 0.3, 0.2, 0.2, 0.8, 0.4]
    labels = np.array([0, 0, 0, 1, 1, 1, 1])
    found = find_label_issues(np.array([[p, 1 - p] for p in first]), labels)
    # The third (0.7 of class 1) and the sixth (0.8 of class 0) are claimed, the last one is not.
    assert found.num_probable == 2
    # 0.2 of 0.6 is less than 0.3 of 0.7.
    assert found.order.tolist() == [5, 2]
    assert found.suggested.tolist() == [0, 0, 1, 1, 1, 0, 1]
    assert found.confidence == pytest.approx([9 / 7, 9 / 7, 3 / 7, 4 / 3, 4 / 3, 1 / 3, 1])


def test_a_doubt_below_the_usual_confidence_is_listed_and_not_counted():
    # 0.55 for class 1 is more than for the label, and less than the 0.9 that is usual for class 1.
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.45, 0.55], [0.1, 0.9], [0.1, 0.9]])
    found = find_label_issues(probabilities, np.array([0, 0, 0, 1, 1]))
    assert (found.num_probable, found.order.tolist()) == (0, [2])


def test_a_rare_class_is_judged_by_what_is_usual_for_it():
    # Of the two in class 2 each has 0.2, which is usual there: the first of class 0 is the odd one.
    probabilities = np.array(
        [[0.1, 0.9, 0.0], [0.9, 0.1, 0.0], [0.9, 0.1, 0.0], [0.0, 0.9, 0.1], [0.0, 0.8, 0.2], [0.0, 0.8, 0.2]]
    )
    found = find_label_issues(probabilities, np.array([0, 0, 0, 1, 2, 2]))
    assert found.order[0] == 0
    # A class that nobody has suggests itself to nobody.
    assert find_label_issues(np.array([[0.3, 0.7]]), np.array([0])).suggested.tolist() in ([0], [1])


def test_what_is_unlike_all_others():
    features = np.array([[1.0, 0.0]] * 6 + [[0.0, 1.0]])
    distances = neighbour_distances(features, count=2)
    assert distances == pytest.approx([0] * 6 + [1])
    assert far_out(distances).tolist() == [False] * 6 + [True]
    assert neighbour_distances(features[:1]).tolist() == [0]
