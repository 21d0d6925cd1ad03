"""The decorators by which a plugin adds to the framework: `@trainer.register.loss("mine")`.

A plugin is a Python file, or an importable module, named by --plugin. What it registers is asked for by name
like everything else: `--loss=mine(2)` calls the function with its first parameter 2. Parameters are annotated
as int, float, bool or str, perhaps with bounds, `Annotated[float, Bounds(at_least=0)]`; the first paragraph
of the docstring is the help. Keyword-only parameters are given by the framework, to whoever names them; each
decorator says which there are. docs/extending.md has an example of each.
"""

import importlib
import sys
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from trainer.registry import Bounds, Registry

__all__ = [
    "Bounds", "augmentation", "average", "backbone", "callback", "export_form", "gradient_rule", "head",
    "loss", "metric", "objective", "optimizer", "registries", "saliency", "schedule", "source", "task",
]  # fmt: skip

F = TypeVar("F", bound=Callable[..., Any])


class Decorator(Protocol):
    """Gives back what it registers."""

    def __call__(self, made: F, /) -> F: ...


# {kind: where its registry is}. Rooms import TensorFlow, so they are imported when they are asked for.
_REGISTRIES = {
    "task": "trainer.tasks:TASKS",
    "loss": "trainer.loop.losses:LOSSES",
    "objective": "trainer.loop.objectives:OBJECTIVES",
    "gradient_rule": "trainer.loop.gradient_rules:GRADIENT_RULES",
    "metric": "trainer.loop.metrics:METRICS",
    "schedule": "trainer.loop.schedules:SCHEDULES",
    "optimizer": "trainer.loop.optimizers:OPTIMIZERS",
    "average": "trainer.loop.averages:AVERAGES",
    "callback": "trainer.loop.callbacks:CALLBACKS",
    "augmentation": "trainer.data.augment:AUGMENTATIONS",
    "head": "trainer.model.heads:HEADS",
    "saliency": "trainer.model.saliency:SALIENCY",
    "export_form": "trainer.export.models:FORMS",
    "source": "trainer.data.sources:SOURCES",
    "backbone": "trainer.model.backbones:BACKBONES",
}


KINDS = tuple(_REGISTRIES)


class Check(Protocol):
    """Raises UsageError where an address cannot be one; looks at the text, and opens nothing."""

    def __call__(self, address: str, *, flag: str) -> Any: ...


def places() -> dict[str, str]:
    """Returns {kind: module and name of its registry, with a colon between them}."""
    return dict(_REGISTRIES)


def loaded(kind: str) -> Registry[Any] | None:
    """Returns the registry of a kind if its room has been imported; adding to it does that."""
    module, _, name = _REGISTRIES[kind].partition(":")
    found: Registry[Any] | None = getattr(sys.modules.get(module), name, None)
    return found


def _registry(kind: str) -> Registry[Any]:
    module, _, name = _REGISTRIES[kind].partition(":")
    found: Registry[Any] = getattr(importlib.import_module(module), name)
    return found


def registries() -> dict[str, Registry[Any]]:
    """Returns {kind: all that is registered of it}; imports TensorFlow."""
    return {kind: _registry(kind) for kind in _REGISTRIES}


def task(name: str, *, source: str = "") -> Decorator:
    """Registers what makes a `tasks.Task`: what labels mean, and how logits become predictions.

    `tasks.OneClass` has all but the decision of a task whose labels are one class each.

    Args:
      name: for --task.
      source: the paper or site it follows.
    """
    return _registry("task").register(name, source=source)


def loss(name: str, *, source: str = "") -> Decorator:
    """Registers what makes a `loop.losses.Loss`: (logits [B, K], labels [B], targets [B, K] or None) -> [B].

    Offered: `smoothing`, the share of --label_smoothing; a loss that does not take it gets smoothed targets.
    And `task`, which says what labels mean.

    Args:
      name: for --loss.
      source: the paper or site it follows.
    """
    return _registry("loss").register(name, source=source)


def objective(name: str, *, source: str = "") -> Decorator:
    """Registers what makes a `loop.objectives.Objective`: (forward, batch, seed) -> Terms.

    Offered: `loss`, that of --loss; `num_classes`; `experiment`, with the pictures (`source`), `splits`,
    `plan`, `strategy` and options (`config`) of the run, `augment(spec)` and `trained_in_backbone(spec)` of a
    phase. Variables are made in the strategy's scope: do so here, and hold them in an attribute `variables`.
    What takes long belongs in a method `start`: this here is done by `evaluate`, too.

    What an objective computes of a batch goes example by example, so that devices and --accumulate can divide
    it. One that compares the examples of a batch takes those of all devices from `forward.gather`, and
    refuses --accumulate: raise a `trainer.values.UsageError`, whose message then begins with the flag.

    Args:
      name: for --objective.
      source: the paper or site it follows.
    """
    return _registry("objective").register(name, source=source)


def gradient_rule(name: str, *, source: str = "") -> Decorator:
    """Registers what makes a `loop.gradient_rules.GradientRule`: (compute, variables) -> Computed.

    Variables are made in the strategy's scope: do so here, and hold them in an attribute `variables`.

    Args:
      name: for --gradient_rule.
      source: the paper or site it follows.
    """
    return _registry("gradient_rule").register(name, source=source)


def metric(name: str, *, source: str = "", less_is_better: bool = False) -> Decorator:
    """Registers what makes a `loop.metrics.Metric`: (logits [B, K], batch) -> [B] float32.

    Offered: `task`, which says what labels mean.

    Args:
      name: for --metrics.
      source: the paper or site it follows.
      less_is_better: whether `sweep --metric` looks for the least of it.
    """
    return _registry("metric").register(name, source=source, less_is_better=less_is_better)


