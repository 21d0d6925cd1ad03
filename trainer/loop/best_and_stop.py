"""Callbacks that go by evaluations: the best weights, the learning rate, the end of a phase."""

import math
from collections.abc import Callable, Mapping

from trainer.loop.callbacks import Callback
from trainer.loop.state import TrainState


class Judge(Callback):
    """Acts on the numbers of an evaluation that has just been made; when one is made again, again."""

    _offered: Mapping[str, float] | None = None

    def offer(self, values: Mapping[str, float]) -> None:
        """Takes the numbers."""
        self._offered = values

    def __call__(self, state: TrainState) -> None:
        values, self._offered = self._offered, None
        if values is not None:
            self.judge(state, values)

    def judge(self, state: TrainState, values: Mapping[str, float]) -> None:
        raise NotImplementedError

    def resume(self, state: TrainState) -> None:
        self(state)


class Best(Judge):
    """Keeps the state that the task calls best on validation; among equals, that with the lowest loss."""

    def __init__(self, *, save_best: Callable[[TrainState], None]):
        self._save_best = save_best

    def judge(self, state: TrainState, values: Mapping[str, float]) -> None:
        best = {name: float(variable.numpy()) for name, variable in state.best.items()}
        loss = values["loss"] if math.isfinite(values["loss"]) else math.inf
        metric = state.classifier.task.best
        if (values[metric], -loss) > (best[metric], -best["loss"]):
            state.best[metric].assign(values[metric])
            state.best["loss"].assign(loss)
            state.best["step"].assign(state.step)
            self._save_best(state)


class Plateau(Judge):
    """Lowers the learning rate of a phase that asks for it when the validation loss falls no more."""

    def __init__(self, *, say: Callable[[str], None]):
        self._say = say

    def __call__(self, state: TrainState) -> None:
        if state.step == state.phase.start_step:
            # Only now, when Log and Save of the phase before are done; its last evaluation says nothing here.
            self._offered = None
            state.forget_standstill()
        super().__call__(state)

    def judge(self, state: TrainState, values: Mapping[str, float]) -> None:
        rule = state.phase.plateau
        if rule is None or not state.plateau.offer(values, step=state.step, metric="loss"):
            return
        if int(state.plateau.count.numpy()) < rule.patience:
            return
        state.plateau.count.assign(0)
        state.lr_factor.assign(state.lr_factor * rule.factor)
        rate = state.phase.learning_rate(state.step) * float(state.lr_factor.numpy())
        self._say(
            f"step {state.step:,}: the validation loss has not fallen in {rule.patience} evaluations; "
            f"learning rate {rate:.3g}"
        )


class EarlyStop(Judge):
    """Ends a phase whose measure of the validation split gets no better."""

    def __init__(
        self,
        metric: str,
        *,
        patience: int,
        min_change: float,
        save: Callable[[TrainState], None],
        say: Callable[[str], None],
    ):
        """Notes what to go by.

        Args:
          metric: one of those that the task has `watched`.
          patience: evaluations without change for the better.
          min_change: the smallest change that counts.
          save: keeps the state as it is before the rest of the phase is left out.
          say: tells the user.
        """
        self._metric, self._patience, self._min_change = metric, patience, min_change
        self._save, self._say = save, say

    def __call__(self, state: TrainState) -> None:
        if state.step == state.phase.start_step:
            self._offered = None
        super().__call__(state)

    def judge(self, state: TrainState, values: Mapping[str, float]) -> None:
        state.early.offer(values, step=state.step, metric=self._metric, min_change=self._min_change)
        waited = int(state.early.count.numpy())
        if waited < self._patience or state.step == state.phase.stop_step:
            return
        self._save(state)
        self._say(
            f"step {state.step:,}: validation {self._metric} has been no better for {waited} evaluations; "
            f"phase {state.phase.spec.name} ends here, {state.phase.stop_step - state.step:,} steps early"
        )
        state.end_phase()
