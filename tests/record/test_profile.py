"""TensorFlow's profiler is run for real, and what it saw is read back."""

import gzip
import json

import pytest
import tensorflow as tf
from tensorflow.tsl.profiler.protobuf.xplane_pb2 import XSpace

from trainer.record.profile import Profiler, chrome_trace
from trainer.record.workdir import Workdir
from trainer.values import TrainerError


@pytest.fixture
def workdir(tmp_path):
    made = Workdir(str(tmp_path / "run"))
    made.make()
    return made


def profile(workdir, name="updates_3-4"):
    profiler = Profiler(workdir)
    double = tf.function(lambda x: tf.multiply(x, 2.0, name="doubled"))
    profiler.start()
    for step in (3, 4):
        with profiler.update(step):
            double(tf.ones([64, 64]))
    profiler.stop(name)
    return workdir.root / "train" / "plugins" / "profile" / name


def test_a_profile_and_a_trace_of_it(workdir):
    folder = profile(workdir)
    [trace, xplane] = sorted(path.name for path in folder.iterdir())
    assert (trace.split(".", 1)[1], xplane.split(".", 1)[1]) == ("trace.json.gz", "xplane.pb")
    planes = XSpace.FromString((folder / xplane).read_bytes()).planes
    found = json.loads(gzip.decompress((folder / trace).read_bytes()))["traceEvents"]
    timed = [event for event in found if event["ph"] == "X"]
    assert len(timed) == sum(len(line.events) for plane in planes for line in plane.lines)
    updates = [event for event in timed if event["name"] == "train"]
    assert [event["args"]["step_num"] for event in updates] == [3, 4]
    first, second = updates
    assert first["ts"] + first["dur"] <= second["ts"]
    inside = [event for event in timed if event["ts"] >= first["ts"] and event["name"] != "train"]
    assert inside
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in found if e["name"] == "thread_name"}
    assert {(event["pid"], event["tid"]) for event in timed} <= set(threads)
    assert threads[first["pid"], first["tid"]] == "python"
    # Nothing else is left, and a profile that is made again takes the place of the first.
    assert [path.name for path in workdir.root.iterdir()] == ["train"]
    (folder / "kept_by_the_tab").write_text("of the first")
    profile(workdir)
    assert len(list(folder.iterdir())) == 2


def test_a_profile_that_is_thrown_away_leaves_nothing(workdir):
    profiler = Profiler(workdir)
    profiler.start()
    profiler.discard()
    assert list(workdir.root.iterdir()) == []
    profile(workdir)


def test_another_profiler_is_told_of(workdir):
    profiler = Profiler(workdir)
    profiler.start()
    try:
        with pytest.raises(TrainerError, match="--profile_steps: Another profiler is running"):
            Profiler(workdir).start()
    finally:
        profiler.discard()


def test_times_of_a_trace_are_in_microseconds():
    space = XSpace()
    plane = space.planes.add(name="/host:CPU")
    plane.event_metadata[1].name = "long name"
    plane.event_metadata[2].name, plane.event_metadata[2].display_name = "fusion.1", "MatMul"
    for key, name in enumerate(("flops", "kind", "big", "_hidden")):
        plane.stat_metadata[key].name = name
    line = plane.lines.add(name="a thread", timestamp_ns=2_000)
    line.events.add(metadata_id=1, offset_ps=500_000, duration_ps=1_500_000)
    event = line.events.add(metadata_id=2)
    event.stats.add(metadata_id=0, double_value=2.5)
    event.stats.add(metadata_id=1, ref_value=2)
    event.stats.add(metadata_id=2, bytes_value=b"\xff")
    event.stats.add(metadata_id=3, int64_value=1)
    found = json.loads(gzip.decompress(chrome_trace(space.SerializeToString())))["traceEvents"]
    where = {"pid": 0, "tid": 0}
    assert found == [
        {"ph": "M", "name": "process_name", "pid": 0, "args": {"name": "/host:CPU"}},
        {"ph": "M", "name": "thread_name", **where, "args": {"name": "a thread"}},
        {"ph": "X", **where, "name": "long name", "ts": 2.5, "dur": 1.5, "args": {}},
        {"ph": "X", **where, "name": "MatMul", "ts": 2.0, "dur": 0.0, "args": {"flops": 2.5, "kind": "big"}},
    ]
