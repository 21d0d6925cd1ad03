"""The training loop. Time passes only here."""

from collections.abc import Callable, Sequence

import tensorflow as tf

from trainer.loop.callbacks import Callback, next_due
from trainer.loop.phases import Phase
from trainer.loop.state import TrainState
from trainer.loop.step import Run
from trainer.loop.stopwatch import timed


def train(
    state: TrainState,
    *,
    batches: Callable[[Phase, int], tf.data.Dataset],
    make_run: Callable[[TrainState, Phase], Run],
    callbacks: Sequence[Callback],
    on_phase: Callable[[TrainState], None] = lambda state: None,
) -> None:
    """Trains from the state's step to the end of its plan.

    Args:
      state: where to start; changed in place.
      batches: (phase, first step) -> dataset of batches from that step to the end of the phase.
      make_run: makes the function that does updates, anew for each phase.
      callbacks: what happens between updates, in this order.
      on_phase: told of each phase before its first update.

    Raises:
      Interrupted: a callback ended the run after saving.
      TrainerError: a callback found the state unfit to go on with.
    """
    running: Phase | None = None
    for callback in callbacks:
        callback.resume(state)
    while (step := state.step) < state.plan.total_steps:
        phase = state.phase
        if phase is not running:
            running, run = phase, make_run(state, phase)
            iterator = iter(batches(phase, step))
            on_phase(state)
            run(iterator, tf.constant(1))  # Untimed: it traces and compiles.
        else:
            # All updates up to the next moment at which something is due are one call.
            stop = min(phase.stop_step, *(next_due(callback, step) for callback in callbacks))
            timed(run, state, iterator, stop - step)
        if state.step == phase.stop_step < state.plan.total_steps:
            # Before the callbacks, so that what they save starts the next phase.
            state.enter(state.plan.phase_at(state.step))
        for callback in callbacks:
            callback(state)
