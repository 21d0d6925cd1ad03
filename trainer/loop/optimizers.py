"""Update rules, and the factors on the learning rates of single variables.

tf_keras has no LAMB.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras

from trainer.cli.phase_specs import PhaseSpec
from trainer.loop.phases import Phase, PhaseSchedule
from trainer.model.layers import Layer
from trainer.registry import Choice, Registry
from trainer.values import UsageError, as_number, turned

NUM_GROUPS = 12
"""Groups of layers that --layer_decay makes of a network."""


def check_rules(rules: Sequence[str]) -> None:
    """Makes sure that texts of --lr_multiplier can be read, before there is a network to match them with.

    Raises:
      UsageError: one is not REGEX=FACTOR.
    """
    for rule in rules:
        _parse(rule)


def multipliers(
    names: Sequence[str],
    *,
    all_names: Sequence[str],
    rules: Sequence[str],
    layer_decay: float,
    layers: Sequence[Layer],
) -> dict[str, float]:
    """Returns {name: factor on its learning rate}, the product of what both options say.

    Args:
      names: variables that train.
      all_names: all variables of the model, one of which each rule must match.
      rules: 'REGEX=FACTOR', matched from the start of a name; the first that matches counts, and where
        none does the factor is 1.
      layer_decay: see `depth_multipliers`; 1 for none.
      layers: of the model, in order of depth.

    Raises:
      UsageError: a rule cannot be read or matches nothing, or there is no depth to go by.
    """
    parsed = {rule: _parse(rule) for rule in rules}
    for rule, (pattern, _) in parsed.items():
        if not any(map(pattern.match, all_names)):
            raise UsageError(
                f"--lr_multiplier={rule}: matches no variable; names are such as {_some(all_names)}"
            )
    by_depth = depth_multipliers(all_names, layer_decay=layer_decay, layers=layers)
    by_rule = {
        name: next((factor for pattern, factor in parsed.values() if pattern.match(name)), 1.0)
        for name in names
    }
    return {name: factor * by_depth.get(name, 1.0) for name, factor in by_rule.items()}


def depth_multipliers(
    all_names: Sequence[str], *, layer_decay: float, layers: Sequence[Layer]
) -> dict[str, float]:
    """Returns {name: factor} of the backbone's variables: the deeper below the head, the lower.

    Discriminative fine-tuning (Howard & Ruder, 2018, arXiv 1801.06146, section 3.2), in groups of layers as
    in ConvNeXt (Liu et al., 2022, arXiv 2201.03545, appendix A): the layers that have variables make 12
    groups as equal as they can be, or one each where there are fewer than 12. The topmost group gets
    `layer_decay`, each one below it that much of what the one above it gets; the head has 1.

    Args:
      all_names: all variables of the model.
      layer_decay: above 0, at most 1, which is none.
      layers: of the model, in order of depth.

    Raises:
      UsageError: variables of the backbone are in no layer.
    """
    if layer_decay == 1:
        return {}
    backbone = [name for name in all_names if name.startswith("backbone/")]
    grouped = [layer for layer in layers if any(name.startswith("backbone/") for name in layer.variables)]
    if not {name for layer in grouped for name in layer.variables}.issuperset(backbone):
        raise UsageError(
            f"--layer_decay={layer_decay:g}: the order of layers in this network is not recorded, as in all "
            "hub modules; say it by --lr_multiplier=REGEX=FACTOR over variable names, such as "
            f"{_some(backbone)}"
        )
    groups = min(NUM_GROUPS, len(grouped))
    return {
        name: layer_decay ** (groups - i * groups // len(grouped))
        for i, layer in enumerate(grouped)
        for name in layer.variables
    }


def _parse(rule: str) -> tuple[re.Pattern[str], float]:
    # A name may hold a '=', a number cannot.
    regex, equals, number = rule.rpartition("=")
    try:
        factor = as_number(number)
    except ValueError:
        factor = math.nan
    if not equals or not regex.strip() or not (math.isfinite(factor) and factor > 0):
        raise UsageError(
            f"--lr_multiplier={rule}: must be REGEX=FACTOR with a factor above 0, such as backbone/=0.1"
        )
    try:
        return re.compile(regex.strip()), factor
    except re.error as error:
        raise UsageError(f"--lr_multiplier={rule}: {regex} is not a regular expression ({error})") from None


def _some(names: Sequence[str]) -> str:
    return ", ".join((names[0], names[len(names) // 2], names[-1]))


OPTIMIZERS: Registry[tf_keras.optimizers.Optimizer] = Registry("update rule", flag="optimizer")


class _PerVariable(tf_keras.optimizers.Optimizer):
    """Gives each variable a rate and a decay of its own; comes before a rule of tf_keras in a class.

    The rate of a variable is schedule(step) * factor * multiplier. Weight decay is decoupled: before the
    rule's own step a variable loses rate * decay of itself. Vectors and scalars do not, which are biases
    and the gamma and beta of BatchNorm (Goyal et al., 2017, arXiv 1706.02677, section 5.1; He et al., 2018,
    arXiv 1812.01187, section 3.1).
    """

    def __init__(
        self, *, multipliers: Sequence[float], factor: tf.Variable | None, decay: float = 0.0, **rule: Any
    ):
        super().__init__(**rule)
        # Keras's own `weight_decay` stays None: it knows one rate only.
        self._multipliers, self._factor, self._decay = tuple(multipliers), factor, decay
        self._multiplier = 1.0

    @property
    def learning_rate(self) -> tf.Variable | tf.Tensor:
        """The rate of the variable that is being updated; else that of a variable without multiplier."""
        rate = super().learning_rate
        if self._factor is not None:
            rate = rate * self._factor
        return rate if self._multiplier == 1.0 else rate * self._multiplier

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable) -> None:
        # What the rule below reads as its learning rate; updates are written down one after another.
        self._multiplier = self._multipliers[self._index_dict[self._var_key(variable)]]
        try:
            if self._decay and variable.shape.rank > 1:
                rate, decay = (tf.cast(x, variable.dtype) for x in (self.learning_rate, turned(self._decay)))
                variable.assign_sub(variable * decay * rate)
            super().update_step(gradient, variable)
        finally:
            self._multiplier = 1.0


class _FusedAdam(tf_keras.optimizers.Adam):
    """tf_keras's Adam, updated by TensorFlow's one kernel in place of a dozen operations.

    The same numbers up to rounding. The head of the canonical experiment has a million parameters,
    and its update is bound by memory: an epoch over cached features went from 190 to 92 ms.
    """

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable) -> None:
        at = self._index_dict[self._var_key(variable)]
        step = tf.cast(self.iterations + 1, variable.dtype)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[at].handle,
            v=self._velocities[at].handle,
            beta1_power=tf.pow(tf.cast(self.beta_1, variable.dtype), step),
            beta2_power=tf.pow(tf.cast(self.beta_2, variable.dtype), step),
            lr=tf.cast(self.learning_rate, variable.dtype),
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=gradient,
        )


def per_variable(rule: type[tf_keras.optimizers.Optimizer], **options: Any) -> tf_keras.optimizers.Optimizer:
    """Returns an optimizer of a rule, with rates and decay as in `_PerVariable`."""
    return type(rule.__name__, (_PerVariable, rule), {})(**options)


@OPTIMIZERS.register("adam", source="arXiv 1412.6980")
def _adam(*, spec: PhaseSpec, **common: Any) -> tf_keras.optimizers.Optimizer:
    """Adam (Kingma & Ba, 2015, arXiv 1412.6980)."""
    return per_variable(_FusedAdam, **common)


@OPTIMIZERS.register("adamw", source="arXiv 1711.05101", weight_decay=True)
def _adamw(*, spec: PhaseSpec, **common: Any) -> tf_keras.optimizers.Optimizer:
    """Adam with decoupled weight decay (Loshchilov & Hutter, 2019, arXiv 1711.05101)."""
    return per_variable(tf_keras.optimizers.Adam, decay=spec.weight_decay, **common)


@OPTIMIZERS.register(
    "sgd", source="Sutskever et al., 2013, ICML, section 2", weight_decay=True, momentum=True
)
def _sgd(*, spec: PhaseSpec, **common: Any) -> tf_keras.optimizers.Optimizer:
    """Gradient descent with momentum, or with Nesterov's (Sutskever et al., 2013, ICML, section 2)."""
    moves = {"momentum": spec.momentum, "nesterov": spec.nesterov, "decay": spec.weight_decay}
    return per_variable(tf_keras.optimizers.SGD, **moves, **common)


