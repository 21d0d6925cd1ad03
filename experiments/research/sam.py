"""Sharpness-aware minimization (Foret et al. 2021, arXiv 2010.01412)."""

from typing import Annotated

import tensorflow as tf

import trainer
from trainer.loop.gradient_rules import Compute, Computed, GradientRule, moved


@trainer.register.gradient_rule("sam", source="arXiv 2010.01412")
def sam(rho: Annotated[float, trainer.register.Bounds(above=0)] = 0.05) -> GradientRule:
    """Takes the gradients where the loss is largest within a distance of `rho`, to first order.

    An update costs two. The second pass sees the same dropout and moves no statistics of BatchNorm; loss and
    metrics are those at the weights. The distance is one for all that trains, taken from the gradients of the
    whole batch: with several devices, or --accumulate, this is SAM of that batch, and not the variant of the
    paper in which each device looks for its own worst place (section 4.1, m-sharpness).
    """

    def rule(compute: Compute, variables: list[tf.Variable]) -> Computed:
        here = compute()
        # Where all gradients are 0, nothing is moved.
        scale = rho / (tf.linalg.global_norm(here.gradients) + 1e-12)
        there = moved(variables, [scale * gradient for gradient in here.gradients], compute)
        return here._replace(gradients=there.gradients)

    return rule
