"""Sums and counts of what is measured of examples."""

import json

import pytest
import tensorflow as tf

from tests.loop.toys import random_batches, run_of, state_of
from trainer.loop.losses import PLAIN_LOSS
from trainer.loop.metrics import METRICS, make_metrics, sums_of
from trainer.loop.objectives import supervised
from trainer.record.summaries import Summaries
from trainer.record.workdir import Workdir
from trainer.values import UsageError


def test_what_numpy_computes_is_a_number_for_each_example_until_it_runs():
    @tf.function
    def sums(values):
        found = tf.numpy_function(lambda x: 2 * x, [values], tf.float32)
        return sums_of({"twice": found}, mask=tf.ones([3]))["twice"]

    assert [float(value) for value in sums(tf.constant([1.0, 2.0, 3.0]))] == [12.0, 3.0]


@pytest.mark.parametrize(
    "name", ["split", "step", "epoch", "phase", "loss", "gradient_norm", "learning_rate"]
)
def test_a_metric_of_a_name_that_lines_have_anyway_is_refused(name, monkeypatch):
    monkeypatch.setattr(METRICS, "choose", lambda call: str(call))
    for made in (lambda: make_metrics(name), lambda: state_of("for=1steps; train=head", metrics=[name])):
        with pytest.raises(UsageError, match=f"{name} is told already: a metric must have a name of its own"):
            made()


def test_two_metrics_of_one_name_are_refused():
    with pytest.raises(UsageError, match="accuracy is told already"):
        state_of("for=1steps; train=head", metrics=["accuracy", "accuracy"])


def test_what_a_line_is_of_is_not_written_over(tmp_path):
    Summaries(Workdir(str(tmp_path)), describe=lambda step: {"epoch": 1.0}).scalars(
        "train", 3, {"step": 0.5, "epoch": 0.5, "loss": 2.0}
    )
    [line] = Workdir(str(tmp_path)).metrics_jsonl.read_text().splitlines()
    assert json.loads(line) == {"split": "train", "step": 3, "epoch": 1.0, "loss": 2.0}


@pytest.mark.parametrize("num_parts", [1, 2])
@pytest.mark.parametrize(
    ("names", "told", "words"),
    [
        (("size",), (), "size is among metric_names of the objective, and is not told as a metric"),
        ((), ("accuracy",), "accuracy is told as a metric, and is not among metric_names of the objective"),
    ],
)
def test_metrics_that_an_objective_declares_are_those_that_it_tells(num_parts, names, told, words):
    class Wrong:
        metric_names = names

        def __call__(self, forward, batch, seed):
            terms = supervised(loss=PLAIN_LOSS)(forward, batch, seed)
            return terms._replace(metrics=dict.fromkeys(told, terms.losses))

    state = state_of("for=1steps; train=head", metrics=["accuracy", *names])
    batches = tf.data.Dataset.from_tensors(random_batches(1)[0])
    with pytest.raises(UsageError, match=words):
        run_of(state, objective=Wrong(), num_parts=num_parts)(iter(batches), tf.constant(1))


def test_metrics_that_a_gradient_rule_declares_are_those_that_it_tells():
    class Silent:
        metric_names = ("size",)

        def __call__(self, compute, variables):
            return compute()

    state = state_of("for=1steps; train=head", metrics=["accuracy", "size"])
    batches = tf.data.Dataset.from_tensors(random_batches(1)[0])
    words = "size is among metric_names of the gradient rule Silent, and is not told as a metric"
    with pytest.raises(UsageError, match=words):
        run_of(state, gradient_rule=Silent())(iter(batches), tf.constant(1))
