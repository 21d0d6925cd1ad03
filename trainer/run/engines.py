"""What runs the part of a network that a phase does not change: TensorFlow, or OpenVINO, which compiles it.

Chosen for each phase and cut, as the precision is: as asked for, as an earlier start of the run decided, or
measured. What OpenVINO cannot run is run by TensorFlow, which is said in a line.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.cli.config import Config
from trainer.loop.phases import Phase
from trainer.model.folding import unfolded
from trainer.precision import Choice, arithmetic, choose_engine, openvino
from trainer.record.workdir import Workdir
from trainer.run.arithmetic import Arithmetic
from trainer.values import OPENVINO, TENSORFLOW, UsageError

_log = logging.getLogger("trainer")
PROBE_PICTURES = 2
_told: ContextVar[set[str] | None] = ContextVar("told", default=None)


def require_engine(config: Config) -> None:
    """Checks that the engine that is asked for can be had, in the precision that is asked for.

    Raises:
      UsageError: it cannot.
    """
    speed = config.speed
    if speed.engine != OPENVINO:
        return
    openvino.require_installed(flag="--engine=openvino")
    if speed.precision not in ("auto", *openvino.precisions()):
        raise UsageError(
            f"--engine=openvino computes in {' or '.join(openvino.precisions())} on this machine, not in "
            f"--precision={speed.precision}: use one of these, or --precision=auto"
        )


def asked_engine(config: Config, run: Workdir | None) -> str:
    """Returns the value of --engine; TensorFlow, which is said, where a run began with another that is gone.

    Args:
      config: what is asked for.
      run: its folder, which may have been moved; None: there is to be none.

    Raises:
      UsageError: it cannot be had here, and the run, if there is one, did not begin with it.
    """
    try:
        require_engine(config)
    except UsageError:
        if not run or not run.run_json.exists() or run.read_config().speed.engine != OPENVINO:
            raise
        _log.warning(
            "engine:      the run began with --engine=openvino, which cannot be had here; TensorFlow goes "
            "on, to slightly other numbers"
        )
        return TENSORFLOW
    return config.speed.engine


class Engines:
    """Decides for each phase, and remembers for a resumed run, in what `arithmetic` has decided.

    An engine is told with its precision, such as `openvino-float32`; TensorFlow is just `tensorflow`, as its
    precision is that of the phase.
    """

    def __init__(self, config: Config, *, arithmetic: Arithmetic, several_devices: bool):
        """Notes what is asked for.

        Raises:
          UsageError: it cannot be had.
        """
        run = Workdir(config.run.workdir) if config.run.workdir else None
        self.asked, self._precision = asked_engine(config, run), config.speed.precision
        self._cache_dir, self._arithmetic = config.run.cache_dir, arithmetic
        self._several_devices = several_devices

    def decide(
        self,
        phase: Phase,
        place: str,
        *,
        precision: str,
        make: Callable[[str], Callable[[], object] | None],
        key: dict[str, Any],
    ) -> str:
        """Returns what runs a phase's network up to a cut.

        Args:
          phase: which.
          place: the name of the cut.
          precision: what TensorFlow would compute it in.
          make: engine -> a function that runs it once; None where that engine cannot. Not called where
            nothing is to be measured.
          key: everything of the run that the speed depends on.
        """
        name = name_of(phase, place)
        if self.asked == TENSORFLOW:
            return TENSORFLOW
        if self._several_devices:
            if self.asked == OPENVINO or name in self._arithmetic.decided:
                _log.info("engine:      tensorflow: OpenVINO is for one device, and there are several")
            return TENSORFLOW
        recorded = self._recorded(name)
        if recorded and (self.asked == "auto" or recorded != TENSORFLOW or self._is_left(name)):
            return recorded
        if not recorded and self.asked == "auto" and not self._is_considered():
            return TENSORFLOW
        choice = choose_engine(
            make,
            candidates=self._candidates(precision),
            what=f"{place} of phase {phase.spec.name}",
            key={"kind": "engine", "place": place, "precision": precision, **key},
            cache_dir=self._cache_dir,
        )
        self._tell(choice)
        self._arithmetic.note(name, choice)
        return _engine(choice)

    def fall_back(self, phase: Phase, place: str, error: openvino.UnusableError) -> None:
        """Notes, and says, that TensorFlow runs what OpenVINO cannot run."""
        tell_unusable(error)
        self.leave(phase, place)

    def leave(self, phase: Phase, place: str) -> None:
        """Notes that TensorFlow runs what was OpenVINO's."""
        name = name_of(phase, place)
        if name in self._arithmetic.decided:
            was = Choice.recorded(self._arithmetic.decided[name])
            # Where both were measured, another command may still ask for OpenVINO: see `is_left`.
            measured = next((one for one in was.step_secs if one.startswith(TENSORFLOW)), "")
            self._arithmetic.note(
                name,
                dataclasses.replace(
                    was,
                    precision=measured or _of_tensorflow("float32"),
                    step_secs=was.step_secs if measured else {},
                ),
            )

    def step_secs(self, phase: Phase, place: str, engine: str) -> float | None:
        """Returns how long the step took that an engine was chosen by; None where none was measured."""
        recorded = self._arithmetic.decided.get(name_of(phase, place))
        return Choice.recorded(recorded).step_secs.get(engine) if recorded else None

    def _recorded(self, name: str) -> str:
        """Returns what an earlier start decided, as far as it is here; empty: nothing."""
        if name not in self._arithmetic.decided:
            return ""
        phase = name.partition("/")[0].partition("-")[2]
        return usable(Choice.recorded(self._arithmetic.decided[name]), what=f"phase {phase}")

    def _is_left(self, name: str) -> bool:
        return is_left(Choice.recorded(self._arithmetic.decided[name]))

    def _is_considered(self) -> bool:
        """Returns whether OpenVINO is measured where nobody has asked for it."""
        if self._precision != "auto" or not openvino.precisions():
            return False
        if tf.config.list_physical_devices("GPU"):
            return False
        # A run goes on with what there was when it began.
        first = next(iter(self._arithmetic.decided.values()), None)
        return first is None or openvino.NAME in Choice.recorded(first).machine

    def _candidates(self, precision: str) -> list[str]:
        able = openvino.precisions()
        able = able if self._precision == "auto" else (self._precision,)
        of_openvino = [f"{OPENVINO}-{one}" for one in able]
        return of_openvino if self.asked == OPENVINO else [_of_tensorflow(precision), *of_openvino]

    def _tell(self, choice: Choice) -> None:
        if len(choice.step_secs) > 1:
            _log.info("engine:      %s", choice.describe())
        elif _engine(choice) != TENSORFLOW:
            _log.info("engine:      %s (OpenVINO %s)", choice.precision, openvino.version())


