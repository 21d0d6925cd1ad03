"""What a module is called: an address, a Kaggle handle, a path; and the size it was published for."""

import re

from trainer.paths import local_path, scheme_of
from trainer.values import UsageError

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
    (r"efficientnet[/_](?:lite1|b1)(?![a-z0-9])", 240),
    (r"efficientnet[/_](?:lite2|b2)(?![a-z0-9])", 260),
    (r"efficientnet[/_]lite3(?![a-z0-9])", 280),
    (r"efficientnet[/_](?:lite4|b3)(?![a-z0-9])", 300),
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


# What kagglehub calls a model of Kaggle.
_KAGGLE_HANDLE = re.compile(
    r"(?P<model>[\w-]+/[\w.-]+)/(?P<framework>tensorflow[12]|tf-?lite|tfjs|keras|pytorch|jax|flax|transformers"
    r"|other)/(?P<variation>[\w.-]+)(?P<version>/[0-9]+)?",
    re.IGNORECASE,
)
# What may be meant for one: two parts or more of which none is that of a path alone.
_LIKE_A_HANDLE = re.compile(r"[\w-]+(/[\w.-]*[\w-]){1,4}")


def module_address(handle: str, *, flag: str, remote: bool = True) -> str:
    """Returns the address that a module comes from; '' where it is a path on this machine.

    Args:
      handle: an address, a Kaggle handle such as google/mobilenet-v2/tensorFlow2/NAME/2, or a path.
      flag: what the user wrote, for messages.
      remote: whether addresses and Kaggle handles are meant, too.

    Raises:
      UsageError: it is none of them, or what has its name holds no SavedModel.
    """
    if scheme_of(handle) in ("http", "https"):
        if not remote:
            raise UsageError(
                f"{flag}: expected a folder or an archive; of an address, --backbone=hub:{handle}"
            )
        return handle
    path, name = local_path(handle, flag=flag), handle.strip("/")
    if not remote or path.exists():
        return ""
    if match := _KAGGLE_HANDLE.fullmatch(name):
        return _kaggle_address(match, flag=flag)
    if _LIKE_A_HANDLE.fullmatch(handle):
        raise UsageError(
            f"{flag}: there is no folder or archive {path}; a model of Kaggle is named "
            "OWNER/MODEL/FRAMEWORK/VARIATION/VERSION, such as "
            "hub:google/mobilenet-v2/tensorFlow2/035-128-feature-vector/2"
        )
    return ""


def _kaggle_address(handle: re.Match[str], *, flag: str) -> str:
    if not handle["framework"].lower().startswith("tensorflow"):
        raise UsageError(
            f"{flag}: a model of Kaggle for {handle['framework']}; expected one for TensorFlow2, which is a "
            "SavedModel"
        )
    if not handle["version"]:
        raise UsageError(f"{flag}: add the version of the model, as in hub:{handle[0]}/1")
    framework = "TensorFlow" + handle["framework"][-1]
    return f"https://www.kaggle.com/models/{handle['model']}/{framework}/{handle['variation']}{handle['version']}"
