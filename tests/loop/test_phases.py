"""Plans and learning rates, by tables worked out by hand."""

import numpy as np
import pytest
import tensorflow as tf

from tests.loop.toys import plan_of
from trainer.cli.config import PlanConfig
from trainer.cli.phase_specs import phase_specs
from trainer.loop.phases import PhaseSchedule, make_plan
from trainer.values import UsageError


def rates(recipe):
    """The rates of a second phase, so that its start is not step 0."""
    phase = plan_of("for=7steps; train=head", f"train=head; lr=0.1; {recipe}").phases[1]
    assert phase.start_step == 7
    return [phase.learning_rate(step) for step in range(phase.start_step, phase.stop_step)]


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("for=4steps", [0.1, 0.1, 0.1, 0.1]),
        ("for=4steps; lr_schedule=cosine", [0.1, 0.0853553391, 0.05, 0.0146446609]),
        ("for=1steps; lr_schedule=cosine", [0.1]),
        ("for=9steps; lr_schedule=step", [0.1] * 3 + [0.01] * 3 + [0.001] * 3),
        ("for=4steps; lr_schedule=step", [0.1, 0.1, 0.01, 0.001]),
        ("for=4steps; warmup=2steps", [0.05, 0.1, 0.1, 0.1]),
        ("for=8steps; warmup=50%", [0.025, 0.05, 0.075, 0.1, 0.1, 0.1, 0.1, 0.1]),
        ("for=4steps; warmup=4steps", [0.025, 0.05, 0.075, 0.1]),
        ("for=6steps; warmup=2steps; lr_schedule=cosine", [0.05, 0.1, 0.1, 0.0853553391, 0.05, 0.0146446609]),
        ("for=5steps; warmup=2steps; lr_schedule=step", [0.05, 0.1, 0.1, 0.01, 0.001]),
    ],
)
def test_learning_rates(recipe, expected):
    np.testing.assert_allclose(rates(recipe), expected, rtol=1e-5)


def test_cosine_starts_at_the_rate_is_half_in_the_middle_and_ends_at_zero():
    phase = plan_of("for=1000steps; train=head; lr=0.4; lr_schedule=cosine").phases[0]
    np.testing.assert_allclose(
        [phase.learning_rate(step) for step in (0, 500, 1000)], [0.4, 0.2, 0.0], atol=1e-7
    )
    falling = [phase.learning_rate(step) for step in range(0, 1001, 50)]
    assert falling == sorted(falling, reverse=True)


def test_the_rate_is_the_same_in_a_graph():
    phase = plan_of("for=30steps; train=head; lr=0.4; lr_schedule=cosine; warmup=5steps").phases[0]
    in_graph = tf.function(PhaseSchedule(phase))
    for step in range(30):
        np.testing.assert_allclose(
            in_graph(tf.constant(step, tf.int64)), phase.learning_rate(step), rtol=1e-5
        )


def test_lengths_become_steps():
    # 10 examples in batches of 4 are 3 steps an epoch.
    plan = plan_of(
        "name=a; for=2epochs; train=head", "name=b; for=5steps; train=head", "for=20examples; train=head",
        num_examples=10,
    )  # fmt: skip
    assert plan.steps_per_epoch == 3
    assert [(p.index, p.spec.name, p.start_step, p.stop_step, p.num_steps) for p in plan.phases] == [
        (0, "a", 0, 6, 6),
        (1, "b", 6, 11, 5),
        (2, "phase3", 11, 16, 5),
    ]
    assert plan.total_steps == 16


def test_phase_at_boundaries():
    plan = plan_of("name=a; for=3steps; train=head", "name=b; for=2steps; train=head")
    assert [plan.phase_at(step).spec.name for step in range(7)] == ["a", "a", "a", "b", "b", "b", "b"]


def test_schedules_are_the_usual_phases():
    options = {"frozen_for": "2steps", "finetune_for": "3steps", "finetune_train": "backbone/top head"}

    def described(schedule):
        specs = phase_specs(PlanConfig(schedule=schedule, bn="batch", **options))
        plan = make_plan(specs, num_examples=8, batch_size=4)
        return [
            (p.spec.name, p.num_steps, p.spec.train, p.spec.learning_rate, p.spec.bn) for p in plan.phases
        ]

    frozen = ("frozen", 2, ("head/",), 1e-3, "frozen")
    finetune = ("finetune", 3, ("backbone/top", "head/"), 1e-4, "batch")
    assert described("frozen") == [frozen]
    assert described("finetune") == [finetune]
    assert described("two_phase") == [frozen, finetune]


def test_a_warm_up_longer_than_its_phase_is_refused():
    with pytest.raises(
        UsageError, match=r"phase long: a warm-up of 5steps .* longer than the phase \(4 steps"
    ):
        plan_of("name=long; for=4steps; train=head; warmup=5steps")


@pytest.mark.parametrize("field", ["for=2steps", "train=head"])
def test_a_phase_needs_a_length_and_what_trains(field):
    with pytest.raises(UsageError, match="is missing"):
        phase_specs(PlanConfig(phase=(field,)))
