"""Labels on their way from a source to what a task calculates with."""

import numpy as np
import pytest

from trainer.data.configured import with_labels_of
from trainer.data.sources import MemorySource, gives_several, label_tuples
from trainer.tasks import make_task
from trainer.values import UsageError


def source_of(labels):
    return MemorySource("here", ("sea", "sun", "tree"), ["a", "b"], labels, [b"A", b"B"], stamped="s")


def test_label_tuples_are_sorted_and_one_each():
    labels = label_tuples([[2, 0, 2], []])
    assert labels.tolist() == [(0, 2), ()]
    # Of one length, too, they are tuples and no table.
    assert label_tuples([[1, 0], np.array([2, 1])]).tolist() == [(0, 1), (1, 2)]
    assert gives_several(source_of(labels))
    assert not gives_several(source_of(np.array([0, 2])))


def test_several_labels_are_refused_where_a_task_is_about_one():
    with pytest.raises(UsageError, match="--source=here has any number of labels per picture"):
        with_labels_of(make_task("single_label"), source_of(label_tuples([[0], [1, 2]])))


def test_a_source_of_one_label_an_example_stays_what_it_is():
    source = source_of(np.array([0, 2]))
    assert with_labels_of(make_task("single_label"), source) is source
