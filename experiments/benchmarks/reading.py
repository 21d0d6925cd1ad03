"""What the programs of a comparison tell about themselves: theirs a JSON, ours its workdir."""

import json
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Point(NamedTuple):
    """A number in an event file. `seconds` is when it was written."""

    step: int
    seconds: float
    value: float


def theirs(path: Path) -> dict[str, Any]:
    """Reads the JSON of textbook_loop.py or keras_fit.py into the quantities of the comparisons."""
    told = json.loads(path.read_text())
    epochs = told["epochs"]
    found = {name: told[name] for name in ("images_per_second", "trained_parameters") if name in told}
    found["epoch_seconds"] = [epoch["train_seconds"] + epoch["validation_seconds"] for epoch in epochs]
    if len(epochs) > 1:
        found["train_seconds_per_epoch"] = statistics.mean(epoch["train_seconds"] for epoch in epochs[1:])
        found["seconds_per_epoch"] = statistics.mean(found["epoch_seconds"][1:])
    found["validation_accuracy"] = epochs[-1]["validation"]["accuracy"]
    if "test" in told:
        found["test_accuracy"] = told["test"]["accuracy"]
    return found


def ours(workdir: Path, printed: str) -> dict[str, Any]:
    """Reads the workdir of a run of one phase into the same quantities.

    An epoch lasts from one validation to the next, with all that lies between, such as checkpoints.

    Raises:
      SystemExit: the run did not say how many parameters train.
    """
    train_images = len(json.loads((workdir / "splits.json").read_text())["splits"]["train"])
    flags = (workdir / "flagfile.flags").read_text()
    batch_size = int(re.findall(r"^--batch_size=(\d+)$", flags, re.MULTILINE)[0])
    trained = re.search(r"([\d,]+) of [\d,]+ parameters train", printed)
    if not trained:
        raise SystemExit(f"the run in {workdir} did not print how many parameters train")
    found: dict[str, Any] = {"trained_parameters": int(trained[1].replace(",", ""))}
    validation = points(workdir / "validation", "accuracy")
    found["validation_accuracy"] = validation[-1].value
    if test := points(workdir / "test", "accuracy"):
        found["test_accuracy"] = test[-1].value
    if len(validation) > 1:
        took = validation[-1].seconds - validation[0].seconds
        found["seconds_per_epoch"] = took / (len(validation) - 1)
    speeds = points(workdir / "train", "images_per_second")
    return found | speed(speeds, train_images=train_images, batch_size=batch_size)


def speed(speeds: Sequence[Point], *, train_images: int, batch_size: int) -> dict[str, float]:
    """Returns images a second, and seconds an epoch after the first, from what our Log hook writes.

    The first of several intervals is left out, as steps in it warm up.

    Args:
      speeds: images a second, at the end of each interval.
      train_images: images of an epoch.
      batch_size: images of a step.
    """
    steps_per_epoch = -(-train_images // batch_size)
    starts = [0, *(point.step for point in speeds)]
    intervals = []
    for start, point in zip(starts, speeds, strict=False):
        images = real_images(start, point.step, train_images, batch_size)
        intervals.append((start, point.step, images, images / point.value))
    warm = intervals[1:] or intervals
    found = {}
    if warm:
        images = sum(images for _, _, images, _ in warm)
        found["images_per_second"] = images / sum(seconds for *_, seconds in warm)
    later = [(b - a, seconds) for a, b, _, seconds in intervals if a >= steps_per_epoch]
    if later:
        a_step = sum(seconds for _, seconds in later) / sum(steps for steps, _ in later)
        found["train_seconds_per_epoch"] = a_step * steps_per_epoch
    return found


def real_images(start_step: int, stop_step: int, train_images: int, batch_size: int) -> int:
    """Returns how many images the steps [start_step, stop_step) train on, without padding."""
    steps_per_epoch = -(-train_images // batch_size)

    def until(step: int) -> int:
        epochs, steps = divmod(step, steps_per_epoch)
        return epochs * train_images + min(steps * batch_size, train_images)

    return until(stop_step) - until(start_step)


def extrapolated(wall_seconds: float, epoch_seconds: Sequence[float], *, epochs: int) -> float:
    """Returns the wall clock with more epochs, each as long as those after the first on average.

    Args:
      wall_seconds: of the run.
      epoch_seconds: of each of its epochs, two or more.
      epochs: how many there would be.
    """
    return wall_seconds + (epochs - len(epoch_seconds)) * statistics.mean(epoch_seconds[1:])


def points(folder: Path, tag: str) -> list[Point]:
    """Returns the scalars of a tag in a folder of event files, by step; [] where there are none."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    if not folder.is_dir():
        return []
    # 0: all of them. By default it takes samples.
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    if tag not in events.Tags()["tensors"]:
        return []
    found = [
        Point(event.step, event.wall_time, tensor_util.make_ndarray(event.tensor_proto).item())
        for event in events.Tensors(tag)
    ]
    return sorted(found)
