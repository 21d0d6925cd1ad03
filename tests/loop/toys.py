"""Problems small enough to be worked out by hand."""

import dataclasses

import numpy as np
import tensorflow as tf

from trainer.cli.config import PlanConfig
from trainer.cli.phase_specs import phase_specs
from trainer.loop.objectives import Recipe
from trainer.loop.phases import make_plan
from trainer.loop.state import TrainState
from trainer.loop.step import make_train_run
from trainer.model.classifier import Classifier
from trainer.model.cuts import whole_cut
from trainer.model.heads import Head
from trainer.values import Contract


class PixelBackbone:
    """Pictures of one pixel; its three colours are the features."""

    name = fingerprint = "pixel"
    contract = Contract(1, 1, (0.0, 1.0), feature_width=3, any_size=False)
    layers = batch_norms = ()

    def __init__(self):
        self.variables = {}

    def __call__(self, images, *, training, bn_batch):
        return images[:, 0, 0, :]

    def regularization_losses(self):
        return []

    def cut(self, trained, *, bn_batch):
        return whole_cut(self, trained, bn_batch=bn_batch, feature_width=3, variables=self.variables)


def plan_of(*phases, num_examples=4, batch_size=4):
    """A plan of phases such as 'for=3steps; train=head; lr=0.1'."""
    return make_plan(phase_specs(PlanConfig(phase=phases)), num_examples=num_examples, batch_size=batch_size)


def state_of(*phases, backbone=None, num_logits=3, dropout=0.0, seed=0, **told):
    """The state of a run; `told` are metrics and variables, as `TrainState` takes them."""
    head = Head("linear", num_logits=num_logits, dropout=dropout, seed=seed)
    return TrainState(Classifier(backbone or PixelBackbone(), head), plan_of(*phases), **told)


def run_of(state, *, strategy=None, **options):
    """The function that does updates; options are those of a Recipe, and of `make_train_run`."""
    names = [field.name for field in dataclasses.fields(Recipe)]
    recipe = Recipe(**{name: options.pop(name) for name in names if name in options})
    return make_train_run(state, recipe, strategy=strategy or tf.distribute.get_strategy(), **options)


def batch_of(features, labels, mask=None):
    """One batch of pictures of one pixel, as the pipeline gives it."""
    features, labels = np.asarray(features, np.float32), np.asarray(labels, np.int64)
    mask = np.ones(len(labels), np.float32) if mask is None else np.asarray(mask, np.float32)
    ids = np.where(mask > 0, np.arange(len(labels)), -1)
    return {"image": features[:, None, None, :], "label": labels, "mask": mask, "id": ids}


def dataset_of(*batches):
    stacked = {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
    return tf.data.Dataset.from_tensor_slices(stacked)


def random_batches(count, *, size=4, num_logits=3, seed=0, side=1):
    random = np.random.default_rng(seed)
    return [
        {
            "image": random.random((size, side, side, 3)).astype(np.float32),
            "label": random.integers(0, num_logits, size),
            "mask": np.array([1] * (size - i % 2) + [0] * (i % 2), np.float32),
            "id": np.arange(size),
        }
        for i in range(count)
    ]


def values(state):
    """{name: value} of all that a checkpoint holds."""
    return {name: variable.numpy() for name, variable in state.variables().items()}


def softmax(logits):
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)