def callback(name: str, *, source: str = "", before_save: bool = False) -> Decorator:
    """Registers what makes a `loop.callbacks.Callback`.

    Offered: `run`, a `loop.callbacks.RunView` with what a callback may use.

    Args:
      name: for --callbacks.
      source: the paper or site it follows.
      before_save: its place. Before Save, what it writes of a step counts for the checkpoint of that step.
        Else it comes after Evaluate and whoever goes by evaluations, and what it writes of the step of a
        checkpoint must be made again by `resume`.
    """
    return _registry("callback").register(name, source=source, before_save=before_save)


def augmentation(name: str, *, source: str = "") -> Decorator:
    """Registers what makes a `data.augment.Change`, of single pictures, or a `Mixing` of two.

    Args:
      name: for --augment.
      source: the paper or site it follows.
    """
    return _registry("augmentation").register(name, source=source)


def schedule(name: str, *, source: str = "", rises: bool = False) -> Decorator:
    """Registers what makes a `loop.schedules.Course`: (updates since the warm-up, their number) -> factor.

    Args:
      name: for --lr_schedule.
      source: the paper or site it follows.
      rises: whether it begins low by itself, so that there can be no warm-up.
    """
    return _registry("schedule").register(name, source=source, rises=rises)


def average(name: str, *, source: str = "") -> Decorator:
    """Registers what makes a `loop.averages.Average`: number of updates -> share that the average keeps.

    Offered: `num_steps` and `steps_per_epoch` of the phase.

    Args:
      name: for --average.
      source: the paper or site it follows.
    """
    return _registry("average").register(name, source=source)


def optimizer(
    name: str, *, source: str = "", weight_decay: bool = False, momentum: bool = False
) -> Decorator:
    """Registers what makes a tf_keras optimizer.

    Offered: `spec`, the phase's options; `learning_rate`; `jit_compile`; and what
    `loop.optimizers.per_variable` wants, `multipliers` and `factor`.

    Args:
      name: for --optimizer.
      source: the paper or site it follows.
      weight_decay: whether it has one, as --weight_decay says.
      momentum: whether it has one, as --momentum says.
    """
    return _registry("optimizer").register(name, source=source, weight_decay=weight_decay, momentum=momentum)


def head(name: str, *, source: str = "") -> Decorator:
    """Registers what gives the widths of the hidden layers of a head, a list of int.

    Args:
      name: for --head.
      source: the paper or site it follows.
    """
    return _registry("head").register(name, source=source)


def source(name: str, *, source: str = "", address: str = "", check: Check | None = None) -> Decorator:
    """Registers what opens a `data.sources.Source`, such as a `data.sources.MemorySource`.

    Its one parameter is the address: `--source=mine:a/b` calls it with "a/b". Offered: `name`, the whole
    text, what messages call the source; `options`, the `data.sources.SourceOptions` with --cache_dir and so
    on. The order of the pictures, their ids and their bytes must be the same each time: they are what a run
    is resumed and checked by.

    Args:
      name: what stands before the colon in --source.
      source: the paper or site it follows.
      address: what is written behind the colon, for the help, such as PATH.
      check: raises UsageError where an address cannot be one, before anything is opened.
    """
    return _registry("source").register(name, source=source, address=address, check=check)


def backbone(name: str, *, source: str = "", address: str = "", check: Check | None = None) -> Decorator:
    """Registers what opens a `model.backbones.Backbone`, such as a `model.backbones.KerasBackbone`.

    Its one parameter is the address: `--backbone=mine:small` calls it with "small". Offered: `name`, the
    whole text, what messages call the network; `image_size` in px, 0 where it is left to the network;
    `cache_dir`; `weights` and `value_range`, which are refused where a network does not name them. `weights`
    is "none" where they come from a checkpoint. Weights that are drawn must be the same each time
    (`model.backbones.reseed`).

    Args:
      name: what stands before the colon in --backbone, or alone.
      source: the paper or site it follows.
      address: what is written behind the colon, for the help, such as NAME.
      check: raises UsageError where an address cannot be one, before anything is opened.
    """
    return _registry("backbone").register(name, source=source, address=address, check=check)


def saliency(name: str, *, source: str = "", title: str = "") -> Decorator:
    """Registers what makes a `model.saliency.Method`: (pixels [H, W, 3], class) -> `model.saliency.Saliency`.

    Offered: `classifier`, images [B, H, W, 3] as `classifier.backbone.contract` says -> logits [B, K], with
    the weights of the run, and `classifier.task` what its logits mean; `ig_steps`, of --ig_steps.

    Args:
      name: for --saliency.
      source: the paper or site it follows.
      title: what people call it, on the pictures and the page.
    """
    return _registry("saliency").register(name, source=source, title=title)


def export_form(
    name: str, *, file: str, source: str = "", require: Callable[[], None] | None = None
) -> Decorator:
    """Registers what writes a model, an `export.models.Form`.

    Offered: `file`, the path to write; `exporting`, an `export.models.Exporting` with `network()`, pixels to
    probabilities, `about` and `pictures`. Files that end in .tflite or .onnx, and SavedModels, are checked
    as ours are; others are not.

    Args:
      name: for --formats.
      file: name of the file or folder.
      source: the paper or site it follows.
      require: raises UsageError where something is not installed.
    """
    return _registry("export_form").register(name, source=source, file=file, require=require)
