"""From a source of encoded pictures to batches: sources, splits, inspection, augmentation, pipeline.

Every random draw is a function of (seed, epoch, position); nothing here knows of a network.
"""
