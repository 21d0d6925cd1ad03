"""Everything a run is at one moment: exactly what a checkpoint holds.

The scale of the loss in float16 is after Micikevicius et al., 2018 (arXiv 1710.03740), with the constants of
tf_keras's LossScaleOptimizer, whose scale is no public variable and could not be part of a strict checkpoint.
"""

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager

import tensorflow as tf
import tf_keras

from trainer.loop.averages import Shadows
from trainer.loop.gradient_rules import GradientRule, Slots, make_slots, plain
from trainer.loop.metrics import Means, make_metrics, require_names
from trainer.loop.objectives import variables_of
from trainer.loop.optimizers import make_optimizer, multipliers
from trainer.loop.phases import Phase, Plan
from trainer.loop.stopwatch import Stopwatch
from trainer.model.classifier import Classifier
from trainer.model.freezing import trained


class Standstill:
    """The best value of a phase so far, and how many evaluations have passed since.

    Part of the state of a run: a checkpoint holds it.
    """

    def __init__(self, name: str) -> None:
        # float64, so that what is compared after a restore is what was measured.
        self.best = tf.Variable(-math.inf, trainable=False, dtype=tf.float64, name=f"{name}_best")
        self.count = tf.Variable(0, trainable=False, dtype=tf.int64, name=f"{name}_count")
        self.step = tf.Variable(-1, trainable=False, dtype=tf.int64, name=f"{name}_step")

    def variables(self) -> dict[str, tf.Variable]:
        return {"best": self.best, "count": self.count, "step": self.step}

    def reset(self) -> None:
        self.best.assign(-math.inf)
        self.count.assign(0)
        self.step.assign(-1)

    def offer(self, values: Mapping[str, float], *, step: int, metric: str, min_change: float = 0.0) -> bool:
        """Takes the numbers of an evaluation; `count` then says how many there were since the best.

        Args:
          values: {measure: value}.
          step: of the evaluation. One that is made again after a restart counts once.
          metric: which measure; a loss is the better the lower it is. No number is never better.
          min_change: a change for the better counts if it is larger than this.

        Returns:
          Whether it was new.
        """
        if step <= int(self.step.numpy()):
            return False
        self.step.assign(step)
        # Of logits that are not finite there is, for example, no area under a curve.
        measured = values.get(metric, math.nan)
        value = -measured if metric == "loss" else measured
        if value > float(self.best.numpy()) + min_change:
            self.best.assign(value)
            self.count.assign(0)
        else:
            self.count.assign_add(1)
        return True


INITIAL_SCALE = 2.0**15
GOOD_STEPS_TO_DOUBLE = 2000
LARGEST_SCALE = 2.0**127  # Twice that is infinite, and so would be half of it for ever.


class LossScale:
    """What a loss is multiplied with before, and gradients divided by after they are computed.

    It halves when a gradient is not finite, and that update is left out; it doubles after 2,000 updates
    in a row that were good. It never falls below 1.
    """

    def __init__(self) -> None:
        self.scale = tf.Variable(INITIAL_SCALE, trainable=False, name="loss_scale")
        self.good_steps = tf.Variable(0, trainable=False, dtype=tf.int64, name="good_steps")

    def variables(self) -> dict[str, tf.Variable]:
        return {"scale": self.scale, "good_steps": self.good_steps}

    def note(self, finite: tf.Tensor) -> None:
        """Moves the scale after an update, [] bool saying whether its gradients were finite."""
        good = tf.where(finite, self.good_steps + 1, 0)
        doubles = good >= GOOD_STEPS_TO_DOUBLE
        halved = tf.maximum(self.scale / 2.0, 1.0)
        doubled = tf.minimum(self.scale * 2.0, LARGEST_SCALE)
        self.scale.assign(tf.where(finite, tf.where(doubles, doubled, self.scale), halved))
        self.good_steps.assign(tf.where(doubles, tf.zeros_like(good), good))


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

    def describe(self, *, max_loss: float) -> str:
        """Returns what is wrong with the numbers of that update; empty as long as there is none.

        Args:
          max_loss: what the step functions took for too much.
        """
        if int(self.step.numpy()) < 0:
            return ""
        loss, norm = float(self.loss.numpy()), float(self.gradient_norm.numpy())
        if not math.isfinite(loss):
            return f"the loss is not finite ({loss:g})"
        if not math.isfinite(norm):
            return f"the gradient is not finite (norm {norm:g})"
        return f"the loss of {loss:g} is above --max_loss={max_loss:g}"

    def note(self, *, step: tf.Tensor, loss: tf.Tensor, gradient_norm: tf.Tensor) -> None:
        self.step.assign(step)
        self.loss.assign(loss)
        self.gradient_norm.assign(gradient_norm)


