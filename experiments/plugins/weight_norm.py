"""A callback: the norm of all weights as a curve in TensorBoard, every so many steps.

python -m trainer.main --plugin=experiments/plugins/weight_norm.py --callbacks='weight_norm(10)' \
    --flagfile=experiments/demo.flags --workdir=runs/weight_norm
"""

import tensorflow as tf

import trainer
from trainer.loop.callbacks import Callback


@trainer.register.callback("weight_norm", before_save=True)
class WeightNorm(Callback):
    """The norm of all weights, every `every_steps` updates."""

    def __init__(self, every_steps: int = 10, *, run):
        self._every_steps, self._run = every_steps, run

    def next_due(self, step):
        return (step // self._every_steps + 1) * self._every_steps

    def __call__(self, state):
        if state.step % self._every_steps == 0:
            weights = [v for v in state.classifier.named_variables.values() if v.dtype.is_floating]
            self._run.scalar("weight_norm", float(tf.linalg.global_norm(weights)), state.step)
