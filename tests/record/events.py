"""Reads event files back as TensorBoard does."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util


def accumulated(folder: Path) -> EventAccumulator:
    # 0: keep everything; by default it takes samples.
    guidance = dict.fromkeys(("tensors", "images", "scalars", "compressedHistograms", "histograms"), 0)
    return EventAccumulator(str(folder), size_guidance=guidance).Reload()


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Returns {tag: [(step, value)]} of the scalars in a folder, in the order of its files."""
    events = accumulated(folder)
    tags = [t for t in events.Tags()["tensors"] if plugin(events, t) == "scalars"]
    return {
        tag: [(e.step, tensor_util.make_ndarray(e.tensor_proto).item()) for e in events.Tensors(tag)]
        for tag in tags
    }


def plugin(events: EventAccumulator, tag: str) -> str:
    return events.SummaryMetadata(tag).plugin_data.plugin_name


def steps_of(folder: Path) -> dict[str, list[int]]:
    """Returns {tag: [step]} of everything with a tag."""
    events = accumulated(folder)
    return {tag: [e.step for e in events.Tensors(tag)] for tag in events.Tags()["tensors"]}
