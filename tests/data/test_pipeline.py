"""Batches: who is in them, in which order, from any step on; pixels tell which picture they came from."""

import os
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.data.kinds import exif, with_alpha
from tests.data.pictures import encode, noise
from tests.data.trees import FILES, age, write_tree
from trainer.data.augment import make_augment
from trainer.data.decode import ANY, Known
from trainer.data.inspect.scan import Scan, scan
from trainer.data.pipeline import Pipeline, find_undecodable, with_weights
from trainer.data.sources import MemorySource
from trainer.data.sources.folder import open_folder
from trainer.values import Contract, UsageError

COUNT, BATCH = 11, 4
TRAIN = np.array([9, 1, 8, 2, 7, 3, 6, 10, 5], np.int64)  # Neither all nor in order.
STEPS_PER_EPOCH = 3  # 4 + 4 + 1


def picture(index):
    """Two columns: the left one says which picture it is, the right one is white."""
    pixels = np.full((4, 4, 3), 255, np.uint8)
    pixels[:, :2] = [20 * index, 0, index]
    return encode(Image.fromarray(pixels), "PNG")


def make(*, seed=0, value_range=(0.0, 1.0), batch_size=BATCH, size=4):
    source = MemorySource(
        name="memory:test",
        class_names=("even", "odd"),
        ids=[f"picture{i}" for i in range(COUNT)],
        labels=np.arange(COUNT) % 2,
        encoded=[picture(i) for i in range(COUNT)],
    )
    contract = Contract(size, size, value_range, feature_width=2, any_size=True)
    return Pipeline(source, scan(source), contract=contract, batch_size=batch_size, seed=seed)


def read(dataset):
    return [{name: value.numpy() for name, value in batch.items()} for batch in dataset]


def ids(batches):
    return np.concatenate([batch["id"] for batch in batches]).tolist()


def assert_same(left, right):
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.fixture(scope="module")
def three_epochs():
    return read(make().training(TRAIN, start_step=0, stop_step=3 * STEPS_PER_EPOCH))


def test_each_epoch_has_every_example_once(three_epochs):
    for epoch in range(3):
        batches = three_epochs[epoch * STEPS_PER_EPOCH : (epoch + 1) * STEPS_PER_EPOCH]
        assert sorted(ids(batches)) == [-1, -1, -1, *sorted(TRAIN.tolist())]


def test_epochs_differ_in_order(three_epochs):
    seen = ids(three_epochs)
    orders = [tuple(seen[i : i + 12]) for i in (0, 12, 24)]
    assert len(set(orders)) == 3
    assert all(list(order[:9]) != TRAIN.tolist() for order in orders)


def test_the_order_is_a_function_of_the_seed(three_epochs):
    again = read(make(seed=0).training(TRAIN, start_step=0, stop_step=9))
    assert_same(again, three_epochs)
    other = read(make(seed=1).training(TRAIN, start_step=0, stop_step=9))
    assert ids(other) != ids(three_epochs)


def test_batches_have_one_shape_and_what_is_padded_is_masked(three_epochs):
    for i, batch in enumerate(three_epochs):
        assert batch["image"].shape == (BATCH, 4, 4, 3)
        assert {name: (v.shape, str(v.dtype)) for name, v in batch.items() if name != "image"} == {
            "label": ((BATCH,), "int64"),
            "mask": ((BATCH,), "float32"),
            "id": ((BATCH,), "int64"),
        }
        assert batch["image"].dtype == np.float32
        expected = [1, 0, 0, 0] if i % STEPS_PER_EPOCH == 2 else [1, 1, 1, 1]
        assert batch["mask"].tolist() == expected
        np.testing.assert_array_equal(batch["id"] == -1, batch["mask"] == 0)


