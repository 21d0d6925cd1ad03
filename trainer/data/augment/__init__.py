"""Random changes of training pictures: what is drawn for a picture, and what is done to a batch.

Drawing is a pure function of a seed, doing a pure function of pictures and draws: the same pixels
eagerly, in a pipeline, and in a kept view, whatever the batch. A new change is a registered function in a
file of this folder, or in a plugin.
"""

# All of them, so that they are registered.
from trainer.data.augment import colors, erasing, geometry, mixing, randaugment
from trainer.data.augment.chain import Augment, make_augment
from trainer.data.augment.change import AUGMENTATIONS, Change, Mixing

__all__ = [
    "AUGMENTATIONS",
    "Augment",
    "Change",
    "Mixing",
    "colors",
    "erasing",
    "geometry",
    "make_augment",
    "mixing",
    "randaugment",
]
