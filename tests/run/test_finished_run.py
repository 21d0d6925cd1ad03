"""What the run of --init_from has learnt from before."""

import json
import logging

from trainer.record.workdir import Workdir
from trainer.run.finished_run import seen_before, tell_seen_before


def rows(*digests):
    return [[f"{digest}.jpg", "red", digest] for digest in digests]


def test_who_begins_with_a_run_that_knows_the_test_pictures_is_told(tmp_path, caplog, monkeypatch):
    splits = {"train": rows("a", "b", "c"), "validation": rows("d", "e"), "test": rows("f")}
    record = {"format": 3, "splits": splits, "how": ""}
    (tmp_path / "splits.json").write_text(json.dumps(record))
    other = Workdir(str(tmp_path))
    assert not seen_before(other, splits)
    # Two files of one picture count twice; what could not be read is like nothing.
    mine = {"train": rows("f"), "validation": rows("c", "d"), "test": rows("a", "a", "e", "f", "new", "")}
    seen = seen_before(other, mine)
    assert seen == {"validation": {"train": 1}, "test": {"train": 2, "validation": 1}}
    monkeypatch.setattr(logging.getLogger("trainer"), "propagate", True)
    tell_seen_before({"seen_before": seen}, scored="test")
    tell_seen_before({}, scored="test")
    assert [record.getMessage() for record in caplog.records] == [
        "2 of the test pictures are among those that the run in --init_from was trained with, and 1 among "
        "those that its best weights were chosen by: read the score as too good"
    ]
    assert not seen_before(Workdir(str(tmp_path / "none")), mine)
