"""Factors on the learning rates of single variables: by regexes over names, and by depth."""

import math
import re
from collections.abc import Sequence

from trainer.model.layers import Layer
from trainer.values import UsageError, as_number

NUM_GROUPS = 12
"""Groups of layers that --layer_decay makes of a network."""


def check_rules(rules: Sequence[str]) -> None:
    """Makes sure that texts of --lr_multiplier can be read, before there is a network to match them with.

    Raises:
      UsageError: one is not REGEX=FACTOR.
    """
    for rule in rules:
        _parse(rule)


def multipliers(
    names: Sequence[str],
    *,
    all_names: Sequence[str],
    rules: Sequence[str],
    layer_decay: float,
    layers: Sequence[Layer],
) -> dict[str, float]:
    """Returns {name: factor on its learning rate}, the product of what both options say.

    Args:
      names: variables that train.
      all_names: all variables of the model, one of which each rule must match.
      rules: 'REGEX=FACTOR', matched from the start of a name; the first that matches counts, and where
        none does the factor is 1.
      layer_decay: see `depth_multipliers`; 1 for none.
      layers: of the model, in order of depth.

    Raises:
      UsageError: a rule cannot be read or matches nothing, or there is no depth to go by.
    """
    parsed = {rule: _parse(rule) for rule in rules}
    for rule, (pattern, _) in parsed.items():
        if not any(map(pattern.match, all_names)):
            raise UsageError(
                f"--lr_multiplier={rule}: matches no variable; names are such as {_some(all_names)}"
            )
    by_depth = depth_multipliers(all_names, layer_decay=layer_decay, layers=layers)
    by_rule = {
        name: next((factor for pattern, factor in parsed.values() if pattern.match(name)), 1.0)
        for name in names
    }
    return {name: factor * by_depth.get(name, 1.0) for name, factor in by_rule.items()}


def depth_multipliers(
    all_names: Sequence[str], *, layer_decay: float, layers: Sequence[Layer]
) -> dict[str, float]:
    """Returns {name: factor} of the backbone's variables: the deeper below the head, the lower.

    Discriminative fine-tuning (Howard & Ruder, 2018, arXiv 1801.06146, section 3.2), in groups of layers as
    in ConvNeXt (Liu et al., 2022, arXiv 2201.03545, appendix A): the layers that have variables make 12
    groups as equal as they can be, or one each where there are fewer than 12. The topmost group gets
    `layer_decay`, each one below it that much of what the one above it gets; the head has 1.

    Args:
      all_names: all variables of the model.
      layer_decay: above 0, at most 1, which is none.
      layers: of the model, in order of depth.

    Raises:
      UsageError: variables of the backbone are in no layer.
    """
    if layer_decay == 1:
        return {}
    backbone = [name for name in all_names if name.startswith("backbone/")]
    grouped = [layer for layer in layers if any(name.startswith("backbone/") for name in layer.variables)]
    if not {name for layer in grouped for name in layer.variables}.issuperset(backbone):
        raise UsageError(
            f"--layer_decay={layer_decay:g}: the order of layers in this network is not recorded, as in all "
            "hub modules; say it by --lr_multiplier=REGEX=FACTOR over variable names, such as "
            f"{_some(backbone)}"
        )
    groups = min(NUM_GROUPS, len(grouped))
    return {
        name: layer_decay ** (groups - i * groups // len(grouped))
        for i, layer in enumerate(grouped)
        for name in layer.variables
    }


def _parse(rule: str) -> tuple[re.Pattern[str], float]:
    # A name may hold a '=', a number cannot.
    regex, equals, number = rule.rpartition("=")
    try:
        factor = as_number(number)
    except ValueError:
        factor = math.nan
    if not equals or not regex.strip() or not (math.isfinite(factor) and factor > 0):
        raise UsageError(
            f"--lr_multiplier={rule}: must be REGEX=FACTOR with a factor above 0, such as backbone/=0.1"
        )
    try:
        return re.compile(regex.strip()), factor
    except re.error as error:
        raise UsageError(f"--lr_multiplier={rule}: {regex} is not a regular expression ({error})") from None


def _some(names: Sequence[str]) -> str:
    return ", ".join((names[0], names[len(names) // 2], names[-1]))
