"""Random changes of training pictures: what is drawn for a picture, and what is done to a batch.

Drawing is a pure function of a seed, doing a pure function of pictures and draws: the same pixels
eagerly, in a pipeline, and in a kept view, whatever the batch. A new change is a function in a file of
this folder and a line in `AUGMENTATIONS`.
"""

from trainer.data.augment.chain import AUGMENTATIONS, Augment, make_augment

__all__ = ["AUGMENTATIONS", "Augment", "make_augment"]
