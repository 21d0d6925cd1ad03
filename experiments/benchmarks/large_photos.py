"""Training on photos of 12 megapixels: with kept pictures, without, and as tf.data is written by hand.

    python experiments/benchmarks/large_photos.py --photos=folder/of/classes --count=100 --output=large.json

Photos are enlarged to 4000x3000 px and saved as JPEGs of quality 92. All three programs fine-tune all of
MobileNetV2 (160 px, weights by chance) for some epochs; ours also train a head before, on features, and score
validation after each epoch. Each round runs them one after another, with empty caches; the last of ours
finds what the one before it kept. Images a second are those of the last epoch, or, by hand, of the fastest
epoch after the first one. Before that, what is done to a photo is timed piece by piece, in one thread.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import measuring
import reading
from PIL import Image

FLAGS = (
    "--backbone=keras:MobileNetV2", "--weights=none", "--image_size=160", "--batch_size=16", "--head=linear",
    "--splits=80%,20%", "--precision=float32", "--resize=stretch", "--antialias", "--log_every=1epochs",
    "--phase=name=head; for=1epochs; train=head; lr=0.001",
)  # fmt: skip


def enlarge(photos: Path, out: Path, *, count: int) -> int:
    """Writes `count` large photos, taken in turn from the folders of classes; returns how many classes."""
    classes = sorted(path for path in photos.iterdir() if path.is_dir())
    for number, name in enumerate(classes):
        (out / name.name).mkdir(parents=True)
        files = sorted(path for path in name.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))
        for path in files[: count // len(classes) + (number < count % len(classes))]:
            large = Image.open(path).convert("RGB").resize((4000, 3000), Image.Resampling.BICUBIC)
            large.save(out / name.name / f"{path.stem}.jpg", quality=92)
    return len(classes)


def by_hand(folder: str, *, epochs: int) -> None:
    """Prints how many seconds each epoch of a plain tf.data and GradientTape program takes."""
    import tensorflow as tf
    import tf_keras

    files = sorted(str(path) for path in Path(folder).rglob("*.jpg"))
    names = sorted({Path(path).parent.name for path in files})
    labels = [names.index(Path(path).parent.name) for path in files]

    def picture(path: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        return tf.image.resize(image, (160, 160), antialias=True) / 127.5 - 1.0, label

    shuffled = tf.data.Dataset.from_tensor_slices((files, labels)).shuffle(len(files), seed=0)
    pictures = shuffled.map(picture, num_parallel_calls=tf.data.AUTOTUNE)
    training = pictures.take(len(files) * 4 // 5).batch(16).prefetch(tf.data.AUTOTUNE)
    network = tf_keras.applications.MobileNetV2(
        include_top=False, weights=None, input_shape=(160, 160, 3), pooling="avg"
    )
    model = tf_keras.Sequential([network, tf_keras.layers.Dense(len(names))])
    optimizer, loss = tf_keras.optimizers.Adam(1e-4), tf_keras.losses.SparseCategoricalCrossentropy(True)

    @tf.function
    def step(images: tf.Tensor, labels: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            value = loss(labels, model(images, training=True))
        variables = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(value, variables), variables, strict=True))

    taken = []
    for _ in range(epochs):
        began = time.monotonic()
        for images, labels_ in training:
            step(images, labels_)
        taken.append(time.monotonic() - began)
    print(json.dumps({"epoch_seconds": taken}))


def pieces(folder: str) -> None:
    """Prints how many milliseconds of one thread each piece of work on a photo takes, the median of all."""
    import tensorflow as tf

    from trainer.data.decode import to_contract
    from trainer.values import Contract

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    plain = Contract(160, 160, (0.0, 1.0), 0, any_size=True)
    work = {
        "decode": lambda data, whole: tf.io.decode_jpeg(data, channels=3),
        "decode at an eighth": lambda data, whole: tf.io.decode_jpeg(data, channels=3, ratio=8),
        "to floats": lambda data, whole: tf.image.convert_image_dtype(whole, tf.float32),
        **{
            name: tf.function(lambda data, whole, how=how: to_contract(whole, how), autograph=False)
            for name, how in {
                "to 160 px": plain,
                "to 160 px, smoothed": replace(plain, antialias=True, resizes_bytes=True),
                "to 160 px, smoothed, as floats": replace(plain, antialias=True),
            }.items()
        },
    }
    secs: dict[str, list[float]] = {name: [] for name in work}
    for path in Path(folder).rglob("*.jpg"):
        # Of Python's bytes, each would be traced for itself.
        data = tf.constant(path.read_bytes())
        whole = tf.io.decode_jpeg(data, channels=3)
        for name, do in work.items():
            began = time.perf_counter()
            do(data, whole).numpy()
            secs[name].append(time.perf_counter() - began)
    print(json.dumps({name: round(1e3 * statistics.median(values), 1) for name, values in secs.items()}))


def ours(folder: Path, scratch: Path, *, cache: str, epochs: int, log: Path) -> dict[str, float]:
    """Runs the program in an empty workdir; returns seconds in all, and of the epochs after the first one."""
    workdir = scratch / "run"
    shutil.rmtree(workdir, ignore_errors=True)
    command = [
        sys.executable, "-m", "trainer.main", *FLAGS, f"--source=folder:{folder}", f"--workdir={workdir}",
        f"--cache_dir={scratch / 'cache'}", f"--picture_cache={cache}",
        f"--phase=name=all; for={epochs}epochs; train=all; lr=0.0001",
    ]  # fmt: skip
    child = measuring.run_child(command, log=log)
    speeds = reading.points(workdir / "train", "images_per_second")
    return {"seconds": child.wall_seconds, "images_per_second": speeds[-1].value}


def measure(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    folder = scratch / "photos"
    enlarge(Path(options.photos), folder, count=options.count)
    found: dict[str, Any] = {"count": options.count, "epochs": options.epochs}
    piecewise = [sys.executable, __file__, f"--photos={folder}", "--pieces"]
    child = measuring.run_child(piecewise, log=scratch / "pieces.txt")
    found["milliseconds"] = json.loads(child.output.splitlines()[-1])
    rounds: dict[str, list[Any]] = {"decoded each time": [], "kept": [], "kept before": [], "by hand": []}
    for number in range(options.rounds):
        for name, cache in (("decoded each time", "off"), ("kept", "auto"), ("kept before", "auto")):
            if name != "kept before":
                shutil.rmtree(scratch / "cache", ignore_errors=True)
            log = scratch / f"{name.replace(' ', '_')}_{number}.txt"
            rounds[name].append(ours(folder, scratch, cache=cache, epochs=options.epochs, log=log))
        plain = [sys.executable, __file__, f"--photos={folder}", f"--epochs={options.epochs}", "--by_hand"]
        child = measuring.run_child(plain, log=scratch / f"by_hand_{number}.txt")
        epoch_seconds = json.loads(child.output.splitlines()[-1])["epoch_seconds"]
        speed = options.count * 4 // 5 / min(epoch_seconds[1:])
        rounds["by hand"].append({"seconds": child.wall_seconds, "images_per_second": speed})
    return {**found, "rounds": rounds}


def table(rounds: dict[str, list[dict[str, float]]]) -> str:
    """Returns the Markdown table of all programs: medians and ends, and ratios to the first one."""
    header, rows, first = (
        ["", "", "median", "from", "to", "better than the first"],
        [],
        next(iter(rounds.values())),
    )
    for key, kind in (("seconds", "time"), ("images_per_second", "rate")):
        for name, runs in rounds.items():
            values = [run[key] for run in runs]
            better = measuring.better_by([run[key] for run in first], values, kind=kind)
            told = [measuring.show(value, kind=kind) for value in measuring.spread(values)]
            rows.append([name, key.replace("_", " "), *told, measuring.show_better(better, kind=kind)])
    return measuring.markdown(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--photos", required=True, help="a folder for each class, with JPEGs")
    parser.add_argument("--count", type=int, default=100, help="how many large photos to make")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", help="JSON file with all numbers")
    parser.add_argument("--by_hand", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--pieces", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if options.by_hand:
        by_hand(options.photos, epochs=options.epochs)
        return
    if options.pieces:
        pieces(options.photos)
        return
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(options, Path(scratch))
    measuring.write_json(options.output, found)
    print(f"{measuring.machine()}; {found['count']} photos, {found['epochs']} epochs\n")
    print(table(found["rounds"]))
    told = ", ".join(f"{name} {secs}" for name, secs in found["milliseconds"].items())
    print(f"\nMilliseconds of one thread a photo: {told}")


if __name__ == "__main__":
    main()
