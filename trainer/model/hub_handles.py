"""What a module is called: an address, a Kaggle handle, a path. Standard library only."""

import re

from trainer.paths import local_path, scheme_of
from trainer.values import UsageError

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
