"""Features as batches: who is in them, in which order, of which view; and what they are kept under."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import tensorflow as tf

from tests.data.test_pipeline import BATCH, COUNT, STEPS_PER_EPOCH, TRAIN, assert_same, ids, make, read
from trainer.data.augment import make_augment
from trainer.data.features import FeatureBatches, compute_features, digest_variables, feature_key, in_pieces
from trainer.data.inspect.scan import Scan
from trainer.data.sources import MemorySource
from trainer.store import provenance
from trainer.values import Contract

ONE = tf.distribute.get_strategy()
BYTES = len(TRAIN) * 2 * 3 * 4  # Of a view.


class Array:
    """Rows in memory that tell how they were read."""

    def __init__(self, rows):
        self.shape, self.nbytes, self._rows = rows.shape, rows.nbytes, rows
        self.calls = []

    def rows(self, positions):
        self.calls.append(len(positions))
        return self._rows[positions]

    def whole(self):
        self.calls.append("whole")
        return self._rows


def view(number=0, indices=TRAIN):
    """[n, 2, 3]: all numbers of a row are 100 times the view plus the position in the source."""
    return Array(np.tile((100 * number + indices)[:, None, None], (1, 2, 3)).astype(np.float32))


def batches_of(*views, indices=TRAIN, batch_size=BATCH, seed=0, budget=10**6):
    return FeatureBatches(
        views or [view(indices=indices)],
        indices=indices,
        labels=np.arange(COUNT) % 2,
        batch_size=batch_size,
        seed=seed,
        memory_budget_bytes=budget,
    )


def views_seen(batches):
    """The view that the pictures of each batch are of; it fails where a row is another picture's."""
    seen = []
    for batch in batches:
        real = batch["mask"] > 0
        numbers = batch["image"][real].reshape(real.sum(), -1) - batch["id"][real, None]
        assert len(set(numbers.ravel().tolist())) == 1
        seen.append(int(numbers[0, 0]) // 100)
    return seen


# --- The same as pictures, to all who use them


@pytest.mark.parametrize("budget", [0, 10**6], ids=["from the file", "held"])
@pytest.mark.parametrize(("start", "stop"), [(0, 7), (1, 3), (2, 7), (5, 6)])
def test_batches_are_those_of_the_pictures(start, stop, budget):
    options = {"start_step": start, "stop_step": stop}
    pictures = read(make(seed=3).training(TRAIN, **options))
    features = read(batches_of(seed=3, budget=budget).training(TRAIN, **options))
    assert_same([without_image(b) for b in features], [without_image(b) for b in pictures])
    assert {batch["image"].shape for batch in features} == {(BATCH, 2, 3)}
    assert {batch["image"].dtype for batch in features} == {np.dtype(np.float32)}
    assert views_seen(features) == [0] * (stop - start)


def without_image(batch):
    return {name: value for name, value in batch.items() if name != "image"}


@pytest.mark.parametrize("budget", [0, 10**6], ids=["from the file", "held"])
def test_once_gives_each_in_order_and_pads_the_last(budget):
    found, pictures = read(batches_of(budget=budget).once(TRAIN)), read(make().once(TRAIN))
    assert_same([without_image(b) for b in found], [without_image(b) for b in pictures])
    assert ids(found) == [*TRAIN.tolist(), -1, -1, -1]
    assert [batch["mask"].tolist() for batch in found] == [[1] * 4, [1] * 4, [1, 0, 0, 0]]
    assert views_seen(found) == [0, 0, 0]
    # A network must not make nonsense of the padding.
    assert np.isfinite(found[-1]["image"]).all()


def test_fewer_examples_than_a_batch():
    few = np.array([7, 2], np.int64)
    options = {"start_step": 0, "stop_step": 5}
    found = read(batches_of(indices=few, batch_size=5).training(few, **options))
    pictures = read(make(batch_size=5).training(few, **options))
    assert_same([without_image(b) for b in found], [without_image(b) for b in pictures])
    assert [sorted(batch["id"].tolist()) for batch in found] == [[-1, -1, -1, 2, 7]] * 5
    assert views_seen(found) == [0] * 5


# --- Views


@pytest.mark.parametrize("budget", [0, 10**6], ids=["from the file", "held"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_epoch_e_sees_view_e_modulo_their_number(count, budget):
    batches = batches_of(*map(view, range(count)), budget=budget)
    steps = 5 * STEPS_PER_EPOCH
    seen = views_seen(
        read(batches.training(TRAIN, start_step=0, stop_step=steps, augment=make_augment("flip")))
    )
    assert seen == [epoch % count for epoch in range(5) for _ in range(STEPS_PER_EPOCH)]
    # From the middle of an epoch on, too.
    late = read(batches.training(TRAIN, start_step=7, stop_step=steps, augment=make_augment("flip")))
    assert views_seen(late) == seen[7:]
    for epoch in range(4):
        assert views_seen(read(batches.once(TRAIN, epoch=epoch))) == [epoch % count] * STEPS_PER_EPOCH


def test_with_a_view_an_epoch_each_epoch_has_the_pixels_of_its_own():
    pipeline, change = make(seed=5), make_augment("flip,crop(0.3)")
    kept = [
        np.concatenate(list(computed(pipeline.once(TRAIN, augment=change, epoch=epoch))))
        for epoch in range(3)
    ]
    assert len({rows.tobytes() for rows in kept}) == 3
    options = {"start_step": 0, "stop_step": 3 * STEPS_PER_EPOCH, "augment": change}
    pictures = read(pipeline.training(TRAIN, **options))
    found = read(batches_of(*map(Array, kept), seed=5).training(TRAIN, **options))
    for batch, expected in zip(found, pictures, strict=True):
        real = expected["mask"] > 0
        np.testing.assert_allclose(batch["image"][real], expected["image"][real], rtol=0, atol=1e-6)


# --- Memory


@pytest.mark.parametrize(("budget", "held"), [(2 * BYTES, True), (2 * BYTES - 1, False), (0, False)])
def test_what_fits_into_the_budget_together_is_held(budget, held):
    views = [view(0), view(1)]
    batches = batches_of(*views, budget=budget)
    assert [v.calls for v in views] == [["whole"] if held else []] * 2
    read(batches.training(TRAIN, start_step=0, stop_step=2 * STEPS_PER_EPOCH))
    expected = ["whole"] if held else [BATCH] * STEPS_PER_EPOCH
    assert [v.calls for v in views] == [expected] * 2


# --- Computing


def computed(dataset, below=lambda images: images, **options):
    return compute_features(dataset, below, strategy=ONE, **options)


def test_computed_rows_are_in_order_without_the_padding():
    pipeline, done = make(), []
    blocks = list(computed(pipeline.once(TRAIN), lambda x: x[:, 0, 0] * 255, done=done.append))
    assert [block.shape for block in blocks] == [(4, 3), (4, 3), (1, 3)]
    assert {block.dtype for block in blocks} == {np.dtype(np.float32)}
    assert done == [4, 4, 1]
    rows = np.concatenate(blocks)
    np.testing.assert_allclose(rows, [[20 * at, 0, at] for at in TRAIN], atol=1e-3)


def test_rows_in_pieces_whatever_the_blocks():
    ended = []

    def blocks():
        yield from np.split(np.arange(10), [4, 8])
        ended.append(True)

    found = [[*piece] for piece in in_pieces(blocks(), [3, 6, 1])]
    assert [np.concatenate(piece).tolist() for piece in found] == [[0, 1, 2], [3, 4, 5, 6, 7, 8], [9]]
    assert ended == [True]
    # A piece that somebody else has brought meanwhile is not taken.
    pieces = in_pieces(blocks(), [3, 6, 1])
    next(pieces)
    next(pieces)
    assert np.concatenate([*next(pieces)]).tolist() == [9]


def test_nothing_is_computed_ahead_of_who_writes_it():
    done = []
    blocks = computed(make().once(TRAIN), done=done.append)
    assert done == []
    next(blocks)
    assert done == []  # What is written is done.
    next(blocks)
    assert done == [4]


# --- What features are kept under


def key(**changes):
    source = MemorySource(
        name="memory:test",
        class_names=changes.pop("class_names", ("even", "odd")),
        ids=changes.pop("ids", ["a", "b", "c", "d"]),
        labels=np.array(changes.pop("labels", [0, 1, 0, 1])),
        encoded=[b""] * 4,
    )
    digests = changes.pop("digests", ["00", "11", "22", "33"])
    orientations = np.array(changes.pop("orientations", [1, 1, 6, 1]), np.int32)
    contract = Contract(8, 8, (0.0, 1.0), feature_width=2, any_size=True)
    given = {
        "source": source,
        "scan": Scan(digests, orientations),
        "indices": np.array(changes.pop("indices", [2, 0, 1])),
        "contract": dataclasses.replace(contract, **changes.pop("contract", {})),
        "decoding": "exact",
        "network": {"function": "f", "weights": "w", "cut": "features", "precision": "float32"},
        "view": {},
        **changes,
    }
    return json.dumps(feature_key(**given), sort_keys=True)


NETWORK = {"function": "f", "weights": "w", "cut": "features", "precision": "float32"}
VIEW = {"augment": "flip", "seed": 0, "epoch": 0}
OTHERS = {
    "names of classes": {"class_names": ("odd", "even")},
    "label": {"labels": [1, 1, 0, 1]},
    "name of a picture": {"ids": ["a", "b", "C", "d"]},
    "bytes of a picture": {"digests": ["00", "11", "2f", "33"]},
    "orientation": {"orientations": [1, 1, 1, 1]},
    "order": {"indices": [0, 2, 1]},
    "one more": {"indices": [2, 0, 1, 3]},
    "one less": {"indices": [2, 0]},
    "height": {"contract": {"height_px": 9}},
    "width": {"contract": {"width_px": 9}},
    "range": {"contract": {"value_range": (-1.0, 1.0)}},
    "crop": {"contract": {"fit": "crop"}},
    "antialias": {"contract": {"antialias": True}},
    "decoding": {"decoding": "scaled"},
    **{name: {"network": NETWORK | {name: "other"}} for name in NETWORK},
    "augmented": {"view": VIEW},
    **{f"another {name}": {"view": VIEW | {name: 1}} for name in VIEW},
}


def test_a_key_is_another_one_whenever_anything_is_that_features_depend_on():
    keys = {name: key(**change) for name, change in OTHERS.items()} | {"": key()}
    assert len(set(keys.values())) == len(keys)


def test_a_key_is_the_same_whatever_else_there_is():
    assert key(digests=["00", "11", "22", "other"], labels=[0, 1, 0, 0]) == key()


def test_a_key_is_of_this_version_of_tensorflow(monkeypatch):
    before = key()
    monkeypatch.setattr(tf, "__version__", "2.0")
    assert key() != before


def test_a_key_is_of_the_code_that_computes(monkeypatch, tmp_path):
    package = shutil.copytree(provenance._PACKAGE, tmp_path / "trainer")
    monkeypatch.setattr(provenance, "_PACKAGE", package)

    def key_anew():
        # As in another process: one reads its own code once.
        provenance._digest_of.cache_clear()
        return key()

    keys = [key_anew()]
    for file in (
        "data/decode", "data/augment/colors", "data/inspect/jpeg_check", "model/cuts", "model/folding",
        "model/backbones/efficientnet_lite", "precision/rewriter", "precision/call_options",
        "run/stages", "values",
    ):  # fmt: skip
        with open(package / f"{file}.py", "a") as out:
            out.write("# other\n")
        keys.append(key_anew())
    assert len(set(keys)) == 11
    for file in ("loop/losses", "report/curves", "model/heads", "commands/train"):
        with open(package / f"{file}.py", "a") as out:
            out.write("# other\n")
        assert key_anew() == keys[-1]


def variables(**changes):
    values = {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.zeros(3, np.float32)}
    return {name: tf.Variable(value) for name, value in (values | changes).items()}


def test_digest_of_variables_is_of_names_shapes_types_and_values():
    digests = {
        digest_variables(found)
        for found in (
            variables(),
            variables(bias=np.array([0, 0, 1e-30], np.float32)),
            variables(bias=np.zeros(3, np.int32)),
            variables(bias=np.zeros([3, 1], np.float32)),
            variables(bias=np.zeros([0, 3], np.float32)),
            variables(bias=np.float32(0)),
            variables(more=np.float32(0)),
            {"other": variables()["kernel"], "bias": variables()["bias"]},
            {
                "kernel": tf.Variable(np.arange(6, dtype=np.float32).reshape(3, 2)),
                "bias": variables()["bias"],
            },
        )
    }
    assert len(digests) == 9
    assert digest_variables(variables()) in digests


@pytest.mark.parametrize("value", [tf.ones([2], tf.bfloat16), tf.ones([2], tf.float16), ["a", "b"], True])
def test_digest_of_variables_of_any_type(value):
    one, same = tf.Variable(value), tf.Variable(value)
    other = tf.Variable(tf.reverse(value, [0]) if isinstance(value, list) else tf.zeros_like(value))
    assert digest_variables({"v": one}) == digest_variables({"v": same}) != digest_variables({"v": other})
