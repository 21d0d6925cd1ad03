"""Random initial weights that do not depend on the process or on any global seed."""

import tf_keras

_KERNELS = (
    ("kernel", "kernel_initializer"),
    ("depthwise_kernel", "depthwise_initializer"),
    ("pointwise_kernel", "pointwise_initializer"),
)


def reseed(network: tf_keras.Model, *, seed: int) -> None:
    """Draws the kernels of a network anew from each layer's own initializer, with fixed seeds.

    Setting the global seeds before building would do the same, but change every later draw of
    the program.
    """
    position = 0
    for layer in (part for outer in network.layers for part in (outer, *outer.submodules)):
        for attribute, initializer_name in _KERNELS:
            kernel = getattr(layer, attribute, None)
            initializer = getattr(layer, initializer_name, None)
            if kernel is None or initializer is None:
                continue
            config = initializer.get_config()
            if "seed" in config:
                # Equal seeds would give layers of one shape the same weights.
                config["seed"] = seed * 100_003 + position
                kernel.assign(type(initializer).from_config(config)(kernel.shape, dtype=kernel.dtype))
            position += 1
