"""`kerashub:PRESET`: networks of keras-hub; `trainer.model.backbones.kerashub_networks` opens them."""

from trainer.model.backbones.base import BACKBONES, Backbone
from trainer.paths import local_path, scheme_of
from trainer.values import UsageError


def check_preset(address: str, *, flag: str) -> None:
    """Raises UsageError where an address can be none of a preset."""
    scheme = scheme_of(address)
    if scheme not in ("", "kaggle", "hf"):
        raise UsageError(
            f"{flag}: expected the name of a preset, kaggle://..., hf://... or a folder, not {scheme}://"
        )
    if not scheme and "/" in address and not local_path(address, flag=flag).is_dir():
        raise UsageError(f"{flag}: there is no folder {local_path(address, flag=flag)}")


@BACKBONES.register("kerashub", address="PRESET", check=check_preset)
def open_kerashub(
    preset: str,
    *,
    name: str,
    weights: str = "imagenet",
    image_size: int = 0,
    value_range: tuple[float, float] | None = None,
    features: str = "",
) -> Backbone:
    """A network of keras-hub: the name of a preset, or a folder that save_to_preset() made."""
    # To import Keras 3 and keras-hub takes seconds.
    from trainer.model.backbones.kerashub_networks import open_preset

    return open_preset(
        preset,
        name=name,
        weights=weights,
        image_size=image_size,
        value_range=value_range,
        features=features,
    )