@pytest.mark.parametrize(
    ("num_shares", "last"), [(1, "xxx....."), (2, "xx..x..."), (4, "x.x.x..."), (8, "xxx.....")]
)
def test_the_last_examples_are_spread_over_shares(num_shares, last):
    pipeline, positions = make(batch_size=8), np.arange(11)[::-1]
    spread = read(pipeline.training(positions, start_step=0, stop_step=4, num_shares=num_shares))
    plain = read(pipeline.training(positions, start_step=0, stop_step=4))
    for step, (one, other) in enumerate(zip(spread, plain, strict=True)):
        assert len(one["mask"]) == 8
        assert one["id"][one["mask"] > 0].tolist() == other["id"][other["mask"] > 0].tolist()
        if num_shares > 1:
            # Each example knows the row that it has without shares.
            np.testing.assert_array_equal(
                other["id"][one["place"]][one["mask"] > 0], one["id"][one["id"] >= 0]
            )
            counts = one["mask"].reshape(num_shares, -1).sum(axis=1)
            assert counts.max() - counts.min() <= 1
        assert sorted(pipeline.positions(positions, step=step)) == sorted(one["id"][one["id"] >= 0])
    assert "".join(".x"[int(value)] for value in spread[1]["mask"]) == last


def test_pixels_and_labels_belong_to_the_id(three_epochs):
    for batch in three_epochs:
        for image, label, index in zip(batch["image"], batch["label"], batch["id"], strict=True):
            if index < 0:
                # A network may make no numbers of a black picture; they would not be masked.
                assert label == 0
                np.testing.assert_array_equal(image, batch["image"][0])
                continue
            assert label == index % 2
            np.testing.assert_allclose(image[:, :2, 0], 20 * index / 255, atol=1e-6)
            np.testing.assert_allclose(image[:, :2, 2], index / 255, atol=1e-6)
            np.testing.assert_array_equal(image[:, 2:], 1.0)


@pytest.mark.parametrize(
    ("augment", "starts"),
    [
        ("", range(8)),
        # In the middle of an epoch and at its end.
        ("flip,crop(0.5)", (2, 6)),
        ("color_jitter,cutmix", (3, 7)),
        pytest.param("flip,crop(0.5)", range(8), marks=pytest.mark.slow),
        pytest.param("color_jitter,cutmix", range(8), marks=pytest.mark.slow),
    ],
)
def test_from_any_step_on_the_batches_are_those_of_an_unbroken_run(augment, starts):
    pipeline = make()
    whole = read(pipeline.training(TRAIN, start_step=0, stop_step=8, augment=make_augment(augment)))
    assert len(whole) == 8
    for start in starts:
        tail = read(pipeline.training(TRAIN, start_step=start, stop_step=8, augment=make_augment(augment)))
        assert_same(tail, whole[start:])
    middle = read(pipeline.training(TRAIN, start_step=2, stop_step=4, augment=make_augment(augment)))
    assert_same(middle, whole[2:4])