@OPTIMIZERS.register("rmsprop", source="Tieleman & Hinton, 2012")
def _rmsprop(*, spec: PhaseSpec, **common: Any) -> tf_keras.optimizers.Optimizer:
    """RMSprop (Tieleman & Hinton, 2012, lecture 6.5 of Neural Networks for Machine Learning)."""
    return per_variable(tf_keras.optimizers.RMSprop, **common)


@OPTIMIZERS.register("lion", source="arXiv 2302.06675, algorithm 2", weight_decay=True)
def _lion(*, spec: PhaseSpec, **common: Any) -> tf_keras.optimizers.Optimizer:
    """Lion, which goes by the sign of a momentum (Chen et al., 2023, arXiv 2302.06675, algorithm 2).

    Its steps are as long as the learning rate, which wants to be 3 to 10 times lower than for AdamW, and
    the weight decay higher by as much (section 5).
    """
    return per_variable(tf_keras.optimizers.Lion, decay=spec.weight_decay, **common)


def choose_optimizer(spec: PhaseSpec) -> Choice[tf_keras.optimizers.Optimizer]:
    """Returns the update rule of a phase.

    Raises:
      UsageError: there is none, or the phase asks for what it has not.
    """
    choice = OPTIMIZERS.choose(spec.optimizer)
    facts = choice.entry.facts
    if spec.weight_decay and not facts.get("weight_decay"):
        *most, last = [name for name in OPTIMIZERS if OPTIMIZERS[name].facts.get("weight_decay")]
        raise UsageError(
            f"weight_decay={spec.weight_decay:g}: {choice.name} has none; "
            f"use {', '.join(most)} or {last}, or 0"
        )
    if spec.nesterov and not (facts.get("momentum") and spec.momentum):
        raise UsageError(f"nesterov: {choice.name} has none; it is a kind of the momentum of sgd")
    return choice


def make_optimizer(
    phase: Phase,
    variables: Mapping[str, tf.Variable],
    *,
    multipliers: Mapping[str, float] = {},
    factor: tf.Variable | None = None,
    step: tf.Variable | None = None,
) -> tf_keras.optimizers.Optimizer:
    """Makes the optimizer of a phase with all its slots, so that a checkpoint can be matched.

    Args:
      phase: whose optimizer it is.
      variables: {lasting name: variable} of what it updates; slots are made in this order.
      multipliers: {name: factor on the learning rate of a variable}; 1 where there is none.
      factor: [] float32, a factor on all learning rates that may change between updates; None: 1.
      step: [] int64, number of steps of the run, by which the rate goes; None: by the number of updates.
    """
    optimizer = choose_optimizer(phase.spec)(
        spec=phase.spec,
        multipliers=[multipliers.get(name, 1.0) for name in variables],
        factor=factor,
        learning_rate=PhaseSchedule(phase, step),
        # Keras would compile updates with XLA where it finds a GPU: other numbers than on a CPU.
        jit_compile=False,
    )
    optimizer.build(list(variables.values()))
    return optimizer
