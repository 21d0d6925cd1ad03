"""Learning curves and the picture of the learning-rate finder: averages by hand, and what was drawn."""

import json

import numpy as np
import pytest
import tensorflow as tf

from trainer.report import curves, figures
from trainer.report.curves import Point, accuracy_limits, epoch_means, learning_curves, read_metrics

PHASES = [("frozen", 0.0), ("finetune", 2.0)]


def line(split, epoch, loss, accuracy):
    return {"split": split, "step": round(4 * epoch), "epoch": epoch, "loss": loss, "accuracy": accuracy}


# Four updates an epoch, logged after three, and at the end of each phase.
LINES = [
    line("train", 0.75, 2.0, 0.4),
    line("validation", 1.0, 1.0, 0.9),
    line("train", 1.5, 1.0, 0.8),
    line("train", 2.0, 0.6, 0.9),
    line("validation", 2.0, 0.5, 0.96),
    line("train", 2.75, 0.4, 0.95),
    line("train", 3.0, 0.2, 0.99),
    line("validation", 3.0, 0.4, 0.98),
    line("test", 3.0, 0.45, 0.97),
]


@pytest.fixture
def drawn(monkeypatch):
    """drawn(function, ...) -> the Figure that a function of bytes drew."""

    def draw(function, *arguments, **options):
        kept = []
        for module in (curves, figures):
            monkeypatch.setattr(module, "png_bytes", lambda figure: kept.append(figure) or b"")
        function(*arguments, **options)
        return kept[0]

    return draw


def strong(axes):
    """Returns {first word of the label: points} of what is not faint."""
    named = [line for line in axes.lines if not line.get_label().startswith("_")]
    return {line.get_label().split()[0].rstrip(","): line.get_xydata().tolist() for line in named}


def test_averages_of_epochs():
    points = [Point(0.75, 2.0), Point(1.5, 1.0), Point(2.0, 0.6)]
    # Epoch 1 is three quarters of the first number and one of the second; epoch 2 half and half.
    assert epoch_means(points) == [pytest.approx((1.0, 1.75)), pytest.approx((2.0, 0.8))]
    assert epoch_means([]) == []
    assert epoch_means([Point(0.25, 3.0)]) == [(0.25, 3.0)]
    # Logged less than once an epoch.
    assert epoch_means([Point(2.0, 3.0), Point(3.0, 1.0)]) == [(1.0, 3.0), (2.0, 3.0), (3.0, 1.0)]


def test_averages_know_when_phases_begin():
    # The first phase was ended at 1.5 and its last epochs left out; the second begins at 4.
    points = [Point(1.0, 2.0), Point(1.5, 1.0), Point(5.0, 0.5)]
    assert epoch_means(points, starts=[0.0, 4.0]) == [(1.0, 2.0), (2.0, 1.0), (5.0, 0.5)]
    # One begins within an epoch.
    points = [Point(0.5, 2.0), Point(1.0, 1.0)]
    assert epoch_means(points, starts=[0.0, 0.5]) == [(0.5, 2.0), (1.0, 1.0)]


def test_what_is_drawn(drawn):
    figure = drawn(learning_curves, LINES, phases=PHASES, title="cats $and$ dogs")
    loss, accuracy = figure.axes
    assert strong(loss) == {
        "training": [[1, pytest.approx(1.75)], [2, pytest.approx(0.8)], [3, pytest.approx(0.35)]],
        "validation": [[1, 1.0], [2, 0.5], [3, 0.4]],
        "test": [[3, 0.45]],
    }
    assert strong(accuracy) == {
        "training": [[1, pytest.approx(50)], [2, pytest.approx(85)], [3, pytest.approx(96)]],
        "validation": [[1, 90], [2, 96], [3, 98]],
        "test": [[3, 97]],
    }
    faint = [line for line in loss.lines if line.get_alpha()]
    assert [line.get_xydata().tolist() for line in faint] == [
        [[0.75, 2.0], [1.5, 1.0], [2.0, 0.6], [2.75, 0.4], [3.0, 0.2]]
    ]
    labels = [text.get_text() for text in accuracy.get_legend().get_texts()]
    assert labels[1:] == ["validation, at best 98.00 % (epoch 3)", "test 97.00 %"]
    assert loss.get_legend().get_texts()[1].get_text() == "validation, at best 0.4 (epoch 3)"
    colours = [{line.get_label().split()[0]: line.get_color() for line in axes.lines} for axes in figure.axes]
    assert colours[0]["training,"] == colours[1]["training,"] == faint[0].get_color()
    assert colours[0]["validation,"] == colours[1]["validation,"] != colours[0]["training,"]
    # One line in each panel, where the second phase begins.
    for axes in figure.axes:
        upright = [line.get_xdata() for line in axes.lines if line.get_linestyle() == "--"]
        assert upright == [[2.0, 2.0]]
    [name] = loss.texts
    assert name.get_text() == "start of finetune"
    # Above the axes, where no curve is, over its line, and below the legend.
    x, y = name.get_position()
    assert (x, y) == (pytest.approx(2.0 / (1.02 * 3.0)), pytest.approx(1.012))
    figure.draw_without_rendering()
    axes_top, legend = loss.get_window_extent().y1, loss.get_legend().get_window_extent()
    assert axes_top <= name.get_window_extent().y0 < name.get_window_extent().y1 <= legend.y0
    assert figure.get_suptitle() == "cats $and$ dogs"


