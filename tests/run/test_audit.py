"""How an audit deals pictures out, and what it judges where there is little to compare with."""

import logging
from types import SimpleNamespace

import numpy as np
import tensorflow as tf

from trainer.model.fits import Labelled
from trainer.run.audit import fold_numbers, judge_labels
from trainer.tasks import SingleLabel, make_task


def test_classes_of_one_chain_of_near_duplicates_are_not_all_in_one_fold(tmp_path, caplog):
    labels = np.repeat([0, 1], 4)
    folds = fold_numbers(labels, np.repeat([0, 4], 4), 2, seed=0)
    assert sorted(set(folds.tolist())) == [0, 1]
    run = SimpleNamespace(cache_dir=str(tmp_path))
    experiment = SimpleNamespace(
        task=make_task("single_label"),
        source=SimpleNamespace(class_names=("a", "b")),
        config=SimpleNamespace(run=run),
    )
    every = Labelled(np.random.default_rng(0).normal(size=[8, 3]).astype(np.float32), labels)
    # The rest of a fold has one class, or nothing.
    for fold_of in (folds, np.zeros(8, np.int64)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="trainer"):
            _, judged = judge_labels(every, fold_of, experiment, "off")
        assert not judged.any()
        assert "labels of 8 pictures are not judged" in caplog.text
    _, judged = judge_labels(every, np.tile([0, 1], 4), experiment, "off")
    assert judged.all()


class Reversed(SingleLabel):
    """The lower a logit is, the more probable is its class."""

    def activation(self, logits):
        return tf.nn.softmax(-logits)


def test_what_is_fitted_is_judged_by_its_softmax(tmp_path):
    experiment = SimpleNamespace(
        task=Reversed(),
        source=SimpleNamespace(class_names=("a", "b")),
        config=SimpleNamespace(run=SimpleNamespace(cache_dir=str(tmp_path))),
    )
    labels = np.tile([0, 0, 1, 1], 2)
    noise = np.random.default_rng(0).normal(size=[8, 2])
    every = Labelled((3 * np.eye(2)[labels] + 0.1 * noise).astype(np.float32), labels)
    shares, judged = judge_labels(every, np.tile([0, 1], 4), experiment, "off")
    assert judged.all()
    assert (shares[np.arange(8), labels] > 0.5).all()
