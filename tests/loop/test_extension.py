"""Whether a longer plan begins with the updates of a shorter one: by their values, step by step."""

import pytest

from trainer import plugins
from trainer.cli.config import Config
from trainer.loop.callbacks import Every
from trainer.loop.extension import first_other_step, why_other_updates
from trainer.loop.phases import make_plan
from trainer.values import Duration


def plan_of(**options):
    """Of 12 examples in batches of 4: three steps an epoch."""
    return make_plan(Config().replace(**options).phases, num_examples=12, batch_size=4)


RATE = "phase frozen: the learning rate depends on the length of the phase; at step "


@pytest.mark.parametrize(
    ("options", "short", "long", "step", "why"),
    [
        ({}, 4, 8, 4, ""),
        ({}, 4, 8, 2, ""),
        ({"lr_schedule": "plateau", "average": "ema", "warmup": "3steps"}, 4, 8, 4, ""),
        ({"lr_schedule": "cosine"}, 4, 8, 4, f"{RATE}1 it was 0.000853553, and would be 0.00096194"),
        # Both begin at the top.
        ({"lr_schedule": "cosine"}, 4, 8, 1, ""),
        ({"lr_schedule": "cosine(1)"}, 4, 8, 4, ""),
        ({"lr_schedule": "linear"}, 4, 8, 4, f"{RATE}1 it was 0.00075, and would be 0.000875"),
        ({"lr_schedule": "exponential"}, 4, 8, 4, f"{RATE}1 it was 0.000316228, and would be 0.000562341"),
        ({"lr_schedule": "one_cycle"}, 4, 8, 4, f"{RATE}1 it was 0.000811746, and would be 0.000819275"),
        ({"lr_schedule": "step(0.5)"}, 4, 8, 2, ""),
        ({"lr_schedule": "step(0.5)"}, 4, 8, 3, f"{RATE}2 it was 0.0001, and would be 0.001"),
        ({"warmup": "50%"}, 4, 8, 4, f"{RATE}0 it was 0.0005, and would be 0.00025"),
        (
            {"average": "swa(0.5)"}, 9, 18, 9,
            "phase frozen: the share that the average keeps depends on the length of the phase; at step 6 it "
            "was 1, and would be 0",
        ),
        ({"average": "swa(0.5)"}, 9, 18, 6, ""),
        ({}, 8, 4, 4, "phase frozen would have 4 steps instead of 8"),
    ],
)  # fmt: skip
def test_the_updates_of_a_phase(options, short, long, step, why):
    old, new = (plan_of(schedule="frozen", frozen_for=f"{n}steps", **options) for n in (short, long))
    assert why_other_updates(old, new, step=step) == why


ASKING = """
import tensorflow as tf
import trainer


@trainer.register.schedule("asks")
def asks(first: float = 2.0):
    '''Half after the first updates.'''
    return lambda step, num_steps: tf.cond(step < first, lambda: 1.0, lambda: 0.5)


@trainer.register.schedule("half")
def half():
    '''Half from the middle on.'''
    return lambda step, num_steps: tf.cond(step < num_steps / 2, lambda: 1.0, lambda: 0.5)


@trainer.register.average("late")
def late(*, num_steps, steps_per_epoch):
    '''The weights up to the middle, then their average.'''

    def share(step):
        if step * 2 < num_steps:
            return 0.0
        return 0.5

    return share
"""


@pytest.mark.usefixtures("without_plugins")
def test_what_asks_for_the_step_is_called_with_one(tmp_path):
    (tmp_path / "asking.py").write_text(ASKING)
    plugins.load_plugins([str(tmp_path / "asking.py")])

    def why(**options):
        old, new = (plan_of(schedule="frozen", frozen_for=f"{n}steps", **options) for n in (4, 8))
        return why_other_updates(old, new, step=4)

    assert why(lr_schedule="asks") == ""
    assert why(lr_schedule="half") == f"{RATE}2 it was 0.0005, and would be 0.001"
    assert why(average="late") == (
        "phase frozen: the share that the average keeps depends on the length of the phase; at step 2 it was "
        "0.5, and would be 0"
    )


@pytest.mark.parametrize(
    ("frozen", "finetune", "step", "why"),
    [
        (4, 5, 7, ""),
        (4, 5, 4, ""),
        (6, 5, 3, ""),
        (6, 5, 4, "phase frozen ended at step 4, and the run is at step 4"),
        (6, 3, 7, "phase frozen ended at step 4, and the run is at step 7"),
        (4, 2, 2, "phase finetune would have 2 steps instead of 3"),
    ],
)
def test_of_two_phases_the_one_that_has_not_ended_can_be_longer(frozen, finetune, step, why):
    old = plan_of(frozen_for="4steps", finetune_for="3steps")
    new = plan_of(frozen_for=f"{frozen}steps", finetune_for=f"{finetune}steps")
    assert why_other_updates(old, new, step=step) == why


@pytest.mark.parametrize(
    ("every", "step", "first"),
    [
        ("2steps", 4, None),
        ("2steps", 5, 5),  # The end of the shorter one.
        ("1epochs", 4, None),
        ("5steps", 5, None),
        ("50%", 1, None),
        ("50%", 3, 3),
        ("50%", 5, 3),
    ],
)
def test_what_is_due_under_only_one_of_two_plans(every, step, first):
    old, new = (
        Every(
            Duration.parse(every),
            plan_of(schedule="frozen", frozen_for=f"{n}steps"),
            num_examples=12,
            batch_size=4,
        )
        for n in (5, 10)
    )
    assert first_other_step(old, new, step=step) == first
