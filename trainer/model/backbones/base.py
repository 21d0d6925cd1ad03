"""What a pretrained network is, and where each kind is registered."""

import contextlib
import dataclasses
from collections.abc import Callable, Collection
from typing import Any, Protocol

import tensorflow as tf
import tf_keras

from trainer.model.cuts import Cut
from trainer.model.layers import Layer
from trainer.registry import AddressRegistry, Entry
from trainer.values import AUTO, Contract, UsageError

LEAVE_FROZEN = "use --schedule=frozen, or train=head in --phase"


class Backbone(Protocol):
    """A pretrained network from images to features, with the contract of its input."""

    name: str
    contract: Contract
    """`open_backbone` replaces it by one that says how pictures get to its size."""
    variables: dict[str, tf.Variable]
    """{lasting name without ':0': variable}, in a fixed order; names are unique."""

    batch_norms: tuple[tf_keras.layers.BatchNormalization, ...]
    """Those of its BatchNorm layers that `batch_norm.pooling` reaches; () where it shows no layers."""

    def __call__(self, images: tf.Tensor, *, training: bool, bn_batch: bool) -> tf.Tensor:
        """Maps images [B, H, W, 3] in the contract's range to features [B, D] float32.

        Args:
          images: as the contract says.
          training: whether any of its variables is being trained.
          bn_batch: whether BatchNorm uses, and moves towards, the statistics of the batch.
        """
        ...

    def regularization_losses(self) -> list[tf.Tensor]:
        """Returns the scalar penalties the network brings for being trained; may be empty."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hex digest of the function from images to features, apart from its variables' values.

        It is the same for the same network opened again, in this process or another.
        """
        ...

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Its layers in order of depth, their `variables` keys of `variables`; () where it is not known."""
        ...

    def check_training(self, trained: Collection[str], *, bn_batch: bool) -> None:
        """Makes sure that variables of it can train; warns of those whose gradient is always 0.

        Args:
          trained: keys of `variables`.
          bn_batch: whether BatchNorm is to use the statistics of the batch.

        Raises:
          UsageError: they cannot, or not so.
        """
        ...

    def cut(self, trained: Collection[str], *, bn_batch: bool) -> Cut | None:
        """Returns where the backbone can be cut while some of its variables train; None: nowhere.

        Args:
          trained: keys of `variables`.
          bn_batch: whether the statistics of BatchNorm move; there is no cut then.
        """
        ...

    def why_no_cut(self, trained: Collection[str]) -> str:
        """Returns why there is no cut with stored statistics, to be read after the name of the phase.

        Args:
          trained: keys of `variables`, for which `cut` gives None.
        """
        ...

    def feature_maps(self) -> Callable[[tf.Tensor], tf.Tensor] | None:
        """Returns images [B, H, W, 3] -> its last maps [B, h, w, D] float32, whose averages are the features.

        By stored statistics, and with the weights that it has now. None where they cannot be had: a
        SavedModel from pictures to features does not show them.
        """
        ...


def libraries_of(backbone: Backbone) -> dict[str, str]:
    """Returns the versions of what a network is computed by besides TensorFlow and Keras 2, by names.

    A network that needs such libraries has them as `libraries`.
    """
    return dict(getattr(backbone, "libraries", {}))


def require_variables(backbone: Backbone) -> None:
    """Raises UsageError where a backbone has nothing that could train."""
    if not any(variable.trainable for variable in backbone.variables.values()):
        raise UsageError(f"{backbone.name} has no variables that could train; {LEAVE_FROZEN}")


BACKBONES: AddressRegistry[Backbone] = AddressRegistry("backbone", flag="--backbone")


def open_backbone(
    address: str,
    *,
    weights: str = "imagenet",
    image_size: int = 0,
    value_range: tuple[float, float] | None = None,
    cache_dir: str = "",
    features: str = "",
    resize: str = AUTO,
    antialias: bool = False,
) -> Backbone:
    """Opens one of `BACKBONES`.

    Args:
      address: the value of --backbone.
      weights: `imagenet`, `none` (random, the same each time) or a weights file, where there is a choice.
      image_size: side in px; 0: what the network asks for.
      value_range: of the pixels, for networks that leave it open; None: what they take it for.
      cache_dir: the value of --cache_dir.
      features: the value of --features.
      resize: the value of --resize, which becomes `fit` of its contract; AUTO leaves what the network says.
      antialias: the value of --antialias, which becomes that of its contract; under AUTO, a network that says
        so is smoothed for without it, too.

    Raises:
      UsageError: the address names nothing known, or does not go with another option.
      TrainerError: the network cannot be had or used; the message says what was tried.
    """
    choice = BACKBONES.choose(address)
    _check_options(address, choice.entry, weights=weights, value_range=value_range, features=features)
    backbone = choice(
        name=address,
        weights=weights,
        image_size=image_size,
        value_range=value_range,
        cache_dir=cache_dir,
        features=features,
    )
    # Of all networks alike, also those of plugins: how pictures get to its size is no part of a network.
    contract = backbone.contract
    if resize == AUTO:
        contract = dataclasses.replace(contract, antialias=antialias or contract.antialias)
    else:
        contract = dataclasses.replace(contract, fit=resize, antialias=antialias)
    # Without it, what TensorFlow's tutorials do stays.
    contract = dataclasses.replace(contract, resizes_bytes=antialias or contract.resizes_bytes)
    if contract != backbone.contract:
        try:
            backbone.contract = contract
        except AttributeError:
            raise UsageError(
                f"--resize={resize}, --antialias={antialias}: {address} does not let its contract be changed"
            ) from None
    return backbone


def keep_rounding(backbone: Backbone, recorded: Contract) -> None:
    """Has pictures resized to the last bit as they were in a run, by its contract; see `resizes_bytes`.

    A command may be of a run and smooth otherwise: then there is nothing to keep.
    """
    contract = backbone.contract
    if contract.antialias == recorded.antialias and contract.resizes_bytes != recorded.resizes_bytes:
        backbone.contract = dataclasses.replace(contract, resizes_bytes=recorded.resizes_bytes)


def _check_options(
    address: str,
    entry: Entry[Backbone],
    *,
    weights: str,
    value_range: tuple[float, float] | None,
    features: str,
) -> None:
    """Raises UsageError where an option was given that a network has no use for; see `open_backbone`."""
    if weights != "imagenet" and not names(entry, "weights"):
        raise UsageError(f"--weights={weights}: {address} brings its own weights; leave --weights away")
    if value_range is not None and not names(entry, "value_range"):
        usages = " and ".join(
            BACKBONES.usage(one) for one in BACKBONES if names(BACKBONES[one], "value_range")
        )
        raise UsageError(f"--value_range: {address} has its own; only {usages} leave it open")
    if features and not names(entry, "features"):
        usages = " and ".join(BACKBONES.usage(one) for one in BACKBONES if names(BACKBONES[one], "features"))
        raise UsageError(f"--features={features}: {address} has features of one kind; only {usages} has more")


def open_for_checkpoint(address: str, *, weights: str, function: str, **options: Any) -> Backbone:
    """Opens a network all weights of which come from a checkpoint; see `open_backbone`.

    Those that the run began with would be fetched for nothing, or may be gone. But some networks of Keras are
    built otherwise for their ImageNet weights, with which they are opened here, too.

    Args:
      address: the value of --backbone.
      weights: the value of --weights.
      function: fingerprint that the run recorded; empty: it did not.
      **options: the others.
    """
    if names(BACKBONES.choose(address).entry, "weights"):
        # What a plugin calls its weights is its own affair.
        with contextlib.suppress(UsageError):
            backbone = open_backbone(address, weights="none", **options)
            if backbone.fingerprint == function or (not function and weights != "imagenet"):
                return backbone
    return open_backbone(address, weights=weights, **options)


def names(entry: Entry[Backbone], option: str) -> bool:
    """Returns whether what opens a network takes an option, such as `weights`."""
    return bool({option, "**"} & entry.offered)
