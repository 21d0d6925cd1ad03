"""`hub:HANDLE` and `savedmodel:PATH`; `trainer.model.backbones.hub_modules` reads them."""

from trainer.model.backbones.base import BACKBONES, Backbone
from trainer.model.hub_handles import module_address


@BACKBONES.register("hub", check=module_address)
def open_hub(
    handle: str, *, name: str, image_size: int, value_range: tuple[float, float] | None, cache_dir: str
) -> Backbone:
    """A module of TensorFlow Hub or Kaggle by its address, or its folder or archive on this machine."""
    # To import tensorflow_hub takes long.
    from trainer.model.backbones.hub_modules import open_module

    return open_module(handle, name=name, image_size=image_size, value_range=value_range, cache_dir=cache_dir)


def check_path(path: str, *, flag: str) -> None:
    """Raises UsageError where it is an address, which is of `hub:`."""
    module_address(path, flag=flag, remote=False)


@BACKBONES.register("savedmodel", check=check_path)
def open_savedmodel(
    path: str, *, name: str, image_size: int, value_range: tuple[float, float] | None, cache_dir: str
) -> Backbone:
    """A SavedModel from pictures to features: its folder, or an archive of it."""
    # To import tensorflow_hub takes long.
    from trainer.model.backbones.hub_modules import open_module

    return open_module(
        path, name=name, image_size=image_size, value_range=value_range, cache_dir=cache_dir, remote=False
    )
