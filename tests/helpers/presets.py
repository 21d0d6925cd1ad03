"""Small presets of keras-hub, as `save_to_preset()` makes them, in folders of their own."""

import json
from pathlib import Path

SIZE_PX = 32
CONVERTER = {
    "image_size": [SIZE_PX, SIZE_PX],
    "scale": [0.017, 0.018, 0.019],
    "offset": [-2.1, -2.0, -1.8],
    "crop_to_aspect_ratio": True,
    "interpolation": "bicubic",
    "antialias": True,
}
_TRANSFORMER = {"patch_size": 8, "num_layers": 3, "hidden_dim": 16, "num_heads": 2}
_SHAPE = (SIZE_PX, SIZE_PX, 3)
ARGUMENTS = {
    "ViTBackbone": {**_TRANSFORMER, "mlp_dim": 32, "dropout_rate": 0.2, "image_shape": _SHAPE},
    "DeiTBackbone": {**_TRANSFORMER, "intermediate_dim": 32, "image_shape": _SHAPE},
    "DINOV2Backbone": {
        **_TRANSFORMER,
        "intermediate_dim": 32,
        "image_shape": _SHAPE,
        "position_embedding_shape": (48, 48, 3),
        "num_register_tokens": 2,
        "drop_path_rate": 0.2,
    },
    "DINOV3Backbone": {**_TRANSFORMER, "intermediate_dim": 32, "image_shape": _SHAPE},
    "SigLIPVisionEncoder": {**_TRANSFORMER, "intermediate_dim": 32, "image_shape": _SHAPE},
    "CLIPVisionEncoder": {**_TRANSFORMER, "intermediate_dim": 32, "image_shape": _SHAPE},
    "SwinTransformerBackbone": {
        "image_shape": _SHAPE,
        "patch_size": 2,
        "embed_dim": 8,
        "depths": (2, 2),
        "num_heads": (2, 2),
        "window_size": 4,
    },
    "EfficientNetBackbone": {
        "stackwise_width_coefficients": [1.0] * 3,
        "stackwise_depth_coefficients": [1.0] * 3,
        "stackwise_kernel_sizes": [3] * 3,
        "stackwise_num_repeats": [1, 2, 1],
        "stackwise_input_filters": [8, 8, 12],
        "stackwise_output_filters": [8, 12, 16],
        "stackwise_expansion_ratios": [1, 4, 4],
        "stackwise_strides": [1, 2, 2],
        "stackwise_block_types": ["fused", "fused", "unfused"],
        "stackwise_squeeze_and_excite_ratios": [0, 0, 0.25],
        "min_depth": 8,
        "dropout": 0.3,
        "include_stem_padding": True,
        "stem_conv_padding": "same",
        "activation": "swish",
    },
    "MobileNetBackbone": {
        "stackwise_expansion": [[16, 24], [24]],
        "stackwise_num_blocks": [2, 1],
        "stackwise_num_filters": [[8, 8], [16]],
        "stackwise_kernel_size": [[3, 3], [5]],
        "stackwise_num_strides": [[2, 1], [2]],
        "stackwise_se_ratio": [[0.25, None], [None]],
        "stackwise_activation": [["relu", "relu"], ["hard_swish"]],
        "stackwise_padding": [[1, 1], [2]],
        "output_num_filters": 32,
        "input_num_filters": 8,
        "depthwise_filters": 8,
        "depthwise_stride": 1,
        "depthwise_residual": True,
        "last_layer_filter": 32,
        "image_shape": _SHAPE,
    },
}
"""{class of keras-hub: arguments of a network that is built in a second}."""


def built(keras_hub, kind):
    """Returns a network of a class, with random weights, and its batch statistics off their first values."""
    network = getattr(keras_hub.models, kind)(**ARGUMENTS[kind])
    for weight in network.weights:
        if weight.path.endswith(("moving_mean", "moving_variance", "gamma", "beta", "bias")):
            weight.assign(weight + 0.05)
    return network


def saved(keras_hub, kind, folder, *, converter=CONVERTER):
    """Saves the preset of a class below a folder; returns (its folder, the network)."""
    network, place = built(keras_hub, kind), Path(folder) / kind
    network.save_to_preset(str(place))
    if converter is not None:
        content = {"class_name": "ImageConverter", "config": converter}
        (place / "image_converter.json").write_text(json.dumps(content))
    return place, network
