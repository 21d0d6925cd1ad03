"""--init_from: begins with the weights of another run instead of the pretrained ones."""

import logging
from typing import Any

from trainer.experiment import Experiment
from trainer.model.weights import scored_weights
from trainer.record.checkpoints import Checkpoints
from trainer.record.workdir import Workdir
from trainer.values import TrainerError

_log = logging.getLogger("trainer")


def take_weights(experiment: Experiment) -> dict[str, Any]:
    """Puts the best weights of the run in --init_from into the network, and returns what was taken.

    Every variable of --init_part is matched by name and shape, or none is taken.

    Raises:
      TrainerError: there is no such run, it has no whole best checkpoint, or it does not fit.
    """
    model = experiment.config.model
    flag, part = f"--init_from={model.init_from}", model.init_part
    other = Workdir(model.init_from)
    theirs, ours = other.read_facts(), experiment.source.class_names
    if not theirs:
        raise TrainerError(f"{flag} holds no run (no {other.run_json.name} in it)")
    if part == "all" and tuple(theirs["class_names"]) != tuple(ours):
        raise TrainerError(
            f"{flag} tells {_told(theirs['class_names'])} apart, this run {_told(ours)}: its head means "
            "something else; --init_part=backbone takes the network alone"
        )
    checkpoints = Checkpoints(other.checkpoints, keep=1)
    path = checkpoints.find("best")
    prefix = "" if part == "all" else "backbone/"
    values = scored_weights(checkpoints.values(path))
    found = {name: value for name, value in values.items() if name.startswith(prefix)}
    variables = experiment.classifier.named_variables
    wanted = {name: variable for name, variable in variables.items() if name.startswith(prefix)}
    for name in sorted({*found, *wanted}):
        was = list(found[name].shape) if name in found else "missing"
        now = wanted[name].shape.as_list() if name in wanted else "missing"
        if was != now:
            raise TrainerError(
                f"{flag} does not fit: {name} is {was} there and {now} here; "
                + ("--init_part=backbone takes the network alone" if part == "all" else "the networks differ")
            )
    for name, variable in wanted.items():
        variable.assign(found[name])
    step = checkpoints.step_of(path)
    _log.info("weights:     %s of %s, step %s", part, other.root, f"{step:,}")
    return {"workdir": str(other.root), "identity": theirs["identity"], "step": step, "part": part}


def _told(names: Any) -> str:
    shown = ", ".join(list(names)[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
