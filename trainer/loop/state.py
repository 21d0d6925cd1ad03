"""Everything a run is at one moment: exactly what a checkpoint holds."""

import math
from dataclasses import dataclass

import tensorflow as tf
import tf_keras

from trainer.loop.loss_scaling import LossScale
from trainer.loop.optimizers import make_optimizer
from trainer.loop.phases import Phase, Plan
from trainer.model.classifier import Classifier
from trainer.model.freezing import freezing_table, trained


class Metrics:
    """Sums and counts since the last reset; divided once, when they are read."""

    def __init__(self) -> None:
        self.loss = tf_keras.metrics.Mean(name="loss")
        self.accuracy = tf_keras.metrics.Accuracy(name="accuracy")

    def update(self, *, losses: tf.Tensor, logits: tf.Tensor, labels: tf.Tensor, mask: tf.Tensor) -> None:
        """Adds a batch: losses [B], logits [B, K], labels [B], mask [B] with 0 for padding."""
        self.loss.update_state(losses, sample_weight=mask)
        self.accuracy.update_state(labels, tf.argmax(logits, axis=-1), sample_weight=mask)

    def read(self) -> dict[str, float]:
        return {"loss": float(self.loss.result()), "accuracy": float(self.accuracy.result())}

    def reset(self) -> None:
        self.loss.reset_state()
        self.accuracy.reset_state()

    def variables(self) -> dict[str, tf.Variable]:
        return {
            f"{metric.name}/{name}": getattr(metric, name)
            for metric in (self.loss, self.accuracy)
            for name in ("total", "count")
        }


@dataclass
class Stopwatch:
    """Time since the last log. Not part of the state: no number of a run depends on it."""

    seconds: float = 0.0
    waiting_secs: float = 0.0
    num_steps: int = 0

    def add(self, *, seconds: float, waiting_secs: float, num_steps: int) -> None:
        self.seconds += seconds
        self.waiting_secs += waiting_secs
        self.num_steps += num_steps


class Unfit:
    """The first update that nobody can go on from; no part of a checkpoint, as none is made of it.

    `step` is the number of updates before it, -1 as long as there is none.
    """

    def __init__(self) -> None:
        self.step = tf.Variable(-1, trainable=False, dtype=tf.int64, name="unfit_step")
        self.loss = tf.Variable(0.0, trainable=False, name="unfit_loss")
        self.gradient_norm = tf.Variable(0.0, trainable=False, name="unfit_gradient_norm")

    def variables(self) -> list[tf.Variable]:
        return [self.step, self.loss, self.gradient_norm]

    def note(self, *, step: tf.Tensor, loss: tf.Tensor, gradient_norm: tf.Tensor) -> None:
        self.step.assign(step)
        self.loss.assign(loss)
        self.gradient_norm.assign(gradient_norm)


class TrainState:
    """Step, model, the current phase's optimizer, metrics since the last log, and the best so far.

    The optimizer is always that of the phase of the *next* update: at the last step of a phase
    the state has moved on, so a checkpoint made there starts the next phase fresh.
    """

    phase: Phase
    optimizer: tf_keras.optimizers.Optimizer
    trained: dict[str, tf.Variable]

    def __init__(self, classifier: Classifier, plan: Plan):
        self.classifier, self.plan = classifier, plan
        self._step = tf.Variable(0, trainable=False, dtype=tf.int64, name="step")
        self.metrics = Metrics()
        self.gradient_norm = tf_keras.metrics.Mean(name="gradient_norm")
        self.unfit = Unfit()
        # Held always, so that checkpoints look the same in every arithmetic; see `loss_scaling`.
        self.loss_scale = LossScale()
        # float64, so that what is compared after a restore is what was measured.
        self.best = {
            name: tf.Variable(value, trainable=False, dtype=tf.float64, name=f"best_{name}")
            for name, value in (("accuracy", -math.inf), ("loss", math.inf), ("step", -1.0))
        }
        self.stopwatch = Stopwatch()
        self.enter(plan.phase_at(0))

    @property
    def step(self) -> int:
        """Number of updates so far."""
        return int(self._step.numpy())

    @property
    def step_variable(self) -> tf.Variable:
        return self._step

    def enter(self, phase: Phase) -> None:
        """Takes up a phase: what trains, and a fresh optimizer for it."""
        names = self.classifier.named_variables
        self.phase = phase
        self.trained = trained(names, freezing_table(names, phase.spec.train))
        self.optimizer = make_optimizer(phase, list(self.trained.values()))

    def jump(self, step: int) -> None:
        """Takes up the phase of `step`, so that a checkpoint of that step fits."""
        self._step.assign(step)
        self.enter(self.plan.phase_at(step))

    def constant(self) -> dict[str, tf.Variable]:
        """Returns the part of `variables` that no update of the current phase changes."""
        moves = self.phase.spec.bn == "batch"
        return {
            f"model/{name}": variable
            for name, variable in self.classifier.named_variables.items()
            if name not in self.trained and (variable.trainable or not moves)
        }

    def find_nonfinite(self) -> str:
        """Returns the name of a variable of the run that is not finite; empty: there is none."""
        for name, variable in self.variables().items():
            # The best is infinitely bad before there is one.
            checked = variable.dtype.is_floating and not name.startswith("best/")
            if checked and not tf.reduce_all(tf.math.is_finite(variable)):
                return name
        return ""

    def variables(self) -> dict[str, tf.Variable]:
        """Returns {lasting name: variable}, all that a checkpoint holds."""
        # Keras numbers networks through a process: a slot is called by the lasting name of what it is of.
        lasting = {_name(variable): name for name, variable in self.trained.items()}
        slots = {}
        for i, slot in enumerate(self.optimizer.variables):
            role, _, of = _name(slot).partition("/")
            slots[f"optimizer/{i:04d}/{role}/{lasting.get(of, of)}".rstrip("/")] = slot
        metrics = self.metrics.variables() | {
            "gradient_norm/total": self.gradient_norm.total,
            "gradient_norm/count": self.gradient_norm.count,
        }
        return {
            "step": self._step,
            **{f"model/{name}": v for name, v in self.classifier.named_variables.items()},
            **slots,
            **{f"metrics/{name}": v for name, v in metrics.items()},
            **{f"loss_scale/{name}": v for name, v in self.loss_scale.variables().items()},
            **{f"best/{name}": v for name, v in self.best.items()},
        }


def _name(variable: tf.Variable) -> str:
    return variable.name.split(":")[0]