def name_of(phase: Phase, place: str) -> str:
    """Returns under which name a run records what runs a phase's network up to a cut."""
    return f"{phase.index}-{phase.spec.name}/{place}"


def is_left(choice: Choice) -> bool:
    """Returns whether TensorFlow runs what was OpenVINO's without having been measured to be faster."""
    return _engine(choice) == TENSORFLOW and not choice.step_secs


def usable(choice: Choice, *, what: str) -> str:
    """Returns the engine that was chosen, or tensorflow where this machine has not got it, which is said."""
    engine = _engine(choice)
    if engine == TENSORFLOW:
        return TENSORFLOW
    was, here = choice.machine.get(openvino.NAME, ""), openvino.version()
    if precision_of(engine) not in openvino.precisions():
        why = "cannot compute so on this machine" if here else "is not installed here"
        _log.warning(
            "engine:      %s began with OpenVINO %s (%s), which %s; TensorFlow goes on, to slightly other "
            "numbers",
            what, was, precision_of(engine), why,
        )  # fmt: skip
        return TENSORFLOW
    if was != here:
        _log.warning(
            "engine:      %s began with OpenVINO %s, and %s is here: it goes on to slightly other numbers",
            what, was, here,
        )  # fmt: skip
    return engine


@contextlib.contextmanager
def telling_once() -> Iterator[None]:
    """Has `tell_unusable` say each thing once in a block: a run finds it out where it measures, and again."""
    token = _told.set(set())
    try:
        yield
    finally:
        _told.reset(token)


def tell_unusable(error: openvino.UnusableError) -> None:
    """Says that OpenVINO cannot run a network."""
    if (told := _told.get()) is not None:
        if str(error) in told:
            return
        told.add(str(error))
    _log.warning("engine:      OpenVINO cannot run this network, TensorFlow does (%s)", error)


def precision_of(engine: str) -> str:
    """Returns the arithmetic of such as `openvino-float32`."""
    return engine.partition("-")[2]


def compiled(
    function: Callable[[tf.Tensor], tf.Tensor],
    engine: str,
    *,
    shape: Sequence[int],
    value_range: Sequence[float],
) -> openvino.Compiled:
    """Returns a part of a network with its weights as they are, compiled by OpenVINO, and compared.

    Args:
      function: images [B, *shape] float32 -> [B, ...] float32.
      engine: such as `openvino-float32`.
      shape: of an image.
      value_range: of its pixels.

    Raises:
      UnusableError: OpenVINO cannot run it, or to other numbers than TensorFlow.
    """
    spec = tf.TensorSpec([None, *shape], tf.float32)
    precision = precision_of(engine)
    with unfolded(), tf.init_scope():
        traced = tf.function(function, autograph=False).get_concrete_function(spec)
    made = openvino.Compiled(traced, precision=precision)
    low, high = value_range
    images = tf.random.stateless_uniform([PROBE_PICTURES, *shape], [0, 0], low, high)
    with arithmetic("float32"):
        expected = tf.nest.flatten(traced(images))[0].numpy()
    openvino.require_same(made, images.numpy(), expected, precision=precision)
    return made


def over_devices(
    run: Callable[[np.ndarray], np.ndarray], strategy: tf.distribute.Strategy
) -> Callable[[Any], Any]:
    """Returns a function of what is distributed over devices, from one of arrays."""

    def call(images: Any) -> tf.Tensor:
        parts = [part.numpy() for part in strategy.experimental_local_results(images)]
        return tf.constant(run(parts[0] if len(parts) == 1 else np.concatenate(parts)))

    return call


def _of_tensorflow(precision: str) -> str:
    return f"{TENSORFLOW}-{precision}"


def _engine(choice: Choice) -> str:
    return TENSORFLOW if choice.precision.startswith(TENSORFLOW) else choice.precision
