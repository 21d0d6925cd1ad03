"""Pretrained networks behind one interface.

A new kind of backbone is a registered function in a file of this folder, or in a plugin. What it returns is
often a `KerasBackbone`.
"""

# All of them, so that they are registered.
from trainer.model.backbones import efficientnet_lite, hub, keras, kerashub
from trainer.model.backbones import hub as savedmodel
from trainer.model.backbones.base import (
    BACKBONES,
    Backbone,
    keep_rounding,
    libraries_of,
    open_backbone,
    open_for_checkpoint,
)
from trainer.model.backbones.keras import KerasBackbone
from trainer.model.initializers import reseed

__all__ = [
    "BACKBONES",
    "Backbone",
    "KerasBackbone",
    "efficientnet_lite",
    "hub",
    "keep_rounding",
    "keras",
    "kerashub",
    "libraries_of",
    "open_backbone",
    "open_for_checkpoint",
    "reseed",
    "savedmodel",
]
