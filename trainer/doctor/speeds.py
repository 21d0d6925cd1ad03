"""Which arithmetic pays here: a small measurement, and what earlier runs measured."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.caches import cache_root
from trainer.doctor.findings import Finding, ok, warning
from trainer.doctor.probe import WHAT
from trainer.precision import Choice, read_choice

MOST_SHOWN = 5


def check_precisions(probed: Mapping[str, Any], *, cache_dir: str) -> list[Finding]:
    """Says what was measured just now, and before.

    Args:
      probed: what `probe.finish` returned.
      cache_dir: the value of --cache_dir.
    """
    speeds = probed.get("speeds")
    if speeds is None:
        return [warning("nothing was measured: TensorFlow does not compute", "see what is said of it above")]
    measured = Choice.from_json(speeds["measured"])
    taken = ", ".join(f"{1e3 * secs:,.3g} ms in {name}" for name, secs in measured.step_secs.items())
    if len(measured.step_secs) == 1:
        return [
            ok(f"TensorFlow computes only in float32 here, so there is nothing to choose: {taken} ({WHAT})")
        ]
    pays = (
        "16 bits save less than a tenth" if measured.precision == "float32" else f"{measured.precision} pays"
    )
    rule = "--precision=auto measures each phase's own step instead, and remembers it"
    found = [ok(f"{pays}: {taken} ({WHAT})"), ok(rule)]
    return found + _remembered(cache_root(cache_dir) / "precision", speeds["machine"])


def _remembered(folder: Path, here: Mapping[str, Any]) -> list[Finding]:
    """Returns the latest measurements of runs that are kept, and hold for this machine as it is."""
    mine, others = [], 0
    for path in folder.glob("*.json"):
        choice = read_choice(path)
        if choice is None:
            continue
        if choice.machine == here:
            mine.append(choice)
        else:
            others += 1
    mine.sort(key=lambda choice: choice.measured_at, reverse=True)
    found = [ok(choice.describe()) for choice in mine[:MOST_SHOWN]]
    if len(mine) > MOST_SHOWN:
        found.append(ok(f"and {len(mine) - MOST_SHOWN} older measurements in {folder}"))
    if others:
        found.append(ok(f"{others} more in {folder} are of other machines or settings, and do not count"))
    return found
