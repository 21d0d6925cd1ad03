"""`train --extend`: goes on with a run under a longer plan, as if it had been its plan from the start."""

import dataclasses
import logging
import shlex
from collections.abc import Callable, Sequence
from typing import Any

from trainer.cli.config import Config
from trainer.cli.phase_specs import is_auto
from trainer.loop.callbacks import Every
from trainer.loop.extension import first_other_step, why_other_updates
from trainer.loop.phases import make_plan
from trainer.record.checkpoints import Checkpoints
from trainer.record.workdir import Workdir
from trainer.run.experiment import Experiment
from trainer.values import Duration, TrainerError

_log = logging.getLogger("trainer")


def extend(experiment: Experiment, workdir: Workdir, checkpoints: Checkpoints) -> dict[str, Any] | None:
    """Makes the newest checkpoint one that the longer plan, too, would have left.

    What a plan does only because it ends, such as a last line of the log, belongs to no longer plan: the run
    then goes back to an earlier checkpoint.

    Args:
      experiment: with the longer plan.
      workdir: of a run that differs from it in the lengths of phases only.
      checkpoints: of that run.

    Returns:
      What is to be recorded of it; None: the plan is the one that the run has.

    Raises:
      TrainerError: the updates so far are others under the longer plan; the message says why.
    """
    latest = checkpoints.latest()
    if latest is None or not workdir.run_json.exists():
        return None
    recorded, config = workdir.read_config(), experiment.config
    same_names = {name: recorded.flat()[name] for name in Config.naming()}
    asked = experiment.asked
    left_to_pictures = is_auto(asked.plan) or asked.is_recommended
    if recorded.identity() == asked.identity(**same_names) or left_to_pictures:
        return None
    num_examples = len(experiment.splits.indices["train"])
    batch_size = config.plan.batch_size
    old = make_plan(recorded.phases, num_examples=num_examples, batch_size=batch_size)
    new, reached = experiment.plan, checkpoints.step_of(latest)
    if why := why_other_updates(old, new, step=reached):
        raise _refusal(workdir, why)

    def both(text: str) -> tuple[Every, Every]:
        every = Duration.parse(text)
        before, after = (
            Every(every, plan, num_examples=num_examples, batch_size=batch_size) for plan in (old, new)
        )
        return before, after

    step, why = _same_until(recorded, checkpoints.whole_steps(), both, end=old.total_steps)
    if step is None:
        raise _refusal(workdir, why)
    best = _best_of_both(checkpoints, step, evaluated=both(recorded.run.evaluate_every)[1])
    if best is None:
        at = checkpoints.best_steps()[-1]
        why = f"the best weights are of step {at:,}, which the longer plan does not evaluate"
        raise _refusal(workdir, why)
    if why:
        told = "goes back to" if step < reached else "goes on from"
        _log.info("--extend: %s; %s step %s", why, told, f"{step:,}")
    checkpoints.go_back(step)
    if best:
        checkpoints.keep_best(best)
    _log.info("extended from %s to %s steps", f"{old.total_steps:,}", f"{new.total_steps:,}")
    return {"step": step, "total_steps": [old.total_steps, new.total_steps]}


def may_grow(workdir: Workdir) -> bool:
    """Returns whether --extend can go on with a finished run: no update of it depends on how long it is."""
    config = workdir.read_config()
    if is_auto(config.plan) or config.is_recommended or config.fits:
        return False
    *before, last = config.phases
    longer = dataclasses.replace(
        last, duration=dataclasses.replace(last.duration, amount=2 * last.duration.amount)
    )
    num_examples, batch_size = len(workdir.read_splits()["train"]), config.plan.batch_size
    old, new = (
        make_plan(phases, num_examples=num_examples, batch_size=batch_size)
        for phases in (config.phases, [*before, longer])
    )
    return not why_other_updates(old, new, step=old.total_steps)


def _best_of_both(checkpoints: Checkpoints, step: int, *, evaluated: Every) -> list[int] | None:
    """Returns the steps of the best checkpoints that the longer plan, too, may have.

    None where the one is lost that is the best at `step`. Empty where there is none at that step: the next
    evaluation then takes the place of whatever is there.
    """
    found = [at for at in checkpoints.best_steps() if at < step or evaluated.now(at)]
    known = int(checkpoints.values(checkpoints.find(str(step)))["best/step"])
    if known < 0 or (found and found[-1] >= known):
        return found
    return None


def _refusal(workdir: Workdir, why: str) -> TrainerError:
    return TrainerError(
        f"--extend cannot go on with {workdir.root}: {why}. Choose another --workdir; "
        f"{shlex.quote(f'--init_from={workdir.root}')} begins with the weights of this run"
    )


def _same_until(
    recorded: Config, steps: Sequence[int], both: Callable[[str], tuple[Every, Every]], *, end: int
) -> tuple[int | None, str]:
    """Returns the newest step whose checkpoint is the same under both plans, and why no newer one is.

    Where there is none, one will do that differs in what was logged or drawn alone, and in no weight.

    Args:
      recorded: what the run was started with.
      steps: of the checkpoints, the newest last.
      both: text of a duration -> when it is due under the shorter plan and under the longer one.
      end: the last step of the shorter plan.
    """
    run = recorded.run
    # What comes after Save at a step is made again when the run goes on from there.
    evaluations = [("evaluated", run.evaluate_every, 1)]
    logs = [
        ("drawn", run.figures_every, 1),
        ("logged", run.log_every, 0),
        ("described by histograms", run.histograms_every, 0),
    ]
    why = ""
    for due in (evaluations + logs, evaluations):
        for step in reversed(steps):
            found = [
                (at, what)
                for what, text, after_save in due
                if text and (at := first_other_step(*both(text), step=step - after_save)) is not None
            ]
            if not found:
                return step, why
            at, what = min(found)
            reason = "only because the run ended there" if at == end else "in only one of the two plans"
            why = why or f"step {at:,} is {what} {reason}"
    return None, why
