"""The picture sizes that networks of TF Hub were published for, by the name in the handle."""

import re

# Sizes in px that networks were published for, by handle; the first match counts. For modules whose
# signature leaves the size open. Sources: the modules' pages on tfhub.dev; EfficientNet: arXiv
# 1905.11946 and its code; EfficientNetV2: arXiv 2104.00298; Inception: arXiv 1512.00567, 1602.07261.
PUBLISHED_SIZES_PX = (
    # The name ends with it: mobilenet_v2_100_224, mobilenet_v3_small_075_224.
    (r"mobilenet_v\d_(?:\w+_)?\d{3}_(\d{3})(?![a-z0-9])", 0),
    (r"nasnet_large", 331),
    (r"inception_v3|inception_resnet_v2|xception", 299),
    (r"efficientnet_?v2\w*_s(?![a-z0-9])", 384),
    (r"efficientnet_?v2\w*_(?:m|l)(?![a-z0-9])", 480),
    (r"efficientnet_?v2\w*_xl(?![a-z0-9])", 512),
    (r"efficientnet_?v2\w*_b0(?![a-z0-9])", 224),
    (r"efficientnet_?v2\w*_b1(?![a-z0-9])", 240),
    (r"efficientnet_?v2\w*_b2(?![a-z0-9])", 260),
    (r"efficientnet_?v2\w*_b3(?![a-z0-9])", 300),
    (r"efficientnet[/_]b1(?![a-z0-9])", 240),
    (r"efficientnet[/_]b2(?![a-z0-9])", 260),
    (r"efficientnet[/_]b3(?![a-z0-9])", 300),
    (r"efficientnet[/_]b4(?![a-z0-9])", 380),
    (r"efficientnet[/_]b5(?![a-z0-9])", 456),
    (r"efficientnet[/_]b6(?![a-z0-9])", 528),
    (r"efficientnet[/_]b7(?![a-z0-9])", 600),
    (
        r"efficientnet[/_](?:lite0|b0)(?![a-z0-9])|resnet_?(?:v\d_)?\d+|nasnet_mobile|inception_v[12]|bit[/_]",
        224,
    ),
)


def published_size(handle: str) -> int:
    """Returns the side in px that a network of this name was published for, or 0.

    Handles of Kaggle, such as google/mobilenet-v2/tensorFlow2/100-224-feature-vector/2, have dashes, and the
    framework between the network and its variation.
    """
    name = re.sub(r"/tensorflow\d/", "_", handle.lower().replace("-", "_"))
    for pattern, size in PUBLISHED_SIZES_PX:
        match = re.search(pattern, name)
        if match:
            return size or int(match[1])
    return 0
