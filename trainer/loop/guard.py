"""The first callback: numbers that nobody can go on with end the run before anything is saved from them."""

import math
from collections.abc import Callable, Sequence

from trainer.loop.callbacks import Callback
from trainer.loop.state import TrainState
from trainer.values import TrainerError

EXAMPLES_SHOWN = 64


class NonFinite(TrainerError):
    """An update made numbers that nobody can go on with; nothing was saved from there.

    `step` is the number of updates before it, `examples` the ids of its batch.
    """

    def __init__(self, what: str, state: TrainState, *, step: int, examples: Sequence[str]):
        self.what, self.step, self.examples = what, step, list(examples)
        phase = state.plan.phase_at(step)
        self.phase, self.learning_rate = phase.spec.name, phase.learning_rate(step)
        shown = ", ".join(self.examples[:EXAMPLES_SHOWN])
        more = len(self.examples) - EXAMPLES_SHOWN
        super().__init__(
            f"{what} at step {step} (phase {self.phase}, learning rate {self.learning_rate:g}); nothing was "
            f"saved from there. The batch: {shown}{f' and {more} more' if more > 0 else ''}. A lower "
            "learning rate or a warm-up may help; --on_nonfinite=rollback goes on without that batch"
        )


class Guard(Callback):
    """Stops a run whose numbers have become unfit to go on with, before anything is saved from it.

    Never due by itself: a call for many updates ends where something is wrong.
    """

    def __init__(
        self,
        *,
        examples: Callable[[int], Sequence[str]],
        max_loss: float = math.inf,
    ):
        """Notes what to tell.

        Args:
          examples: step -> ids of the batch of the update to step + 1.
          max_loss: what the step functions of this run take for too much.
        """
        self._examples, self._max_loss = examples, max_loss

    def __call__(self, state: TrainState) -> None:
        if what := state.unfit.describe(max_loss=self._max_loss):
            step = int(state.unfit.step.numpy())
            raise NonFinite(what, state, step=step, examples=self._examples(step))

    def check_weights(self, state: TrainState) -> None:
        """Makes sure that what is about to be saved is finite; the last update may have ruined it."""
        if name := state.find_nonfinite():
            step = state.step - 1
            what = f"{name} is not finite after the update"
            raise NonFinite(what, state, step=step, examples=self._examples(step))
