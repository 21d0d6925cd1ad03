"""Callbacks that write, save and evaluate nowhere, and remember that they were asked to."""

from tests.loop.toys import dataset_of, plan_of, random_batches, run_of
from trainer.loop import callbacks, standard_callbacks
from trainer.loop.best_and_stop import Best
from trainer.loop.loop import train
from trainer.loop.standard_callbacks import Guard
from trainer.values import Duration

TWO_PHASES = ("name=a; for=4steps; train=head; lr=0.1", "name=b; for=6steps; train=head; lr=0.2")


def every(text, plan=None):
    return callbacks.Every(Duration.parse(text), plan or plan_of(*TWO_PHASES), num_examples=4, batch_size=4)


class Recorder:
    """Writer, progress, saver and evaluator in one; keeps what it was asked for, in order."""

    def __init__(self, scores=()):
        self.events, self.scores = [], list(scores)

    def scalars(self, split, step, values, timing=None):
        self.events.append((f"write {split}", step))
        self.written = (values, timing)

    def at(self, step, train):
        self.events.append(("progress", step))

    def evaluated(self, step, validation):
        self.events.append(("told", step))

    def save(self, state):
        self.events.append(("save", state.step))

    def save_best(self, state):
        self.events.append(("save best", state.step))
        self.best = {name: float(v) for name, v in state.best.items()}

    def evaluate(self):
        self.events.append(("evaluate", None))
        return self.scores.pop(0) if self.scores else {"accuracy": 0.5, "loss": 1.0}


class Visits(callbacks.Callback):
    """Where the loop came back to the callbacks, and what `look` saw there."""

    def __init__(self, *due, look=lambda state: None):
        self.due, self.steps, self.seen, self._look = due, [], [], look

    def next_due(self, step):
        return min((at for at in self.due if at > step), default=2**62)

    def __call__(self, state):
        self.steps.append(state.step)
        self.seen.append(self._look(state))


def all_callbacks(recorder, plan, *, log="3steps", save="5steps", evaluate="5steps", requested=lambda: False):
    best = Best(save_best=recorder.save_best)
    told = {"writer": recorder, "progress": recorder}
    return [
        Guard(examples=lambda step: []),
        standard_callbacks.Log(every(log, plan), **told),
        standard_callbacks.Save(every(save, plan), save=recorder.save),
        standard_callbacks.Evaluate(every(evaluate, plan), evaluate=recorder.evaluate, then=[best], **told),
        best,
        # A clock that stands still lets Stop ask for one step, then ten times as many.
        standard_callbacks.Stop(requested=requested, save=recorder.save, clock=lambda: 0.0),
    ]


def run_loop(state, callback_list, *, batches=None, on_phase=lambda state: None, **options):
    batches = batches or random_batches(state.plan.total_steps)

    def dataset(phase, step):
        return dataset_of(*batches[step : phase.stop_step])

    train(
        state,
        batches=dataset,
        make_run=lambda state, phase: run_of(state, **options),
        callbacks=callback_list,
        on_phase=on_phase,
    )
