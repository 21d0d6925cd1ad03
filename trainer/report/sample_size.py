"""The figure of a learning curve: accuracy over the number of training pictures."""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from trainer.metrics.sample_size import Outlook
from trainer.report.figures import png_bytes


def sample_size_figure(
    sizes: Sequence[int], accuracies: Sequence[np.ndarray], ahead: Outlook, *, split: str, title: str
) -> bytes:
    """Draws the accuracy after fits to more and more pictures, and where twice of them lead.

    Args:
      sizes: [S] numbers of training pictures, rising.
      accuracies: [S] arrays [draws].
      ahead: what twice the last size would buy.
      split: that was scored.
      title: stands above.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("log")
    means = [100 * of.mean() for of in accuracies]
    for size, of in zip(sizes, accuracies, strict=True):
        axes.plot([size] * len(of), 100 * of, color="tab:blue", linestyle="", marker="o", alpha=0.35)
    axes.plot(sizes, means, color="tab:blue", linewidth=2, label="mean of the draws")
    then = means[-1] + 100 * ahead.gain
    axes.plot([sizes[-1], ahead.num_train], [means[-1], then], color="tab:red", linestyle="--", linewidth=1)
    axes.errorbar(
        [ahead.num_train],
        [then],
        yerr=[[100 * (ahead.gain - ahead.low)], [100 * (ahead.high - ahead.gain)]],
        color="tab:red",
        marker="o",
        capsize=4,
        label="expected of twice the pictures, 95 % interval",
    )
    ticks = [*sizes, ahead.num_train]
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(color="0.9")
    axes.set(xlabel="training pictures", ylabel=f"{split} accuracy, %")
    axes.set_title("\n".join(textwrap.wrap(title, 80)), fontsize=10, parse_math=False)
    axes.legend(loc="lower right")
    return png_bytes(figure)
