"""Accuracy for some minutes: ours beside fastai, timm and tf_keras, the same pictures, network and weights.

    python experiments/benchmarks/minutes.py --pictures=flower_photos --torch_python=torch/bin/python \\
      --timm=pytorch-image-models --minutes=2,5,10 --rounds=3 --scratch=SCRATCH --output=minutes.json

PICTURES has a folder for each class; a fifth of each class is for validation, the same for all, and nothing
is tested: no program chooses anything by it, the last weights count. Round r has seed r and all programs,
one after another. Ours gets --budget and nothing else. The others do not plan: runs of two epochs and
more, 20 seconds apart, tell how long an epoch takes and are not counted; they get as many as end in time, one
at least.

The opponents on PyTorch run in an environment of their own, which `make opponents` makes. A program whose
--torch_python or --timm is not given is left out. What a run has measured stays in SCRATCH, and the same
command goes on.
"""

import argparse
import json
import math
import os
import random
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import measuring
import reading

HERE = Path(__file__).resolve().parent
VALIDATION = 0.2
# By how much the longer of two runs must be longer: what starts takes seconds more or less.
LONGER_SECS = 20.0
OURS = "ours"


class Opponents:
    """The programs that are compared with ours, by name, and how long they take."""

    def __init__(self, options: argparse.Namespace, folder: Path, scratch: Path):
        self._scratch = scratch
        self._commands: dict[str, list[str]] = {"tf_keras": [sys.executable, str(HERE / "keras_tutorial.py")]}
        if options.torch_python:
            fastai = [
                options.torch_python,
                str(HERE / "fastai_fine_tune.py"),
                f"--item_size={options.item_size}",
            ]
            fastai += ["--bfloat16"] * options.bfloat16
            self._commands["fastai"] = fastai
        if options.torch_python and options.timm:
            timm = [options.torch_python, str(HERE / "timm_train.py"), f"--timm={options.timm}"]
            self._commands["timm"] = [*timm, *["--bfloat16"] * options.bfloat16]
        self._commands = {name: [*line, f"--folder={folder}"] for name, line in self._commands.items()}
        self._secs: dict[str, tuple[float, float]] = {}

    @property
    def names(self) -> list[str]:
        return list(self._commands)

    def measure(self, name: str, *, minutes: float, seed: int) -> dict[str, Any]:
        """Runs as many epochs as end in time."""
        start_secs, epoch_secs = self.timing(name)
        epochs = max(1, math.floor((60 * minutes - start_secs) / epoch_secs))
        return {**self._run(name, epochs=epochs, seed=seed), "epochs": epochs}

    def timing(self, name: str) -> tuple[float, float]:
        """Returns the seconds of all but epochs, and those of an epoch."""
        if name not in self._secs:
            # Two are the fewest that tf_keras has of both kinds: in the first half the network is frozen.
            least, epochs = self._run(name, epochs=2, seed=0)["wall_seconds"], 2
            longer_secs = 0.0
            while longer_secs < LONGER_SECS:
                epochs *= 2
                longer_secs = self._run(name, epochs=epochs, seed=0)["wall_seconds"] - least
            epoch_secs = longer_secs / (epochs - 2)
            self._secs[name] = (least - 2 * epoch_secs, epoch_secs)
        return self._secs[name]

    def _run(self, name: str, *, epochs: int, seed: int) -> dict[str, Any]:
        def measured(stem: Path) -> dict[str, Any]:
            output = beside(stem, ".told.json")
            command = [*self._commands[name], f"--epochs={epochs}", f"--seed={seed}", f"--output={output}"]
            child = measuring.run_child(command, log=beside(stem, ".txt"))
            accuracy = json.loads(output.read_text())["epochs"][-1]["validation"]["accuracy"]
            return {"accuracy": accuracy, "wall_seconds": child.wall_seconds}

        return once(self._scratch / f"{name}-{epochs}epochs-seed{seed}", measured)


def beside(stem: Path, ending: str) -> Path:
    """Returns a file or folder of a run."""
    return stem.with_name(stem.name + ending)


