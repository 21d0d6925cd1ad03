"""Knowledge distillation from a finished run (Hinton, Vinyals and Dean 2015, arXiv 1503.02531)."""

from typing import Annotated

import numpy as np
import tensorflow as tf

import trainer
from trainer.loop.objectives import Terms
from trainer.register import Bounds
from trainer.values import UsageError


@trainer.register.objective("distillation", source="arXiv 1503.02531")
class Distillation:
    """Learns the labels, and what another run says of the same pictures.

    (1 - weight) loss + weight T^2 KL(softmax(teacher / T), softmax(student / T)). Before the first update the
    teacher sees each training picture once, at its own size, as it is. Its logits, a row for each of these
    pictures, are in every checkpoint: nobody asks for the teacher again.
    """

    metric_names = ("teacher_divergence",)

    def __init__(self, teacher: str, weight: Annotated[float, Bounds(above=0, at_most=1)] = 0.9,
                 temperature: Annotated[float, Bounds(above=0)] = 4.0, *, loss, experiment):  # fmt: skip
        self._teacher, self._temperature, self._weight = teacher, temperature, weight
        self._loss, self._source, self._train = loss, experiment.source, experiment.splits.indices["train"]
        for spec in (phase.spec for phase in experiment.plan.phases):
            if (augment := experiment.augment(spec)) and augment.mixes:
                raise UsageError(f"phase {spec.name}: the teacher has not seen the mixtures of {augment}")
        rows = [len(self._train), len(self._source.class_names)]
        self._row_of = tf.scatter_nd(self._train[:, None], tf.range(rows[0]), [len(self._source.ids)])
        self._logits = tf.Variable(tf.zeros(rows), trainable=False)
        self.variables = {"teacher_logits": self._logits}

    def start(self):
        source, teacher = self._source, trainer.load(self._teacher)
        if missing := set(source.class_names) - set(teacher.class_names):
            raise UsageError(f"the teacher {self._teacher} does not know the class {min(missing)}")
        source.load()
        logits = self._logits.numpy()
        said = teacher.predict_encoded((source.ids[i], source.read(i)) for i in self._train.tolist())
        for row, one in zip(logits, said, strict=True):
            if told := one.error or (one.labels is not None and "it gives any number of classes"):
                raise UsageError(f"the teacher {self._teacher} cannot teach {one.path}: {told}")
            # Logits but for a constant, in which no softmax differs; by name, whatever their order.
            row[:] = np.log([max(one.probabilities[name], 1e-37) for name in source.class_names])
        self._logits.assign(logits)

    def __call__(self, forward, batch, seed):
        def terms(features, labels, teacher):
            logits = forward.logits(features)
            theirs, ours = (tf.nn.log_softmax(x / self._temperature) for x in (teacher, logits))
            divergence = self._temperature**2 * tf.reduce_sum(tf.exp(theirs) * (theirs - ours), axis=-1)
            return logits, self._loss(logits, labels, None), divergence

        teacher = tf.gather(self._logits, tf.gather(self._row_of, tf.maximum(batch["id"], 0)))
        logits, hard, far = forward.float32(terms, forward.features(batch["image"]), batch["label"], teacher)
        return Terms((1 - self._weight) * hard + self._weight * far, logits, {"teacher_divergence": far})