class TrainState:
    """Step, model, the current phase's optimizer and averages, metrics since the last log, the best so far.

    The optimizer is always that of the phase of the *next* update: at the last step of a phase
    the state has moved on, so a checkpoint made there starts the next phase fresh.
    """

    phase: Phase
    optimizer: tf_keras.optimizers.Optimizer
    trained: dict[str, tf.Variable]
    slots: Slots
    """What the gradient rule keeps of the variables that train."""
    shadows: Shadows | None
    """Averages of the weights that the phase changes, if it asks for them."""

    def __init__(
        self,
        classifier: Classifier,
        plan: Plan,
        *,
        lr_rules: Sequence[str] = (),
        layer_decay: float = 1.0,
        metrics: Iterable[str] | None = None,
        objective: Mapping[str, tf.Variable] = {},
        gradient_rule: GradientRule | None = None,
    ):
        """Starts at step 0.

        Args:
          classifier: whose weights these are.
          plan: the phases.
          lr_rules: 'REGEX=FACTOR' on the learning rate.
          layer_decay: see `multipliers`.
          metrics: names of what is measured of the training examples besides the loss; None: the task's own.
          objective: {name: variable} of what the objective keeps; those that are trainable are trained.
          gradient_rule: which may keep variables, too; None: the plain one.

        Raises:
          UsageError: two metrics have one name, or one has that of something that is told anyway.
        """
        self.classifier, self.plan = classifier, plan
        self._lr_rules, self._layer_decay = lr_rules, layer_decay
        self._step = tf.Variable(0, trainable=False, dtype=tf.int64, name="step")
        task = classifier.task
        names = make_metrics("", task=task) if metrics is None else metrics
        self.metrics = Means(["loss", *require_names(names), "gradient_norm"])
        self.objective, self._gradient_rule = dict(objective), gradient_rule or plain()
        self.unfit = Unfit()
        # Held always, so that checkpoints look the same under all options: see `loss_scaling`, `callbacks`.
        self.loss_scale = LossScale()
        self.lr_factor = tf.Variable(1.0, trainable=False, name="lr_factor")
        self.plateau, self.early = Standstill("plateau"), Standstill("early")
        # float64, so that what is compared after a restore is what was measured.
        self.best = {
            name: tf.Variable(value, trainable=False, dtype=tf.float64, name=f"best_{name}")
            for name, value in ((task.best, -math.inf), ("loss", math.inf), ("step", -1.0))
        }
        self.stopwatch = Stopwatch()
        self._cut_short_at = -1
        self._take_up(plan.phase_at(0))

    @property
    def step(self) -> int:
        """Number of updates so far."""
        return int(self._step.numpy())

    @property
    def is_cut_short(self) -> bool:
        """Whether a phase has just ended early: no update has come to this step, and a run is not saved here.

        It goes on from the step at which the phase was ended, whose evaluation then ends it again.
        """
        return self.step == self._cut_short_at

    @property
    def step_variable(self) -> tf.Variable:
        return self._step

    def enter(self, phase: Phase) -> None:
        """Begins a phase after another: with the averages of that one, and a fresh optimizer."""
        if self.shadows:
            self.shadows.commit()
        self._take_up(phase)

    def jump(self, step: int) -> None:
        """Takes up the phase of `step`, so that a checkpoint of that step fits."""
        self._step.assign(step)
        self._cut_short_at = -1
        self._take_up(self.plan.phase_at(step))

    def end_phase(self) -> None:
        """Goes to the end of the current phase without the updates that are left of it."""
        self._step.assign(self.phase.stop_step)
        self._cut_short_at = self.phase.stop_step
        self.metrics.reset()
        self.forget_standstill()
        if self.phase is not self.plan.phases[-1]:
            self.enter(self.plan.phase_at(self.step))

    def forget_standstill(self) -> None:
        """Begins to count evaluations anew, at the rate that the schedule says."""
        self.plateau.reset()
        self.early.reset()
        self.lr_factor.assign(1.0)

    def _take_up(self, phase: Phase) -> None:
        self.phase = phase
        rows = self.classifier.freezing_table(phase.spec.train)
        named = self.classifier.named_variables
        own = {f"objective/{name}": v for name, v in self.objective.items() if v.trainable}
        self.trained = trained(named, rows) | own
        self.multipliers = multipliers(
            list(self.trained),
            all_names=[*named, *own],
            rules=self._lr_rules,
            layer_decay=self._layer_decay,
            layers=self.classifier.named_layers,
        )
        self.optimizer = make_optimizer(
            phase,
            self.trained,
            multipliers=self.multipliers,
            factor=self.lr_factor if phase.plateau else None,
            step=self._step,
        )
        self.slots = make_slots(self._gradient_rule, list(self.trained.values()))
        constant = self.constant()
        changed = {name: v for name, v in named.items() if f"model/{name}" not in constant}
        self.shadows = Shadows(phase.average, changed) if phase.average else None

    def of_gradient_rule(self) -> dict[str, tf.Variable]:
        """Returns {name: variable} of all that the gradient rule keeps."""
        kept = {
            f"{name}/{of}": v
            for name, slots in self.slots.items()
            for of, v in zip(self.trained, slots, strict=True)
        }
        return variables_of(self._gradient_rule) | kept

    def learning_rate(self) -> float:
        """Returns the rate of the last update, before multipliers."""
        phase = self.plan.phase_at(self.step - 1)
        return phase.learning_rate(self.step - 1) * (float(self.lr_factor.numpy()) if phase.plateau else 1.0)

    def averaged(self) -> AbstractContextManager[None]:
        """Has the model compute with the averaged weights in a block, where the phase averages them."""
        return self.shadows.swapped() if self.shadows else contextlib.nullcontext()

    def constant(self) -> dict[str, tf.Variable]:
        """Returns the part of `variables` that no update of the current phase changes."""
        moves = self.phase.spec.bn == "batch"
        return {
            f"model/{name}": variable
            for name, variable in self.classifier.named_variables.items()
            if name not in self.trained and (variable.trainable or not moves)
        }

    def find_nonfinite(self) -> str:
        """Returns the name of a variable that updates change and that is not finite; empty: there is none."""
        constant = self.constant()
        for name, variable in self.variables().items():
            # The best is infinitely bad before there is one.
            passed = name in constant or name.startswith(("best/", "plateau/", "early/"))
            if variable.dtype.is_floating and not passed and not tf.reduce_all(tf.math.is_finite(variable)):
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
        return {
            "step": self._step,
            **{f"model/{name}": v for name, v in self.classifier.named_variables.items()},
            **{f"objective/{name}": v for name, v in self.objective.items()},
            **{f"gradient_rule/{name}": v for name, v in self.of_gradient_rule().items()},
            **slots,
            **{f"metrics/{name}": v for name, v in self.metrics.variables().items()},
            **(
                {f"average/{name}": v for name, v in self.shadows.variables().items()} if self.shadows else {}
            ),
            "lr_factor": self.lr_factor,
            **{f"plateau/{name}": v for name, v in self.plateau.variables().items()},
            **{f"early/{name}": v for name, v in self.early.variables().items()},
            **{f"loss_scale/{name}": v for name, v in self.loss_scale.variables().items()},
            **{f"best/{name}": v for name, v in self.best.items()},
        }


def _name(variable: tf.Variable) -> str:
    return variable.name.split(":")[0]
