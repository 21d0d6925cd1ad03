"""What a run is at one moment, and the part of it that a phase leaves as it is."""

import pytest
import tensorflow as tf
import tf_keras

from tests.loop.toys import PixelBackbone, dataset_of, random_batches, run_of, state_of, values
from trainer.model.backbones import open_backbone

KERNEL, BETA, MEAN = (f"model/backbone/{name}" for name in ("conv/kernel", "bn/beta", "bn/moving_mean"))
HEAD = {"model/head/logits/kernel", "model/head/logits/bias"}


def tiny_state(tiny_backbone, *recipes):
    backbone = open_backbone(f"savedmodel:{tiny_backbone}", image_size=8)
    phases = [f"for=3steps; lr=0.1; optimizer=sgd; momentum=0.5; {recipe}" for recipe in recipes]
    return state_of(*phases, backbone=backbone)


@pytest.mark.parametrize(
    ("recipe", "constant"),
    [
        ("train=head", {KERNEL, BETA, MEAN}),
        ("train=all", {MEAN}),
        ("train=head backbone/conv", {BETA, MEAN}),
        ("train=backbone/bn", {KERNEL, MEAN, *HEAD}),
        ("train=head; bn=batch", {KERNEL, BETA}),
        ("train=head backbone/conv; bn=batch", {BETA}),
        ("train=all; bn=batch", set()),
    ],
)
def test_what_is_constant_is_what_no_update_changes(tiny_backbone, recipe, constant):
    state = tiny_state(tiny_backbone, recipe)
    assert set(state.constant()) == constant
    before = values(state)
    run_of(state)(iter(dataset_of(*random_batches(3, side=8))), tf.constant(3))
    changed = {name for name, value in values(state).items() if value.tobytes() != before[name].tobytes()}
    model = {name for name in before if name.startswith("model/")}
    assert constant == model - changed


def test_it_is_a_part_of_what_a_checkpoint_holds(tiny_backbone):
    state = tiny_state(tiny_backbone, "train=head")
    everything = state.variables()
    assert all(everything[name] is variable for name, variable in state.constant().items())


def test_it_follows_the_phase(tiny_backbone):
    state = tiny_state(tiny_backbone, "train=head", "train=all")
    assert set(state.constant()) == {KERNEL, BETA, MEAN}
    state.jump(3)
    assert set(state.constant()) == {MEAN}
    state.jump(2)
    assert set(state.constant()) == {KERNEL, BETA, MEAN}


def test_names_do_not_depend_on_what_was_built_before():
    class Numbered(PixelBackbone):
        def __init__(self):
            layer = tf_keras.layers.Dense(3)  # dense, dense_1, ... through the process.
            layer(tf.zeros([1, 3]))
            self.number = layer.kernel.name
            self.variables = {"mix/kernel": layer.kernel, "mix/bias": layer.bias}

    backbones = [Numbered(), Numbered()]
    assert backbones[0].number != backbones[1].number
    one, other = (list(state_of("for=2steps; train=all", backbone=b).variables()) for b in backbones)
    assert one == other
    assert "optimizer/0001/m/backbone/mix/kernel" in one


def test_a_phase_that_has_ended_early_is_cut_short_up_to_the_next_update():
    state = state_of("name=a; for=4steps; train=head", "name=b; for=3steps; train=head")
    run_of(state)(iter(dataset_of(*random_batches(2))), tf.constant(2))
    assert not state.is_cut_short
    state.end_phase()
    assert (state.step, state.phase.spec.name, state.is_cut_short) == (4, "b", True)
    run_of(state)(iter(dataset_of(*random_batches(1))), tf.constant(1))
    assert (state.step, state.is_cut_short) == (5, False)
    state.end_phase()
    assert (state.step, state.is_cut_short) == (7, True)
    # A checkpoint of that step is one of a phase that has come to its end.
    state.jump(7)
    assert not state.is_cut_short
