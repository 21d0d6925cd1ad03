"""Probes that are kept: what is read is what was fitted, and nothing else."""

import logging

import numpy as np
import pytest

from trainer.model.fits import STRENGTHS, Labelled, Probe, fit_probe
from trainer.run import kept_probes
from trainer.run.kept_probes import find_or_fit, probe_folder
from trainer.tasks import SINGLE_LABEL, make_task

BY_VALIDATION = Probe(0.0)


@pytest.fixture
def fitted(monkeypatch):
    """Strengths asked for of what has been fitted."""
    asked = []

    def fit(probe, *given, **options):
        asked.append(probe.strength)
        return fit_probe(probe, *given, **options)

    monkeypatch.setattr(kept_probes, "fit_probe", fit)
    return asked


def blobs(count, *, seed=0, width=6, num_classes=3):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, count)
    features = rng.normal(size=(count, width)) + 0.5 * np.eye(width)[labels]
    return Labelled(features.astype(np.float32), labels)


def find(cache_dir, *, probe=BY_VALIDATION, train=None, validation=None, task=SINGLE_LABEL, num_classes=3):
    given = {"num_classes": num_classes, "task": task, "cache_dir": str(cache_dir)}
    return find_or_fit(probe, train or blobs(60), validation or blobs(40, seed=1), **given)


def assert_same(found, expected):
    np.testing.assert_array_equal(found.kernel, expected.kernel)
    np.testing.assert_array_equal(found.bias, expected.bias)
    assert (found.kernel.dtype, found.bias.dtype) == (np.float32, np.float32)
    assert (found.strength, found.num_fitted) == (expected.strength, expected.num_fitted)


@pytest.mark.parametrize("strength", [0.0, 0.3])
def test_what_is_fitted_once_is_found_to_the_bit(tmp_path, fitted, strength):
    first, again = (find(tmp_path, probe=Probe(strength)) for _ in "12")
    expected = fit_probe(Probe(strength), blobs(60), blobs(40, seed=1), num_classes=3, task=SINGLE_LABEL)
    assert fitted == [strength]
    assert_same(first, expected)
    assert_same(again, expected)
    assert again.strength in ((strength,) if strength else STRENGTHS)


def moved(given, at):
    features, labels = given.features.copy(), given.labels.copy()
    if at == "features":
        features[7, 2] = np.nextafter(features[7, 2], np.inf)
    else:
        labels[7] = (labels[7] + 1) % 3
    return Labelled(features, labels)


class Lenient(type(SINGLE_LABEL)):
    """Has a loss by what it is made with."""

    def __init__(self, how):
        self.how = how


class AnotherTask(type(SINGLE_LABEL)):
    """Has a loss of its own."""


TRAIN, VALIDATION = blobs(60), blobs(40, seed=1)
CHANGES = {
    "strength": {"probe": Probe(0.1)},
    "classes": {"num_classes": 4},
    "task": {"task": AnotherTask()},
    "feature of train": {"train": moved(TRAIN, "features")},
    "label of train": {"train": moved(TRAIN, "labels")},
    "feature of validation": {"validation": moved(VALIDATION, "features")},
    "label of validation": {"validation": moved(VALIDATION, "labels")},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whatever_is_another_is_fitted_anew(tmp_path, fitted, change):
    find(tmp_path)
    find(tmp_path, **change)
    assert len(fitted) == 2


def test_a_task_is_known_by_what_it_is_made_with(tmp_path, fitted):
    for how in (0.3, 0.7, 0.3):
        find(tmp_path, task=Lenient(how))
    assert len(fitted) == 2


def test_a_kept_probe_that_is_damaged_is_fitted_anew_and_told(tmp_path, fitted, caplog):
    first = find(tmp_path)
    (kept,) = probe_folder(str(tmp_path)).glob("*/features.npy")
    data = bytearray(kept.read_bytes())
    data[-9] ^= 1
    kept.write_bytes(data)
    with caplog.at_level(logging.WARNING, logger="trainer"):
        assert_same(find(tmp_path), first)
    assert len(fitted) == 2
    assert "is damaged, computing it anew" in caplog.text


def test_where_nothing_can_be_kept_it_is_fitted_all_the_same(tmp_path, fitted):
    (tmp_path / "hub-trainer").write_text("no folder")
    first, again = (find(tmp_path / "hub-trainer") for _ in "12")
    assert len(fitted) == 2
    assert_same(first, again)


def test_labels_of_which_none_can_be_told_have_no_strength(tmp_path, fitted):
    """Every picture has all labels: nothing is fitted, and nothing was chosen."""
    labels = np.empty(30, object)
    labels[:] = [(0, 1)] * 30
    task = make_task("multi_label")
    given = Labelled(blobs(30).features, task.encoded(labels, 2))
    pair = [find(tmp_path, train=given, validation=given, task=task, num_classes=2) for _ in "12"]
    assert fitted == [0.0]
    assert_same(*pair)
    assert pair[0].strength == 0.0
