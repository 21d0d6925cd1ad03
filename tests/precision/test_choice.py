"""--precision=auto, with steps whose time is known by hand."""

import hashlib
import itertools
import json

import pytest
import tensorflow as tf

from tests.precision.test_rewriter import options_here
from trainer.precision import choice as choice_module
from trainer.precision.choice import Choice, choose, machine, measure

HERE = {"cpu": "an abacus"}
KEY = {"backbone": "abc", "batch_size": 32}


class Steps:
    """Hand-made steps on a clock of their own: `secs` is {precision: seconds of each, the last for ever}."""

    def __init__(self, **secs):
        self.secs = {p: itertools.chain(s, itertools.repeat(s[-1])) for p, s in secs.items()}
        self.now, self.made, self.log = 0.0, [], []

    def clock(self):
        return self.now

    def make(self, precision):
        self.made.append(precision)

        def step():
            self.now += next(self.secs[precision])
            self.log.append(precision)

        return step

    def measure(self, **options):
        return measure(
            self.make,
            what="forward, batch 32",
            candidates=list(self.secs),
            here=HERE,
            clock=self.clock,
            **options,
        )


@pytest.mark.parametrize(
    ("float32", "bfloat16", "chosen"),
    [(100, 50, "bfloat16"), (100, 90, "bfloat16"), (100, 91, "float32"), (100, 100, "float32")],
)
def test_sixteen_bits_must_save_a_tenth(float32, bfloat16, chosen):
    found = Steps(float32=[float32], bfloat16=[bfloat16]).measure()
    assert found.precision == chosen
    assert found.step_secs == {"float32": float32, "bfloat16": bfloat16}
    assert (found.machine, found.remembered) == (HERE, False)


def test_the_fastest_of_three_is_taken():
    assert Steps(float32=[100], bfloat16=[60], float16=[50]).measure().precision == "float16"


def test_the_first_step_does_not_count():
    assert Steps(float32=[1, 100], bfloat16=[9000, 50]).measure().precision == "bfloat16"


def test_one_disturbed_step_does_not_count():
    found = Steps(float32=[0, 100], bfloat16=[0, 900, 50]).measure()
    assert found.step_secs == {"float32": 100, "bfloat16": 50}


def test_they_take_turns_and_neither_is_always_first():
    steps = Steps(float32=[10], bfloat16=[5])
    steps.measure()
    rounds = steps.log[2:]
    assert rounds == ["float32", "bfloat16", "bfloat16", "float32"]


@pytest.mark.parametrize(("secs", "rounds"), [(10.0, 2), (0.5, 3), (0.001, 20)])
def test_rounds_fill_the_budget_between_their_limits(secs, rounds):
    steps = Steps(float32=[60, secs], bfloat16=[60, secs])
    steps.measure(budget_secs=3.0)
    assert len(steps.log) == 2 * (1 + rounds)


def test_each_step_runs_in_its_own_arithmetic():
    seen = {}

    def make(precision):
        return lambda: seen.update({precision: options_here()})

    candidates = ("float32", "bfloat16", "float16")
    measure(make, what="", candidates=candidates, here=HERE, budget_secs=0)
    on = {
        p: {f.name for f, value in o.ListFields() if "auto_mixed" in f.name and value == o.ON}
        for p, o in seen.items()
    }
    assert on == {
        "float32": set(),
        "bfloat16": {"auto_mixed_precision_onednn_bfloat16"},
        "float16": {"auto_mixed_precision"},
    }


def test_sixteen_bits_that_fail_are_left_out(caplog):
    def make(precision):
        return (lambda: None) if precision == "float32" else (lambda: tf.debugging.assert_equal(1, 2))

    with caplog.at_level("INFO", "trainer"):
        found = measure(make, what="", candidates=("float32", "bfloat16"), here=HERE, budget_secs=0)
    assert (found.precision, list(found.step_secs)) == ("float32", ["float32"])
    assert "bfloat16 is left out, its first step failed (InvalidArgumentError)" in caplog.text


def make_choice(precision, step_secs, **changes):
    changed = {"what": "forward, batch 32", "measured_at": "2026-11-20T10:00:00+00:00", **changes}
    return Choice(precision, step_secs, machine=HERE, **changed)


@pytest.mark.parametrize(
    ("choice", "line"),
    [
        (
            make_choice("bfloat16", {"float32": 1.067, "bfloat16": 0.2842}),
            "bfloat16, measured 284 ms a step against 1,067 in float32 (forward, batch 32)",
        ),
        (
            make_choice("float32", {"float32": 0.2, "bfloat16": 0.19, "float16": 0.3}),
            "float32, measured 200 ms a step against 190 in bfloat16 and 300 in float16 "
            "(forward, batch 32; 16 bits must save a tenth)",
        ),
        (
            make_choice("float32", {"float32": 0.00123, "bfloat16": 0.0042}, remembered=True),
            "float32, measured 1.23 ms a step against 4.2 in bfloat16 "
            "(forward, batch 32; remembered from 2026-11-20)",
        ),
        (make_choice("float32", {}), "float32, the only one that works on this machine"),
    ],
)
def test_it_is_said_in_a_line(choice, line):
    assert choice.describe() == line


