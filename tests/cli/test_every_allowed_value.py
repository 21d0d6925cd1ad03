"""Values that the options allow make what they are for; others are refused in one line."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trainer.cli.config import Config
from trainer.cli.flags import parse
from trainer.cli.phase_specs import MOST_PHASES
from trainer.data.augment import make_augment
from trainer.loop.callbacks import Every
from trainer.loop.gradient_rules import make_limit
from trainer.loop.phases import make_plan
from trainer.model.heads import Head
from trainer.run.combinations import check_options
from trainer.run.feature_cache import FeatureCache
from trainer.values import Duration, UsageError, parse_calls

UNITS = st.sampled_from(["epochs", "steps", "examples", "epoch", "step", "example", "%"])
AMOUNTS = st.one_of(
    st.integers(0, 10**15 - 1).map(str),
    st.floats(0, 1e12, allow_nan=False).map(lambda x: f"{x:.20f}"),
    st.floats(0, 1e-12).map(lambda x: f"{x:.330f}"),
)
# What a person may type: digits of any alphabet, signs, brackets.
TEXTS = st.text("0123456789²٣.,%:[]() -+einfaxtro", max_size=12)
SMALL = settings(max_examples=100, deadline=None)


def allowed(**options):
    """Returns the configuration; None where it is refused, which takes one line."""
    told = ""
    try:
        config = Config().replace(**options)
        check_options(config)
    except UsageError as error:
        config, told = None, str(error)
    assert "\n" not in told
    return config


@SMALL
@given(AMOUNTS, UNITS)
@example("2000000", "examples")
@example("1234567.5", "steps")
def test_a_duration_is_read_back_as_it_was(amount, unit):
    duration = Duration.parse(amount + unit)
    assert Duration.parse(str(duration)) == duration
    steps = duration.to_steps(num_examples=100, batch_size=7, total_steps=1000)
    assert steps >= (duration.amount > 0)


@SMALL
@given(TEXTS)
@example("²epochs")
@example("9" * 5000 + "epochs")
@example("1e5steps")
def test_a_text_is_a_duration_or_refused(text):
    try:
        duration = Duration.parse(text)
    except UsageError:
        return
    assert 0 <= duration.amount < math.inf
    assert Duration.parse(str(duration)) == duration


@SMALL
@given(st.integers(2, MOST_PHASES), AMOUNTS, st.sampled_from(["epochs", "steps", "examples"]))
@example(3, "2000000", "examples")
def test_gradual_divides_every_length(number, amount, unit):
    # A share of the smallest numbers is none.
    if float(amount) < 1e-300:
        return
    config = Config().replace(schedule=f"gradual({number})", finetune_for=amount + unit)
    specs = config.phases
    assert len(specs) == number
    lengths = [spec.duration.amount for spec in specs[1:]]
    assert len(set(lengths)) == 1
    assert math.isclose(sum(lengths), float(amount), rel_tol=1e-9)
    plan = make_plan(specs, num_examples=1000, batch_size=32)
    every = Every(Duration.parse("10%"), plan, num_examples=1000, batch_size=32)
    assert every.next(0) > 0


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**63 - 1))
@example(1_790_000_000_000_000_000)
@example(2**63 - 1)
@example(2**31)
def test_every_seed_makes_a_head(seed):
    import tensorflow as tf

    assert Config().replace(seed=seed).run.seed == seed
    heads = [Head("mlp(4)", num_logits=3, dropout=0.0, seed=each) for each in (seed, seed, seed ^ 1)]
    for head in heads:
        head.build([None, 5])
    one, same, other = ([v.numpy() for v in head.variables] for head in heads)
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    # As a step draws dropout.
    step = tf.constant(1, tf.int64)
    assert len(tf.function(lambda: tf.random.experimental.stateless_fold_in([seed, 3], step))()) == 2


def test_a_seed_beyond_that_is_refused():
    with pytest.raises(UsageError, match=r"^--seed=9223372036854775808 must be below 2\*\*63$"):
        Config().replace(seed=2**63)


@pytest.mark.parametrize("changes", [{"seed": 10**320}, {"patience": 10**320}, {"head": f"knn({10**320})"}])
def test_a_number_beyond_all_floats_is_refused(changes):
    with pytest.raises(UsageError, match="must be"):
        check_options(Config().replace(**changes))


@SMALL
@given(
    st.sampled_from(["cosine", "linear", "exponential", "step", "one_cycle", "plateau", "constant"]),
    st.lists(st.one_of(st.integers(-3, 10**20), st.floats(allow_nan=False)), max_size=3),
    st.integers(1, 50),
)
def test_a_schedule_is_refused_or_has_a_rate_at_every_step(name, numbers, steps):
    text = f"{name}({','.join(map(repr, numbers))})" if numbers else name
    config = allowed(lr_schedule=text, schedule="frozen", frozen_for=f"{steps}steps")
    if config is None:
        return
    [phase] = make_plan(config.phases, num_examples=64, batch_size=32).phases
    for step in (0, steps // 2, steps - 1):
        assert 0 <= phase.learning_rate(step) < math.inf


@SMALL
@given(
    st.sampled_from(["frozen_learning_rate", "finetune_learning_rate", "weight_decay", "dropout"]),
    st.floats(),
)
@example("frozen_learning_rate", 1e300)
def test_a_number_is_refused_or_used_in_float32(name, value):
    config = allowed(**{name: value, "optimizer": "sgd"})
    if config is None:
        return
    assert np.isfinite(np.float32(config.flat()[name]))
    [frozen, _] = make_plan(config.phases, num_examples=64, batch_size=32).phases
    assert math.isfinite(frozen.learning_rate(0))
    # And so as a line of a flagfile.
    lines = [line for line in config.flagfile().splitlines() if line.startswith(f"--{name}=")]
    assert parse(["trainer", "--optimizer=sgd", *lines]).config.flat()[name] == value


@SMALL
@given(st.floats())
@example(1e308)
@example(1e300)
def test_a_limit_of_the_cache_is_refused_or_a_number_of_bytes(value):
    config = allowed(cache_limit_gb=value)
    if config:
        FeatureCache(SimpleNamespace(config=config), watch=None, between_batches=None)


@SMALL
@given(st.sampled_from(["clip_norm", "clip_value"]), st.floats(), st.floats(0, 1e20))
@example("clip_norm", 1e300, 1.0)
def test_a_limit_is_refused_or_leaves_finite_gradients(name, value, gradient):
    import tensorflow as tf

    config = allowed(**{name: value})
    limit = config and make_limit(norm=config.update.clip_norm, value=config.update.clip_value)
    if limit is None:
        return
    gradients = [tf.constant([gradient, -gradient / 2], tf.float32)]
    [limited] = limit(gradients, tf.linalg.global_norm(gradients))
    if np.isfinite(tf.linalg.global_norm(gradients)):
        assert np.all(np.isfinite(limited))


@SMALL
@given(st.text("abc_(),.0123456789-+*'\"[]{}", max_size=30))
@example("(" * 5000)
@example("-" * 100_000 + "1")
@example("flip(" + "9" * 5000 + ")")
def test_a_list_of_calls_is_read_or_refused(text):
    told = ""
    try:
        parse_calls(text)
        make_augment(text)
    except UsageError as error:
        told = str(error)
    assert "\n" not in told
