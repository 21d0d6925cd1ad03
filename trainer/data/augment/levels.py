"""Changes of pictures in 8-bit levels, as the ImageOps of Pillow: images [B, H, W, 3] float32 in [0, 1].

Other than `auto_contrast`, they round to the nearest of 256 levels.
"""

import tensorflow as tf


def auto_contrast(images: tf.Tensor) -> tf.Tensor:
    """Stretches each channel of each picture to [0, 1]; one of a single value stays."""
    low = tf.reduce_min(images, [1, 2], keepdims=True)
    high = tf.reduce_max(images, [1, 2], keepdims=True)
    is_flat = high == low
    stretched = (images - low) / tf.where(is_flat, 1.0, high - low)
    return tf.where(is_flat, images, stretched)


def equalize(images: tf.Tensor) -> tf.Tensor:
    """Maps the levels of each channel of each picture so that each is about as frequent as the others."""
    height, width = tf.unstack(tf.shape(images)[1:3])
    pixels = tf.reshape(tf.cast(_levels(images), tf.int32), [-1, height * width, 3])
    # A row is a channel of a picture. No transpose: oneDNN complains of those of integers on some machines.
    rows = tf.concat(tf.unstack(pixels, num=3, axis=2), axis=0)
    counts = tf.math.bincount(rows, minlength=256, maxlength=256, axis=-1)
    up_to = tf.cumsum(counts, axis=1)
    # Pixels of the brightest level do not count, as in Pillow.
    brightest = tf.gather(counts, tf.reduce_max(rows, axis=1), batch_dims=1)
    step = (height * width - brightest)[:, None] // 255
    table = (up_to - counts + step // 2) // tf.maximum(step, 1)
    table = tf.where(step == 0, tf.range(256)[None], tf.minimum(table, 255))
    mapped = tf.split(tf.gather(table, rows, batch_dims=1), 3, axis=0)
    return _from_levels(tf.reshape(tf.stack(mapped, axis=2), tf.shape(images)))


def posterize(images: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
    """Keeps the highest `bits` [B] int32, 0 to 8, of the levels; the others become zero."""
    step = tf.cast(tf.bitwise.left_shift(tf.ones_like(bits), 8 - bits), tf.float32)[:, None, None, None]
    return _from_levels(tf.floor(_levels(images) / step) * step)


def solarize(images: tf.Tensor, threshold: tf.Tensor) -> tf.Tensor:
    """Turns levels from `threshold` [B] float32, 0 to 256, on into their negative."""
    levels = _levels(images)
    return _from_levels(tf.where(levels >= threshold[:, None, None, None], 255.0 - levels, levels))


def _levels(images: tf.Tensor) -> tf.Tensor:
    """Returns the nearest levels, float32, 0 to 255, also where resizing has overshot."""
    return tf.clip_by_value(tf.round(images * 255.0), 0.0, 255.0)


def _from_levels(levels: tf.Tensor) -> tf.Tensor:
    return tf.cast(levels, tf.float32) / 255.0