def test_every_phase_but_the_first_is_named(drawn):
    phases = [("head", 0.0), ("top", 1.0), ("half", 2.0), ("all", 2.9)]
    figure = drawn(learning_curves, LINES, phases=phases, title="gradual")
    texts = figure.axes[0].texts
    assert [text.get_text() for text in texts] == ["start of top", "start of half", "start of all"]
    figure.draw_without_rendering()
    axes, boxes = figure.axes[0].get_window_extent(), [text.get_window_extent() for text in texts]
    for box in boxes:
        assert axes.x0 <= box.x0 < box.x1 <= axes.x1 + 1
        assert box.y0 >= axes.y1
    # Close to one another they stand in two rows.
    near = drawn(learning_curves, LINES, phases=[*phases[:3], ("all", 2.1)], title="gradual").axes[0]
    near.figure.draw_without_rendering()
    first, second, third = (text.get_window_extent() for text in near.texts)
    assert not second.overlaps(third)
    assert first.y0 == second.y0 < third.y0 < third.y1 <= near.get_legend().get_window_extent().y0


def test_the_start_of_a_phase_has_as_many_digits_as_the_lines(drawn):
    # The first phase ends after 1 of 6 updates; its line says 0.1667, which is beyond 1/6.
    lines = [line("train", 0.1667, 3.0, 0.1), line("train", 1.0, 1.0, 0.5)]
    figure = drawn(learning_curves, lines, phases=[("a", 0.0), ("b", 1 / 6)], title="t")
    assert strong(figure.axes[0])["training"] == [[0.1667, 3.0], [1.0, pytest.approx(1.0)]]


def test_two_points_of_accuracy_are_far_apart():
    means = [Point(1, 0.4), Point(2, 0.97), Point(3, 0.99)]
    low, high = accuracy_limits(means, [Point(1, 0.96), Point(2, 0.98)])
    assert (low, high) == pytest.approx((0.955, 0.995))
    # All the same, only a first epoch, nothing.
    assert accuracy_limits([], [Point(1, 0.5)]) == pytest.approx((0.495, 0.505))
    assert accuracy_limits([Point(1, 0.5)], []) == pytest.approx((0.495, 0.505))
    assert accuracy_limits([], []) == pytest.approx((-0.06, 1.06))


@pytest.mark.parametrize(
    "lines",
    [
        [],
        LINES[:1],
        LINES[1:2],
        LINES[-1:],
        [line("train", 0.0, 1.0, 0.0)],
        [line("validation", 1.0, float("nan"), 0.2), line("train", 1.0, float("inf"), 0.2)],
        [{"split": "train", "step": 3}, {"split": "validation", "step": 3, "epoch": 1.0}],
    ],
)
@pytest.mark.parametrize("phases", [[], PHASES])
@pytest.mark.filterwarnings("error")
def test_little_or_nothing_is_a_picture_too(lines, phases):
    png = learning_curves(lines, phases=phases, title="")
    assert tf.io.decode_png(png).shape == (800, 800, 4)


def test_the_same_lines_give_the_same_bytes():
    # Names are no formulas, not even wrong ones.
    phases = [("$a{$", 0.0), ("$b{$", 2.0)]
    one, two = (learning_curves(LINES, phases=phases, title="$run{$") for _ in range(2))
    assert one == two
    assert b"matplotlib" not in one.lower()


def test_metrics_are_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    path.write_text("\n".join(map(json.dumps, LINES)) + '\n{"split": "tr')
    assert read_metrics(path) == LINES


RATES = np.geomspace(1e-5, 1e-1, 5)
LOSSES = np.array([2.0, 2.2, 1.0, 0.8, 50.0])
SMOOTHED = np.array([2.0, 2.1, 1.6, 1.2, 20.0])


def test_the_picture_of_the_finder(drawn):
    figure = drawn(
        figures.learning_rate_figure, RATES, LOSSES, SMOOTHED, proposed=1e-3, title="phase $frozen$"
    )
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    raw, smooth, mark, point = axes.lines
    np.testing.assert_array_equal(raw.get_xydata(), np.stack([RATES, LOSSES], axis=1))
    np.testing.assert_array_equal(smooth.get_xydata(), np.stack([RATES, SMOOTHED], axis=1))
    assert raw.get_alpha() < 0.5 < (smooth.get_alpha() or 1.0)
    assert mark.get_xdata() == [1e-3, 1e-3]
    assert point.get_xydata().tolist() == [[1e-3, pytest.approx(1.6)]]
    assert axes.get_legend().get_texts()[2].get_text() == "proposed: 0.001"
    # From 0.8 to 2.1, with some room; what it rises to at the end is left out.
    assert axes.get_ylim() == pytest.approx((0.8 - 0.05 * 1.3, 2.1 + 0.3 * 1.3))


def test_the_finder_draws_the_same_bytes_and_what_is_no_number():
    one, two = (
        figures.learning_rate_figure(RATES, LOSSES, SMOOTHED, proposed=1e-3, title="$t{$") for _ in range(2)
    )
    assert one == two
    assert tf.io.decode_png(one).shape == (500, 800, 4)
    nothing = np.full(5, np.nan)
    assert figures.learning_rate_figure(RATES, nothing, nothing, proposed=1e-3, title="t")
    assert figures.learning_rate_figure(RATES[:1], LOSSES[:1], SMOOTHED[:1], proposed=1e-3, title="t")
