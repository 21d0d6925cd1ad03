"""All that a run leaves and that must not depend on when it was interrupted."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

SPLITS = ("options", "train", "validation", "test")
EVENTS = "events.out.tfevents."
# Times differ from run to run, and a log right after a restart has none.
TIMING = ("images_per_second", "input_wait_share")
_KEEP_ALL = dict.fromkeys(("tensors", "images", "scalars", "compressedHistograms", "histograms"), 0)


def results(workdir: Path) -> dict[str, Any]:
    """Returns {what: its bytes, their digest if they are many, or what a reader makes of it} of a run."""
    found: dict[str, Any] = {}
    names = {str(path.relative_to(workdir)) for path in workdir.rglob("*")}
    found["files"] = sorted(name for name in names if EVENTS not in name)
    for name in found["files"]:
        if (workdir / name).is_file():
            content = (workdir / name).read_bytes()
            found[name] = content if len(content) < 2**20 else hashlib.sha256(content).hexdigest()
    run = json.loads(found["run.json"])
    # When it was measured, and how long it took.
    run["precision"] = {phase: choice["precision"] for phase, choice in run["precision"].items()}
    found["run.json"] = {name: value for name, value in run.items() if name not in ("code", "code_changes")}
    for split in SPLITS:
        if (workdir / split).is_dir():
            found |= {f"TensorBoard, {split}: {tag}": at for tag, at in shown(workdir / split).items()}
    return found


def shown(folder: Path) -> dict[str, list[Any]]:
    """Returns {tag: [(step, value)]} as TensorBoard reads it, after making sure that each is there once.

    Values are those of protocol buffers; options for the HPARAMS tab begin with a time, and are left out.
    """
    events = EventAccumulator(str(folder), size_guidance=_KEEP_ALL).Reload()
    found: dict[str, list[Any]] = {"graph": [bool(events.Tags()["graph"])]}
    for tag in events.Tags()["tensors"]:
        points = events.Tensors(tag)
        steps = [point.step for point in points]
        assert len(set(steps)) == len(steps), f"{folder} {tag}: TensorBoard shows a step twice: {steps}"
        if tag.startswith("_hparams_"):
            found[tag] = steps
        elif tag not in TIMING:
            found[tag] = [(point.step, point.tensor_proto.SerializeToString()) for point in points]
    _check_files(folder)
    return found


def _check_files(folder: Path) -> None:
    """Makes sure that no point is in the files twice, whatever a reader makes of that."""
    counts: Counter = Counter()
    for path in sorted(folder.glob(f"{EVENTS}*")):
        for event in LegacyEventFileLoader(str(path)).Load():
            if event.WhichOneof("what") == "graph_def":
                counts["graph"] += 1
            counts.update((value.tag, event.step) for value in event.summary.value)
    assert not (twice := [at for at, count in counts.items() if count > 1]), f"{folder}: twice in it: {twice}"


def without_older(found: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves out the checkpoints before the newest: a run that was asked to stop has saved at other steps."""
    latest = [name for name in found["files"] if name.startswith("checkpoints/ckpt-")]
    newest = max(int(Path(name).name.split("-")[1].split(".")[0]) for name in latest)
    older = {name for name in latest if not name.startswith(f"checkpoints/ckpt-{newest}.")}
    files = [name for name in found["files"] if name not in older]
    left_out = {*older, "checkpoints/checkpoint"}
    return {name: value for name, value in found.items() if name not in left_out} | {"files": files}


def kept_features(cache: Path) -> dict[str, Any]:
    """Returns what is in the feature cache, without times, and locks that nobody holds.

    Entries are called by what they are of: their keys are others where the network was converted anew.
    """
    found: dict[str, Any] = {}
    for path in sorted((cache / "features").rglob("*")):
        if path.name == "entry.json":
            entry = json.loads(path.read_bytes())
            del entry["created"], entry["key"]["network"]["function"]
            what = f"features of {entry['describe']}"
            assert what not in found, f"there twice: {what}"
            found[what] = (entry, path.with_name("features.npy").read_bytes())
        elif path.name != "features.npy" and path.is_file() and path.suffix != ".lock":
            found[str(path.relative_to(cache))] = path.read_bytes()
    return found


def differences(got: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Returns what differs, in words."""
    told = []
    for name in sorted({*got, *expected}):
        was, now = expected.get(name, "missing"), got.get(name, "missing")
        if was != now:
            short = [
                repr(value) if len(repr(value)) < 300 else f"{repr(value)[:300]}..." for value in (was, now)
            ]
            told.append(f"{name}: {short[0]} became {short[1]}")
    return told
