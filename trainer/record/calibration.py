"""calibration.json: what was fitted to validation with the weights that a training ended with."""

import logging
from dataclasses import dataclass
from typing import Any

from trainer.record.workdir import Workdir
from trainer.store.files import read_json, write_json
from trainer.tasks import Task
from trainer.values import TrainerError

_log = logging.getLogger("trainer")
FORMAT = 1
_SHAPE = {
    "format": int,
    "identity": str,
    "step": int,
    "num_examples": int,
    "temperature": float | None,
    "thresholds?": [float],
}


@dataclass(frozen=True)
class Calibration:
    """What validation settled.

    Attributes:
      temperature: what logits are divided by so that probabilities hold; None: not known.
      thresholds: from which probability on each class is predicted; None: what the task says.
      fitted_on: the pictures, in words; empty where nothing was fitted.
    """

    temperature: float | None = None
    thresholds: tuple[float, ...] | None = None
    fitted_on: str = ""

    def settled(self, task: Task) -> Task:
        """Returns a task that decides as validation settled."""
        return task if self.thresholds is None else task.with_thresholds(self.thresholds)


UNKNOWN = Calibration()


def record_calibration(workdir: Workdir, found: Calibration, *, step: int, num_examples: int) -> None:
    """Writes what was fitted with the weights of a step, to so many pictures of validation."""
    values: dict[str, Any] = {
        "format": FORMAT,
        "identity": workdir.read_facts()["identity"],
        "step": step,
        "split": "validation",
        "num_examples": num_examples,
        "temperature": found.temperature,
    }
    if found.thresholds is not None:
        values["thresholds"] = list(found.thresholds)
    write_json(workdir.report / "calibration.json", values)


def recorded_calibration(workdir: Workdir, *, step: int) -> Calibration:
    """Returns what was fitted with the weights of a step; `UNKNOWN` where nothing is recorded of them.

    Raises:
      TrainerError: the record is damaged.
    """
    path = workdir.report / "calibration.json"
    if not path.exists():
        return UNKNOWN
    found = read_json(path, {"format": int})
    if found["format"] != FORMAT:
        return UNKNOWN
    found = read_json(path, _SHAPE)
    facts = workdir.read_facts()
    if (found["step"], found["identity"]) != (step, facts.get("identity")):
        return UNKNOWN
    temperature, thresholds = found["temperature"], found.get("thresholds")
    if temperature is not None and temperature <= 0:
        raise TrainerError(f"{path} is damaged: temperature is {temperature}, expected more than 0")
    if thresholds is not None and len(thresholds) != len(facts["class_names"]):
        raise TrainerError(
            f"{path} is damaged: it has {len(thresholds)} thresholds, expected one for each of the "
            f"{len(facts['class_names'])} classes"
        )
    on = f"validation, {found['num_examples']:,} pictures"
    return Calibration(temperature, None if thresholds is None else tuple(thresholds), on)


def recorded_temperature(workdir: Workdir, *, step: int) -> tuple[float | None, str]:
    """Returns the temperature that was fitted on validation with the weights of a step, and on what.

    It is None where there is none.
    """
    found = recorded_calibration(workdir, step=step)
    return (None, "") if found.temperature is None else (found.temperature, found.fitted_on)


def settled_task(workdir: Workdir, task: Task, *, step: int) -> Task:
    """Returns a task that decides as was settled with the weights of a step; warns where it was not."""
    if not task.fits_thresholds:
        return task
    found = recorded_calibration(workdir, step=step)
    if found.thresholds is None:
        _log.warning(
            "no thresholds were fitted with the weights of step %s: each class is predicted from 0.5 on. "
            "They are fitted with the best weights, when training ends",
            f"{step:,}",
        )
    return found.settled(task)
