"""The network of a finished run, opened from its workdir alone: the pictures need not be there any more."""

import dataclasses
import json
import logging
from dataclasses import dataclass
from typing import Any

from trainer.config import Config
from trainer.experiment import make_classifier
from trainer.files import read_json
from trainer.loop.phases import make_plan
from trainer.model.backbones import Backbone, open_backbone
from trainer.model.classifier import Classifier
from trainer.model.weights import assign_weights
from trainer.phase_specs import phase_specs
from trainer.precision import Choice, supported
from trainer.record.checkpoints import Checkpoints
from trainer.record.workdir import Workdir
from trainer.values import TrainerError

_log = logging.getLogger("trainer")


@dataclass(frozen=True)
class Network:
    """A classifier with the weights of a checkpoint.

    `class_names` are in the order of its logits, `step` is that of the checkpoint, and `precision` the
    arithmetic that its backbone is to be run in.
    """

    classifier: Classifier
    class_names: tuple[str, ...]
    step: int
    precision: str


def open_network(workdir: Workdir, config: Config) -> Network:
    """Opens the network that a run recorded, and gives it the weights of --checkpoint.

    Args:
      workdir: of the run.
      config: what it was started with.

    Raises:
      TrainerError: there is no such run or checkpoint, or the network is not what it was.
    """
    facts = workdir.read_facts()
    checkpoints = Checkpoints(workdir.checkpoints, keep=config.run.keep_checkpoints)
    path = checkpoints.find(config.evaluate.checkpoint)
    step, class_names = checkpoints.step_of(path), tuple(facts["class_names"])
    backbone = _open_backbone(config, facts["contract"])
    classifier = make_classifier(config, backbone, num_classes=len(class_names))
    assign_weights(classifier, checkpoints.values(path))
    return Network(classifier, class_names, step, _precision(config, workdir, step))


def _open_backbone(config: Config, recorded: dict[str, Any]) -> Backbone:
    """Opens the network of a run, at the size and range of pixels that it was trained with."""
    model = config.model
    backbone = open_backbone(
        model.backbone,
        # All weights come from the checkpoint: those of Keras would be fetched for nothing.
        weights="none" if model.backbone.startswith("keras:") else model.weights,
        # What had a choice of sizes took one that is square.
        image_size=recorded["height_px"] if recorded["any_size"] else model.image_size,
        value_range=tuple(recorded["value_range"]) if model.value_range else None,
        cache_dir=config.run.cache_dir,
    )
    now = json.loads(json.dumps(dataclasses.asdict(backbone.contract)))
    for name in now:
        if now[name] != recorded.get(name):
            raise TrainerError(
                f"--backbone={model.backbone} is not the network this run was trained with: {name} was "
                f"{recorded.get(name)} and is {now[name]}"
            )
    return backbone


def _precision(config: Config, workdir: Workdir, step: int) -> str:
    """Returns the arithmetic of the phase that made the weights, where this machine has it; else float32."""
    asked = config.speed.precision
    if asked == "auto":
        decided = {
            phase: Choice.from_json(choice).precision
            for phase, choice in workdir.read_facts().get("precision", {}).items()
        }
        asked = next(iter(decided.values()), "float32")
        if len(set(decided.values())) > 1:
            num_examples = len(read_json(workdir.splits_json)["splits"]["train"])
            specs, batch_size = phase_specs(config.plan), config.plan.batch_size
            plan = make_plan(specs, num_examples=num_examples, batch_size=batch_size)
            phase = plan.phase_at(max(step - 1, 0))
            asked = decided.get(f"{phase.index}-{phase.spec.name}", "float32")
    if asked not in supported():
        _log.warning("the run computed in %s, which this machine does not; it is float32 now", asked)
        return "float32"
    return asked
