"""Options of the network."""

from dataclasses import dataclass

from trainer.options.declare import FOR_TENSORFLOW, LOCAL, calls, option
from trainer.registry import Bounds

# Begins the name of a head whose logits start at zero.
ZERO = "zero_"


@dataclass(frozen=True)
class ModelConfig:
    """Model"""

    backbone: str = option(
        "efficientnet_lite0",
        "Pretrained network, such as keras:MobileNetV2; --helpfull lists what there is.",
        short=True,
    )
    weights: str = option(
        "imagenet", "Weights of a backbone that has a choice: imagenet, none, or a weights file.", path=LOCAL
    )
    image_size: int = option(
        0,
        "Side of the pictures the network sees, in px; 0: what the backbone asks for.",
        short=True,
        bounds=Bounds(at_least=0, at_most=10_000),
    )
    init_from: str = option(
        "",
        "Workdir of another run whose best weights this one begins with, instead of the pretrained ones.",
        short=True,
        path=FOR_TENSORFLOW,
    )
    init_part: str = option(
        "all",
        "What is taken from there: network and head, or the network alone.",
        choices=("all", "backbone"),
    )
    value_range: str = option(
        "", "Pixel values that a backbone wants which leaves it open, e.g. -1,1; default 0,1."
    )
    head: str = option(
        "auto",
        "Layers after the backbone: linear, or mlp(WIDTH,...) with ReLU; zero_linear and zero_mlp(WIDTH,...) "
        "start with logits of zero. auto: mlp(512), or what --schedule=auto says.",
        short=True,
        check=calls("linear or mlp(512)"),
    )
    logits: str = option(
        "per_class",
        "Logits of the head: one for each class, or, of two classes, one for the second (binary "
        "cross-entropy, decided at 0).",
        choices=("per_class", "one"),
    )
    dropout: float = option(
        0.0,
        "Share of the last features dropped in training, 0 to 1.",
        bounds=Bounds(at_least=0, below=1),
    )
