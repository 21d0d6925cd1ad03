"""What labels mean: one file for each kind of label, and `Task`, what all of them answer.

Here, and nowhere else but in what scores and reports, stands how logits become probabilities and how these
become predictions. A task needs TensorFlow, NumPy and `metrics`; sources, networks, the loop, reports and
exports ask it, and it knows none of them.
"""

from typing import get_type_hints

from trainer.registry import Registry
from trainer.tasks.base import Loss, Task
from trainer.tasks.multi_label import MultiLabel
from trainer.tasks.single_label import OneClass, SingleLabel
from trainer.values import UsageError

__all__ = ["SINGLE_LABEL", "TASKS", "Loss", "MultiLabel", "OneClass", "Task", "make_task"]

TASKS: Registry[Task] = Registry("task", flag="--task")
TASKS.register("single_label")(SingleLabel)
TASKS.register("multi_label")(MultiLabel)
SINGLE_LABEL = SingleLabel()
"""What there was before there was --task, for whoever names none."""


def make_task(text: str) -> Task:
    """Returns the task that a text such as `single_label` names.

    Raises:
      UsageError: there is no such task, or it leaves something unsaid that will be asked.
    """
    choice = TASKS.choose(text)
    made = choice.entry.make
    unsaid = {*getattr(made, "__abstractmethods__", ())}
    unsaid |= (
        {name for name in get_type_hints(Task) if not hasattr(made, name)}
        if isinstance(made, type)
        else set()
    )
    if unsaid:
        raise UsageError(f"--task={text} does not say {', '.join(sorted(unsaid))}, which each task must")
    return choice()
