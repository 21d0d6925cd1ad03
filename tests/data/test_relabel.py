"""Labels that a table changes, also where the pictures are others than those it was written of."""

import hashlib

import numpy as np
import pytest

from trainer.data.inspect.scan import Scan
from trainer.data.relabel import Change, relabel
from trainer.data.sources import MemorySource
from trainer.tasks import SINGLE_LABEL
from trainer.values import TrainerError, UsageError


def pictures(*class_names, count=4):
    """Pictures of some classes in turn, and what a scan finds of them; the bytes are the numbers."""
    encoded = [str(k).encode() for k in range(count)]
    source = MemorySource(
        name="memory:x",
        class_names=class_names,
        ids=[f"{k}.jpg" for k in range(count)],
        labels=np.arange(count) % len(class_names),
        encoded=encoded,
    )
    digests = [hashlib.sha256(data).hexdigest() for data in encoded]
    return source, Scan(digests, np.ones(count, np.int32))


def change(number, new_label, line=2):
    return Change(f"{number}.jpg", hashlib.sha256(str(number).encode()).hexdigest(), new_label, line)


def changed(source, scan, *changes, strict=True):
    return relabel(source, scan, changes, task=SINGLE_LABEL, flag="--relabel=t.csv", strict=strict)


def test_labels_change_and_pictures_leave():
    source, scan = pictures("a", "b")
    found, left_out = changed(source, scan, change(0, "b"), change(3, "Leave out", line=3))
    assert found.labels.tolist() == [1, 1, 0, 1]
    assert left_out == [3]
    assert source.labels.tolist() == [0, 1, 0, 1]


def test_a_line_of_a_picture_that_is_not_there_says_nothing_of_others():
    """A run with a table is scored on pictures of its own, of fewer classes than it was trained on."""
    source, scan = pictures("a", "b")
    found, left_out = changed(source, scan, change(7, "tulips"), change(0, "b"), strict=False)
    assert (found.labels.tolist(), left_out) == ([1, 1, 0, 1], [])
    with pytest.raises(TrainerError, match=r"line 2: 7.jpg is not there"):
        changed(source, scan, change(7, "a"))
    for strict in (True, False):
        with pytest.raises(UsageError, match="line 2: 'tulips' is none of the classes a, b"):
            changed(source, scan, change(0, "tulips"), strict=strict)
