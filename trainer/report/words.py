"""A score in words, whatever the labels are."""

from collections.abc import Mapping
from typing import Any

SIGNIFICANT = 0.05
"""The p-value up to which a difference is claimed."""


def told_score(values: Mapping[str, Any]) -> str:
    """Returns e.g. 'test accuracy 91.20 % (342 of 375 right)', or of several labels their mean precision too.

    Args:
      values: what metrics.json of a report holds.
    """
    right = f"{values['num_correct']:,} of {values['num_examples']:,}"
    if values.get("several_labels"):
        return (
            f"{values['split']} {told_ranking(values)}; all labels right on "
            f"{100 * values['accuracy']:.2f} % ({right})"
        )
    right = f"{values['num_correct']} of {values['num_examples']}"
    return f"{values['split']} accuracy {100 * values['accuracy']:.2f} % ({right} right)"


def told_bought(pretrained: Mapping[str, Any]) -> str:
    """Returns whether a run and the linear probe beside it differ by more than chance; empty: nobody knows.

    Args:
      pretrained: what metrics.json of a report holds by that name.
    """
    probe = pretrained["linear_probe"]
    if "p_value" not in probe:
        return ""
    run, other = probe["only_run"], probe["only_this"]
    if not run + other:
        return "the run and the linear probe have the same pictures right"
    verdict = "more than chance" if probe["p_value"] <= SIGNIFICANT else "that may be chance"
    return (
        f"of pictures that only one of the two has right, the run has {run:,} and the linear probe "
        f"{other:,}: {verdict} (p={probe['p_value']:.2g})"
    )


def told_metrics(values: Mapping[str, Any]) -> str:
    """Returns e.g. 'top(k=2) 0.9800, confidence 0.8712', the means of --metrics; empty: there are none."""
    found = values.get("metrics", {})
    return ", ".join(
        f"{name} {'not finite' if mean is None else f'{mean:.4f}'}" for name, mean in found.items()
    )


def told_ranking(values: Mapping[str, Any]) -> str:
    """Returns e.g. 'mAP 0.8412, macro F1 0.772, micro F1 0.801' of examples with any number of labels."""
    mean = "unknown" if values["map"] is None else f"{values['map']:.4f}"
    return f"mAP {mean}, macro F1 {values['macro']['f1']:.3f}, micro F1 {values['micro']['f1']:.3f}"