def once(stem: Path, measure: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Returns what an earlier start has measured under this name, or measures it."""
    kept = beside(stem, ".json")
    if not kept.exists():
        kept.write_text(json.dumps(measure(stem)))
    found: dict[str, Any] = json.loads(kept.read_text())
    return found


def ours(folder: Path, scratch: Path, *, minutes: float, seed: int) -> dict[str, Any]:
    """Runs ours with a budget and an empty cache."""

    def measured(stem: Path) -> dict[str, Any]:
        workdir, cache = beside(stem, ".run"), beside(stem, ".cache")
        flags = [
            f"--source=folder:{folder}", f"--budget={minutes * 60:g}s", f"--seed={seed}", "--progress=plain",
            f"--workdir={workdir}", f"--cache_dir={cache}",
        ]  # fmt: skip
        command = [sys.executable, "-m", "trainer.main", "train", *flags]
        child = measuring.run_child(command, log=beside(stem, ".txt"))
        points = reading.points(workdir / "validation", "accuracy")
        return {"accuracy": points[-1].value, "wall_seconds": child.wall_seconds}

    return once(scratch / f"ours-{minutes:g}min-seed{seed}", measured)


def divide(pictures: Path, folder: Path) -> None:
    """Makes train/ and valid/ with links to the pictures, class by class, the same whoever calls it."""
    for klass in sorted(path for path in pictures.iterdir() if path.is_dir()):
        files = sorted(path for path in klass.iterdir() if path.is_file())
        random.Random(0).shuffle(files)
        cut = round(VALIDATION * len(files))
        for split, part in (("valid", files[:cut]), ("train", files[cut:])):
            place = folder / split / klass.name
            place.mkdir(parents=True, exist_ok=True)
            for path in part:
                if not (place / path.name).is_symlink():
                    os.symlink(path.absolute(), place / path.name)


def table(runs: dict[str, dict[float, list[dict[str, Any]]]]) -> str:
    """Returns the mean accuracy of each program and time, with its standard deviation and its seconds."""
    minutes = list(next(iter(runs.values())))
    rows = []
    for name, by_minutes in runs.items():
        row = [name]
        for found in by_minutes.values():
            shares = [100 * run["accuracy"] for run in found]
            spread = f" ± {statistics.stdev(shares):.1f}" if len(shares) > 1 else ""
            secs = statistics.mean(run["wall_seconds"] for run in found)
            row.append(f"{statistics.mean(shares):.1f}{spread} ({secs:.0f} s)")
        rows.append(row)
    return measuring.markdown(["program", *(f"{number:g} min" for number in minutes)], rows)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pictures", required=True, type=Path)
    parser.add_argument("--minutes", default="2,5,10")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--torch_python", default="", help="Python that has fastai and timm")
    parser.add_argument("--timm", default="", help="checkout of pytorch-image-models")
    parser.add_argument("--bfloat16", action="store_true", help="fastai and timm in 16 bits; ours chooses")
    parser.add_argument("--item_size", type=int, default=224, help="of fastai: 460 where pictures are larger")
    parser.add_argument("--scratch", required=True, type=Path, help="folder that keeps what the runs write")
    parser.add_argument("--output", help="JSON with every run")
    return parser.parse_args(argv)


def main() -> None:
    options = parse_arguments()
    scratch = options.scratch.absolute()
    folder = scratch / "pictures"
    scratch.mkdir(parents=True, exist_ok=True)
    divide(options.pictures, folder)
    opponents = Opponents(options, folder, scratch)
    minutes = [float(text) for text in options.minutes.split(",")]
    runs: dict[str, dict[float, list[dict[str, Any]]]] = {
        name: {number: [] for number in minutes} for name in (OURS, *opponents.names)
    }
    for seed in range(options.rounds):
        for number in minutes:
            for name, by_minutes in runs.items():
                if name == OURS:
                    found = ours(folder, scratch, minutes=number, seed=seed)
                else:
                    found = opponents.measure(name, minutes=number, seed=seed)
                by_minutes[number].append(found)
                print(f"{number:g} min, seed {seed}, {name}: {found}", flush=True)
    print(f"\n{table(runs)}\n\n{measuring.machine()}")
    measuring.write_json(options.output, {"runs": runs})


if __name__ == "__main__":
    main()
