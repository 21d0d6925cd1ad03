"""Peak memory of our runs by the number of pictures, beside a process that only loads the network.

    python experiments/benchmarks/memory_curve.py --examples=3670,18350,70000 --output=memory.json

Each number is the peak resident memory that the kernel counts for a process of its own: one epoch of the
canonical frozen experiment on drawn pictures, with its validation and test, from an empty feature cache.
The base process imports TensorFlow, opens the backbone and ends.
"""

import argparse
import os
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

import measuring

CANONICAL = "experiments/flowers_inception_v3.flags"
HANDLE = "hub:https://tfhub.dev/google/imagenet/inception_v3/feature_vector/4"
OPEN_BACKBONE = (
    "import sys; from trainer.model.backbones import open_backbone; "
    "open_backbone(sys.argv[1], image_size=int(sys.argv[2]), cache_dir=sys.argv[3])"
)


def run_base(options: argparse.Namespace, folder: Path) -> measuring.Child:
    """Loads the network and nothing else."""
    command = [sys.executable, "-c", OPEN_BACKBONE, options.backbone, str(options.image_size)]
    return measuring.run_child([*command, str(folder / "cache")], log=folder / "base.txt")


def run_ours(options: argparse.Namespace, folder: Path, examples: int) -> measuring.Child:
    """Trains for an epoch on `examples` drawn pictures, half of which are for training."""
    command = [
        sys.executable, "-m", "trainer.main", "train", f"--flagfile={CANONICAL}",
        "--source=synthetic:flowers", f"--synthetic_examples={examples}", "--frozen_for=1epochs",
        f"--backbone={options.backbone}", f"--image_size={options.image_size}",
        f"--workdir={folder / str(examples)}", f"--cache_dir={folder / 'cache'}", "--progress=plain",
        *shlex.split(options.ours_flags),
    ]  # fmt: skip
    return measuring.run_child(command, log=folder / f"{examples}.txt")


def table(base_mb: float, peaks_mb: dict[int, float]) -> str:
    """Returns the Markdown table of {number of pictures: peak in MB}, beside the base."""
    rows = [["only the network", "", f"{base_mb:,.0f}", "", ""]]
    before: tuple[int, float] | None = None
    for examples, peak in peaks_mb.items():
        more = f"{(peak - before[1]) / (examples - before[0]) * 1024:.2f}" if before else ""
        rows.append(["one frozen epoch", f"{examples:,}", f"{peak:,.0f}", f"{peak - base_mb:,.0f}", more])
        before = (examples, peak)
    return measuring.markdown(
        ["process", "pictures", "peak MB", "above the network, MB", "kB a picture more"], rows
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--examples", default="3670,18350,70000", help="numbers of pictures, rising")
    parser.add_argument("--backbone", default=HANDLE, help="as the trainer's flag")
    parser.add_argument("--image_size", type=int, default=299, help="px")
    parser.add_argument("--ours_flags", default="", help="more flags for our runs, in one string")
    parser.add_argument("--output", help="JSON")
    options = parser.parse_args()
    peaks_mb: dict[int, float] = {}
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "cache").mkdir()
        if modules := os.environ.get("TFHUB_CACHE_DIR"):
            # --cache_dir counts for modules, too, and is a fresh one here.
            (folder / "cache" / "tfhub_modules").symlink_to(Path(modules).absolute())
        # Twice: the first may convert a network's weights.
        run_base(options, folder)
        base = run_base(options, folder)
        for examples in map(int, options.examples.split(",")):
            child = run_ours(options, folder, examples)
            peaks_mb[examples] = child.peak_rss_mb
            runs.append({"examples": examples, "wall_seconds": child.wall_seconds})
            print(
                f"{examples:,} pictures: {child.peak_rss_mb:,.0f} MB, {child.wall_seconds:,.0f} s", flush=True
            )
    print(f"\n{table(base.peak_rss_mb, peaks_mb)}\n\n- {measuring.machine()}")
    found = {"base_mb": base.peak_rss_mb, "peak_mb": peaks_mb, "runs": runs, "options": vars(options)}
    measuring.write_json(options.output, found)


if __name__ == "__main__":
    main()
