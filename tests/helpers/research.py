"""The ideas of experiments/research by themselves, without a run around them."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np

import trainer
from tests.loop.toys import PixelBackbone, plan_of
from trainer import plugins
from trainer.loop.losses import PLAIN_LOSS
from trainer.loop.objectives import metric_names_of, variables_of
from trainer.loop.state import TrainState
from trainer.model.classifier import Classifier
from trainer.model.heads import Head
from trainer.record.predictions import Prediction

FOLDER = Path(__file__).parents[2] / "experiments" / "research"
NAMES = ("a", "b", "c")
TEACHER_LOGITS = np.random.default_rng(5).normal(size=(12, 3))
"""Of each example, in the order of NAMES."""


class Teacher:
    """A run that was trained with the classes in another order; it knows one more."""

    class_names = ("c", "more", "a", "b")

    def predict_encoded(self, pictures):
        found = []
        for name, encoded in pictures:
            assert encoded == name.encode()
            # The constant that the logits lack, and the other class, change nothing.
            shares = np.exp(TEACHER_LOGITS[int(name)]) / 50
            by_name = {**dict(zip(NAMES, shares, strict=True)), "more": 1 - shares.sum()}
            found.append(Prediction(name, probabilities=by_name))
        return found


def experiment_of(num_examples):
    """What an objective may ask of a run."""
    source = SimpleNamespace(
        class_names=NAMES,
        ids=[str(i) for i in range(num_examples)],
        read=lambda i: str(i).encode(),
        load=lambda: None,
    )
    return SimpleNamespace(
        source=source,
        splits=SimpleNamespace(indices={"train": np.arange(num_examples)}),
        plan=plan_of("for=9steps; train=all; lr=0.1"),
        augment=lambda spec: None,
        trained_in_backbone=lambda spec: ["kernel"],
        config=SimpleNamespace(update=SimpleNamespace(accumulate=1)),
    )


def load_all():
    plugins.load_plugins([str(path) for path in sorted(FOLDER.glob("*.py"))])


def make_objective(text, *, num_examples):
    """An objective, and where it has one, its start; its teacher is `Teacher`."""
    load_all()
    choice = trainer.register.registries()["objective"].choose(text)
    made = choice(loss=PLAIN_LOSS, experiment=experiment_of(num_examples), num_classes=3)
    if hasattr(made, "start"):
        before, trainer.load = trainer.load, lambda workdir: Teacher()
        try:
            made.start()
        finally:
            trainer.load = before
    return made


def make_rule(text):
    load_all()
    return trainer.register.registries()["gradient_rule"].choose(text)()


def objective_state(objective, *phases, backbone=None):
    """As `state_of`, with what an objective keeps and measures."""
    head = Head("linear", num_logits=3, dropout=0.0, seed=0)
    return TrainState(
        Classifier(backbone or PixelBackbone(), head),
        plan_of(*phases),
        metrics=["accuracy", *metric_names_of(objective)],
        objective=variables_of(objective),
    )