def two_epochs(*, seed=0, batch_size=BATCH):
    """Returns {(epoch, id): image} under crop."""
    per_epoch = -(-len(TRAIN) // batch_size)
    pipeline = make(seed=seed, batch_size=batch_size)
    batches = read(
        pipeline.training(TRAIN, start_step=0, stop_step=2 * per_epoch, augment=make_augment("crop(0.3)"))
    )
    return {
        (step // per_epoch, index): image
        for step, batch in enumerate(batches)
        for index, image in zip(batch["id"].tolist(), batch["image"], strict=True)
        if index >= 0
    }


def test_augmentation_is_a_function_of_seed_epoch_and_picture():
    first, other_seed, other_batch = two_epochs(), two_epochs(seed=1), two_epochs(batch_size=9)
    assert set(first) == {(epoch, index) for epoch in (0, 1) for index in TRAIN.tolist()}
    assert set(first) == set(other_batch)
    for key, image in first.items():
        np.testing.assert_array_equal(image, other_batch[key])
    # A crop can, by chance, show the same four pixels again.
    assert sum(not np.array_equal(image, other_seed[key]) for key, image in first.items()) >= 12
    assert sum(not np.array_equal(first[0, i], first[1, i]) for i in TRAIN.tolist()) >= 6


@pytest.mark.parametrize("value_range", [(0.0, 1.0), (-1.0, 1.0)])
def test_mixing_comes_after_the_other_changes_and_before_the_range(value_range):
    low, high = value_range
    pipeline = make(value_range=value_range)
    steps = {"start_step": 0, "stop_step": 2 * STEPS_PER_EPOCH}
    plain, mixed = (
        read(pipeline.training(TRAIN, **steps, augment=make_augment(text)))
        for text in ("crop(0.3)", "crop(0.3),mixup(1)")
    )
    assert_same([{key: one[key] for key in ("label", "mask", "id")} for one in plain], mixed)
    for step, (one, batch) in enumerate(zip(plain, mixed, strict=True)):
        assert "target" not in one
        target, label = batch["target"], batch["label"]
        assert (target.shape, target.dtype) == ((BATCH, 2), np.float32)
        np.testing.assert_allclose(target.sum(axis=1), 1, atol=1e-6)
        # The last batch of an epoch has one picture, which has nobody to be mixed with.
        others = [0, 1, 2, 3] if step % STEPS_PER_EPOCH == 2 else [1, 2, 3, 0]
        for i, other in enumerate(others):
            share = target[i, label[i]]
            if label[i] != label[other]:
                expected = share * one["image"][i] + (1 - share) * one["image"][other]
                np.testing.assert_allclose(batch["image"][i], expected, atol=2e-6 * (high - low))
            else:
                assert share == 1
    assert sum((batch["target"].max(axis=1) < 0.99).sum() for batch in mixed) > 3


def test_nothing_is_kept_of_mixed_pictures():
    with pytest.raises(
        UsageError, match="augment=flip,cutmix mixes pictures with others of their batch, so "
    ):
        make().once(TRAIN, augment=make_augment("flip,cutmix"))


def test_once_gives_each_example_in_order():
    batches = read(make().once(TRAIN))
    assert ids(batches) == [*TRAIN.tolist(), -1, -1, -1]
    assert [batch["mask"].sum() for batch in batches] == [4, 4, 1]
    assert {batch["image"].shape for batch in batches} == {(BATCH, 4, 4, 3)}
    assert ids(read(make().once(TRAIN[:4]))) == TRAIN[:4].tolist()
    assert ids(read(make().once(TRAIN[:1]))) == [9, -1, -1, -1]


@pytest.mark.parametrize("share", [(0, 1), (1, 2)])
def test_no_dataset_tunes_itself(share):
    # To end one that does may take a minute, which no test can wait for: see `_finish`.
    pipeline = make().of_worker(*share)
    steps = pipeline.training(TRAIN, start_step=0, stop_step=2, augment=make_augment("flip,mixup(0.5)"))
    for dataset in (steps, pipeline.once(TRAIN)):
        assert dataset.options().autotune.enabled is False


def test_pixels_are_scaled_to_the_value_range():
    zero_one = read(make().once(TRAIN))
    for low, high in ((-1.0, 1.0), (0.0, 255.0), (-127 / 128, 1.0)):
        scaled = read(make(value_range=(low, high)).once(TRAIN))
        for a, b in zip(zero_one, scaled, strict=True):
            np.testing.assert_allclose(b["image"], a["image"] * (high - low) + low, rtol=1e-6, atol=1e-6)


def test_pictures_are_resized_to_the_contract():
    batch = read(make(size=2).once(TRAIN))[0]
    np.testing.assert_allclose(batch["image"][0, :, 0, 0], 180 / 255, atol=1e-6)
    np.testing.assert_allclose(batch["image"][0, :, 1], 1.0)


def test_orientation_is_applied():
    pipeline = make()
    turned = Pipeline(
        pipeline.source,
        Scan([""] * COUNT, np.full(COUNT, 2, np.int32)),  # 2 is a mirror image.
        contract=pipeline.contract,
        batch_size=BATCH,
        seed=0,
    )
    plain, mirrored = (read(p.once(TRAIN))[0]["image"] for p in (pipeline, turned))
    np.testing.assert_array_equal(mirrored, plain[:, :, ::-1])


WIDE, TALL, WEBP = noise(61, 43), noise(12, 30), with_alpha()
KNOWN = {
    "upright": ([encode(WIDE, "PNG"), encode(TALL, "JPEG")], Known(True, False, (12, 61))),
    "turned": (
        [encode(WIDE, "PNG"), encode(TALL, "JPEG", exif=exif(6))],
        Known(False, False, (12, 61)),
    ),
    "webp": ([encode(WIDE, "PNG"), encode(WEBP, "WEBP", lossless=True)], Known(True, True, (24, 61))),
    "a bad one": ([encode(TALL, "PNG"), b"RIFF....WEBP"], Known(True, False, (12, 30))),
}


SIZES = [(1, True), (4, None), (11, False)]


@pytest.mark.parametrize(
    ("name", "size", "shrinks"),
    [
        # Of each kind one in `make test`.
        pytest.param(name, *size, marks=() if at == kind % len(SIZES) else pytest.mark.slow)
        for kind, name in enumerate(KNOWN)
        for at, size in enumerate(SIZES)
    ],
)
def test_what_holds_for_all_pictures_is_not_asked_of_each_and_changes_no_pixel(name, size, shrinks):
    pictures, known = KNOWN[name]
    source = MemorySource("memory:two", ("a", "b"), ["0", "1"], np.array([0, 1]), pictures)
    found = scan(source)
    assert found.known == known
    assert found.known.shrinks((size, size)) is shrinks
    indices = np.array([i for i in (0, 1) if i not in found.bad])
    for fit in ("stretch", "crop", "pad"):
        contract = Contract(size, size, (0.0, 1.0), feature_width=2, any_size=True, fit=fit)
        options = {"contract": contract, "batch_size": 2, "seed": 0}
        knowing, asking = (Pipeline(source, one, **options) for one in (found, replace(found, known=ANY)))
        assert len(_operations(knowing)) < len(_operations(asking))
        assert_same(read(knowing.once(indices)), read(asking.once(indices)))


def test_what_is_decoded_smaller_is_not_of_the_size_that_is_known():
    source = MemorySource("memory:one", ("a",), ["0"], np.array([0]), [encode(noise(64, 48), "JPEG")])
    contract = Contract(7, 7, (0.0, 1.0), feature_width=2, any_size=True)
    options = {"contract": contract, "batch_size": 1, "seed": 0, "decoding": "scaled"}
    found = scan(source)
    # 16 x 12 px, which is not six times as large as 7: TensorFlow's resizing takes it.
    small = tf.io.decode_jpeg(source.encoded[0], channels=3, ratio=4)
    expected = tf.image.resize(tf.image.convert_image_dtype(small, tf.float32), [7, 7])
    pipeline = Pipeline(source, found, **options)
    np.testing.assert_array_equal(read(pipeline.once(np.array([0])))[0]["image"][0], expected)
    assert "ResizeBilinear" in _operations(pipeline)


def _operations(pipeline):
    """The names of operations that decoding is made of, each as often as it is there."""
    specs = tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.int64)
    made = tf.function(pipeline.decode, autograph=False).get_concrete_function(*specs)
    return [node.op for one in made.graph.as_graph_def().library.function for node in one.node_def]


def test_what_cannot_be_decoded_is_named(capfd):
    pipeline = make()
    found = scan(pipeline.source)
    assert find_undecodable(pipeline.source, found) == []
    hole = encode(noise(64, 48), "JPEG")[:-200] + b"\xff\xd9"
    for index, data in {3: picture(3)[:40], 5: b"", 6: b"", 7: hole}.items():
        pipeline.source.encoded[index] = data
    bad = find_undecodable(pipeline.source, replace(found, bad={6: "known before"}))
    assert bad == [
        "picture3: it ends in the middle",
        "picture5: it is empty (0 bytes)",
        "picture7: it is damaged inside: Corrupt JPEG data: premature end of data segment",
    ]
    assert len(find_undecodable(pipeline.source, found, limit=2)) == 2
    assert capfd.readouterr().err == ""


def test_what_cannot_be_read_any_more_is_named(tmp_path):
    age(write_tree(tmp_path, FILES))
    source = open_folder(str(tmp_path), name="folder:x", budget_bytes=0)
    found = scan(source)
    (tmp_path / source.ids[2]).unlink()
    (tmp_path / source.ids[4]).unlink()
    os.mkfifo(tmp_path / source.ids[4])
    gone, pipe = find_undecodable(source, found)
    path = f"{tmp_path}/{source.ids[2]}"
    assert gone == f"{source.ids[2]}: --source=folder:x: cannot read {path}: No such file or directory"
    assert pipe == f"{source.ids[4]}: not a regular file"


def test_weights_go_with_the_examples():
    batches = tf.data.Dataset.from_tensor_slices({"id": tf.constant([[3, 1, -1], [0, 2, 3]], tf.int64)})
    weighted = with_weights(batches, np.array([0.5, 1.0, 2.0, 4.0]))
    found = [batch["weight"].numpy().tolist() for batch in weighted]
    # That of padding is never used.
    assert [found[0][:2], found[1]] == [[4.0, 1.0], [0.5, 2.0, 4.0]]


@pytest.mark.parametrize("num_shares", [1, 4])
@pytest.mark.parametrize(
    "augment", ["", pytest.param("flip,crop(0.5)", marks=pytest.mark.slow), "crop(0.5),mixup(1)"]
)
@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_workers_have_the_rows_of_one_and_read_nothing_else(count, augment, num_shares):
    steps = {"start_step": 1, "stop_step": 2 * STEPS_PER_EPOCH, "num_shares": num_shares}
    steps["augment"] = make_augment(augment)
    whole = read(make().training(TRAIN, **steps))
    shares = []
    for index in range(count):
        pipeline = make().of_worker(index, count)
        asked = []
        read_one = pipeline.source.read
        pipeline.source = Reading(lambda i, one=read_one, asked=asked: asked.append(i) or one(i))
        shares.append(read(pipeline.training(TRAIN, **steps)))
        own = {i for batch in shares[-1] for i in batch["id"].tolist() if i >= 0}
        # Mixing takes the next picture besides, and what is all padding needs one to stand in for it.
        assert len(set(asked) - own) <= len(whole) if augment.endswith(")") else set(asked) >= own
        size = BATCH // count + augment.endswith("mixup(1)")
        assert len(asked) <= size * len(whole)
    for step, batch in enumerate(whole):
        real = batch["mask"] > 0
        for name, values in batch.items():
            got = np.concatenate([share[step][name] for share in shares])
            assert got.dtype == values.dtype
            # What stands in for padding may be another picture; nobody looks at it.
            rows = real if name in ("image", "target") else slice(None)
            np.testing.assert_array_equal(got[rows], values[rows], err_msg=f"{step} {name}")


class Reading:
    """A source of which only pictures are wanted."""

    def __init__(self, read):
        self.read = read


def test_padding_of_a_worker_is_no_number_that_no_picture_has():
    # Worker 3 has nothing of the last batch; its rows are a picture all the same.
    [*_, last] = read(make().of_worker(3, 4).once(TRAIN))
    assert (last["mask"].tolist(), last["id"].tolist(), last["label"].tolist()) == ([0], [-1], [0])
    [*_, whole] = read(make().once(TRAIN))
    np.testing.assert_array_equal(last["image"][0], whole["image"][0])