@pytest.fixture
def two(monkeypatch):
    """A machine that computes in float32 and bfloat16, whatever this one is."""
    monkeypatch.setattr(choice_module, "supported", lambda: ("float32", "bfloat16"))
    monkeypatch.setattr(choice_module, "machine", lambda: HERE)


def choose_once(folder, *, key=KEY):
    """Returns (choice, the precisions that were measured for it)."""
    steps = Steps(float32=[100], bfloat16=[50], float16=[10])
    found = choose(steps.make, what="forward", key=key, cache_dir=str(folder), clock=steps.clock)
    return found, steps.made


def kept_file(folder):
    (file,) = (folder / "precision").iterdir()
    return file


def test_the_second_run_remembers(two, tmp_path):
    first, measured = choose_once(tmp_path)
    assert measured == ["float32", "bfloat16"]
    second, measured = choose_once(tmp_path)
    assert measured == []
    assert (first == second, first.remembered, second.remembered) == (True, False, True)
    kept = json.loads(kept_file(tmp_path).read_text())
    assert (kept["precision"], kept["key"], kept["machine"]) == ("bfloat16", KEY, HERE)


def test_without_cache_dir_the_folder_of_all_caches_is_used(two, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    choose(Steps(float32=[2], bfloat16=[1]).make, what="", key=KEY)
    assert kept_file(tmp_path / "hub-trainer").suffix == ".json"


def test_another_key_or_machine_is_measured_anew(two, tmp_path, monkeypatch):
    choose_once(tmp_path)
    assert choose_once(tmp_path, key={**KEY, "batch_size": 64})[1]
    monkeypatch.setattr(choice_module, "machine", lambda: {"cpu": "two abaci"})
    assert choose_once(tmp_path)[1]
    assert len(list((tmp_path / "precision").iterdir())) == 3


def test_what_was_measured_in_another_way_is_not_taken(two, tmp_path):
    """Before `MEASUREMENT`, steps that did nothing may have been timed."""
    digest = hashlib.sha256(json.dumps([KEY, HERE], sort_keys=True).encode()).hexdigest()
    (tmp_path / "precision").mkdir()
    nonsense = {**make_choice("float16", {"float32": 1e-4, "float16": 1e-6}).to_json(), "key": KEY}
    (tmp_path / "precision" / f"{digest[:32]}.json").write_text(json.dumps(nonsense))
    found, measured = choose_once(tmp_path)
    assert (found.precision, measured) == ("bfloat16", ["float32", "bfloat16"])


@pytest.mark.parametrize("now", [("float32", "float16"), ("float32", "bfloat16", "float16")])
def test_a_choice_among_others_than_there_are_is_ignored(two, tmp_path, monkeypatch, now):
    choose_once(tmp_path)
    monkeypatch.setattr(choice_module, "supported", lambda: now)
    found, measured = choose_once(tmp_path)
    assert (found.precision, measured) == ("float16", list(now))


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: '"bfloat16"',
        lambda text: "{}",
        lambda text: text.replace('"precision": "bfloat16"', '"precision": "float64"'),
        lambda text: text.replace('"float32": 100.0', '"float32": "100"'),
        lambda text: text.replace('"float32": 100.0', '"float32": NaN'),
        lambda text: text.replace('"what"', '"why"'),
        lambda text: text.replace('"forward"', "\x00"),
    ],
)
def test_a_damaged_file_is_ignored_and_written_again(two, tmp_path, damage):
    choose_once(tmp_path)
    file = kept_file(tmp_path)
    whole = file.read_text()
    assert damage(whole) != whole
    file.write_text(damage(whole))
    assert choose_once(tmp_path)[1] == ["float32", "bfloat16"]
    assert choose_once(tmp_path)[1] == []


def test_a_file_that_cannot_be_written_is_no_failure(two, tmp_path):
    choose_once(tmp_path)
    file = kept_file(tmp_path)
    file.unlink()
    file.mkdir()
    assert choose_once(tmp_path)[0].precision == "bfloat16"
    assert list((tmp_path / "precision").iterdir()) == [file]
    (tmp_path / "plain").write_text("no folder")
    assert choose_once(tmp_path / "plain")[0].precision == "bfloat16"


def test_where_there_is_no_choice_nothing_is_measured(two, tmp_path, monkeypatch):
    monkeypatch.setattr(choice_module, "supported", lambda: ("float32",))
    found, measured = choose_once(tmp_path)
    assert (found.precision, found.step_secs, measured) == ("float32", {}, [])
    assert list(tmp_path.iterdir()) == []


def test_the_machine_is_what_the_speed_depends_on(monkeypatch):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    here = machine()
    assert json.loads(json.dumps(here)) == here
    assert (here["tensorflow"], here["cores"] >= 1, here["processor"] != "") == (tf.__version__, True, True)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    changed = machine()
    assert changed["environment"].pop("ONEDNN_MAX_CPU_ISA") == "AVX2"
    assert changed == here
