"""Head, loss and their gradients stay float32 while the network computes in 16 bits."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tf_keras import layers

from tests.loop.toys import dataset_of, plan_of, random_batches, run_of
from trainer.loop.evaluator import Evaluator
from trainer.loop.losses import make_loss
from trainer.loop.objectives import supervised
from trainer.loop.state import TrainState
from trainer.model.backbones.keras import KerasBackbone
from trainer.model.classifier import Classifier
from trainer.model.cuts import whole_cut
from trainer.model.heads import Head
from trainer.model.initializers import reseed
from trainer.precision import in_precision, supported, was_rewritten
from trainer.run.finished_run import Network

SIDE_PX, NUM_CLASSES = 8, 5
RECIPE = "for=9steps; train=all; lr=1; optimizer=sgd; momentum=0"
WEIGHTS = np.array([1.0, 2.0, 0.5, 0.7, 1.3], np.float32)


@pytest.fixture(params=["bfloat16", "float16"])
def precision(request):
    if request.param not in supported():
        pytest.skip(f"TensorFlow's rewriter does no {request.param} on this machine")
    return request.param


def make_state(*, num_logits=NUM_CLASSES, dropout=0.0):
    images = tf_keras.Input([SIDE_PX, SIDE_PX, 3])
    x = layers.Conv2D(16, 3, activation="relu", name="below")(images)
    x = layers.Conv2D(32, 3, activation="relu", name="above")(x)
    network = tf_keras.Model(images, layers.GlobalAveragePooling2D()(x))
    reseed(network, seed=0)
    backbone = KerasBackbone("keras:Toy", network, lambda pixels: pixels / 255.0, size_px=SIDE_PX)
    head = Head("mlp(16)", num_logits=num_logits, dropout=dropout, seed=0)
    return TrainState(Classifier(backbone, head), plan_of(RECIPE))


def batches(count, *, num_classes=NUM_CLASSES, mixed=False):
    found = random_batches(count, size=8, num_logits=num_classes, side=SIDE_PX)
    for batch in found:
        batch["image"] *= 255
        if mixed:
            shares = np.random.default_rng(0).dirichlet(np.ones(num_classes), 8)
            batch["target"] = shares.astype(np.float32)
    return found


def share_in(precision, values):
    """The share of numbers that a 16-bit type holds exactly: all, if they were computed in it."""
    values = np.asarray(values, np.float32)
    values = values[values != 0]
    assert values.size
    return (tf.cast(tf.cast(values, precision), tf.float32).numpy() == values).mean()


@pytest.mark.parametrize(
    ("loss", "mixed", "options"),
    [
        ({"text": "cross_entropy"}, False, {}),
        ({"text": "cross_entropy", "label_smoothing": 0.1}, False, {}),
        ({"text": "cross_entropy"}, True, {}),
        ({"text": "cross_entropy", "label_smoothing": 0.1, "class_weights": WEIGHTS}, True, {}),
        ({"text": "focal(2)"}, False, {"dropout": 0.3}),
        ({"text": "focal(2)"}, True, {}),
        ({"text": "cross_entropy"}, False, {"num_logits": 1}),
    ],
    ids=["plain", "smoothing", "mixed", "mixed, weighted", "focal, dropout", "focal, mixed", "one logit"],
)
def test_logits_losses_and_gradients_of_the_head_in_training(precision, loss, mixed, options):
    num_classes = 2 if options.get("num_logits") == 1 else NUM_CLASSES
    state, computed = make_state(**options), make_loss(num_classes=num_classes, **loss)
    seen = {}

    def watched(logits, labels, targets):
        losses = computed(logits, labels, targets)
        tf.py_function(lambda *found: seen.update(logits=found[0], losses=found[1]), [logits, losses], [])
        return losses

    run = run_of(state, objective=supervised(loss=watched), precision=precision)
    iterator = iter(dataset_of(*batches(1, num_classes=num_classes, mixed=mixed)))
    assert was_rewritten(run, iterator, tf.constant(0), precision=precision)
    in_precision(run, precision)(iterator, tf.constant(1))
    assert share_in(precision, seen["logits"]) < 0.3
    assert share_in(precision, seen["losses"]) < 0.3
    # Biases begin at zero, and the rate is 1: they are what the gradient was.
    for name in ("dense_0", "logits"):
        assert share_in(precision, state.classifier.named_variables[f"head/{name}/bias"]) < 0.3


@pytest.mark.parametrize("num_parts", [1, 2])
def test_the_update_is_that_of_the_losses_by_hand(precision, num_parts):
    """In float32 from the features on: as close as the rounding of the features alone allows."""
    [batch] = batches(1)
    states = {name: make_state() for name in ("float32", precision)}
    for name, state in states.items():
        in_precision(run_of(state, num_parts=num_parts, precision=name), name)(
            iter(dataset_of(batch)), tf.constant(1)
        )
    one, other = (state.metrics.read()["loss"] for state in states.values())
    assert one == pytest.approx(other, rel=1e-3)
    biases = [state.classifier.named_variables["head/logits/bias"].numpy() for state in states.values()]
    np.testing.assert_allclose(biases[1], biases[0], atol=2e-3)


def test_evaluation_and_prediction_give_the_same_float32_logits(precision):
    state, found = make_state(), batches(3)
    classifier, backbone = state.classifier, state.classifier.backbone
    strategy = tf.distribute.get_strategy()

    def evaluated(cut=None, below=None, precision=precision):
        evaluator = in_precision(Evaluator(classifier, strategy=strategy, cut=cut), precision)
        rows = [{**batch, "image": below(batch["image"])} if below else batch for batch in found]
        return evaluator(dataset_of(*rows))

    whole = evaluated()
    network = Network(classifier, tuple("abcde"), 1, precision)
    predicted = np.concatenate([network.logits(batch["image"]) for batch in found])
    masked = np.concatenate([batch["mask"] for batch in found]) > 0
    np.testing.assert_array_equal(predicted[masked], whole.logits)
    assert share_in(precision, whole.logits) < 0.3

    features = whole_cut(backbone, (), bn_batch=False, feature_width=32, variables=backbone.variables)
    middle = backbone.cut(["above/kernel"], bn_batch=False)
    for cut, above in ((features, "float32"), (middle, precision)):
        spec = tf.TensorSpec([None, SIDE_PX, SIDE_PX, 3])
        below = in_precision(tf.function(cut.below, autograph=False, input_signature=[spec]), precision)
        cached = evaluated(cut, lambda images, below=below: below(images).numpy(), above)
        np.testing.assert_array_equal(cached.logits, whole.logits)
        assert cached.loss == whole.loss
    plain = evaluated(precision="float32")
    assert not np.array_equal(plain.logits, whole.logits)  # The network did compute in 16 bits.
