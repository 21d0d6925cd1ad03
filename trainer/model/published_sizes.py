"""The picture sizes that networks of TF Hub were published for, by the name in the handle."""

import re

# Sizes in px that networks were published for, by handle; the first match counts. For modules whose
# signature leaves the size open. Sources: the modules' pages on tfhub.dev; EfficientNet: arXiv
# 1905.11946 and its code; EfficientNetV2: arXiv 2104.00298; Inception: arXiv 1512.00567, 1602.07261.
PUBLISHED_SIZES_PX = (
    # The name ends with it: mobilenet_v2_100_224, mobilenet_v3_small_075_224.
    (r"mobilenet_v\d_(?:\w+_)?\d{3}_(\d{3})\b", 0),
    (r"nasnet_large", 331),
    (r"inception_v3|inception_resnet_v2|xception", 299),
    (r"efficientnet_?v2\w*[_-]s\b", 384),
    (r"efficientnet_?v2\w*[_-](?:m|l)\b", 480),
    (r"efficientnet_?v2\w*[_-]xl\b", 512),
    (r"efficientnet_?v2\w*[_-]b0\b", 224),
    (r"efficientnet_?v2\w*[_-]b1\b", 240),
    (r"efficientnet_?v2\w*[_-]b2\b", 260),
    (r"efficientnet_?v2\w*[_-]b3\b", 300),
    (r"efficientnet[/_-]b1\b", 240),
    (r"efficientnet[/_-]b2\b", 260),
    (r"efficientnet[/_-]b3\b", 300),
    (r"efficientnet[/_-]b4\b", 380),
    (r"efficientnet[/_-]b5\b", 456),
    (r"efficientnet[/_-]b6\b", 528),
    (r"efficientnet[/_-]b7\b", 600),
    (r"efficientnet[/_-](?:lite0|b0)\b|resnet_?(?:v\d_)?\d+|nasnet_mobile|inception_v[12]|bit[/_]", 224),
)


def published_size(handle: str) -> int:
    """Returns the side in px that a network of this name was published for, or 0."""
    for pattern, size in PUBLISHED_SIZES_PX:
        match = re.search(pattern, handle.lower())
        if match:
            return size or int(match[1])
    return 0
