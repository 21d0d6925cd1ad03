"""Reads event files back as TensorBoard does."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.util import tensor_util

# 0: keep everything; by default they take samples.
EVERYTHING = dict.fromkeys(("tensors", "images", "scalars", "compressedHistograms", "histograms"), 0)


def accumulated(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance=EVERYTHING).Reload()


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


class Running:
    """What a TensorBoard shows that has been running since this was made, on everything in a folder."""

    def __init__(self, root: Path):
        self._root = root
        self._runs = EventMultiplexer(size_guidance=EVERYTHING, tensor_size_guidance={})

    def look(self) -> "Running":
        """Reads what has come since it last looked."""
        self._runs.AddRunsFromDirectory(str(self._root))
        self._runs.Reload()
        return self

    def shown(self) -> dict[tuple[str, str], list[tuple[int, bytes]]]:
        """Returns {(run, tag): [(step, value)]}, in the order in which it was read."""
        return {
            (run, tag): [(e.step, e.tensor_proto.SerializeToString()) for e in self._runs.Tensors(run, tag)]
            for run, tags in self._runs.Runs().items()
            for tag in tags["tensors"]
            if self._runs.Tensors(run, tag)
        }
