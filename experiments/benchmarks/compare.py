"""Ours beside the plain TensorFlow programs in this folder: one go, alternating, fresh processes.

    python experiments/benchmarks/compare.py --suite=frozen --rounds=3 --output=frozen.json

Each round runs every program of a comparison once, one after another. Wall clock and peak memory are measured
from outside; the rest is what the programs write: the opponents a JSON, ours its event files. The
table has medians over the rounds, and how much better ours are, compared round by round.

Suites:
  frozen              the canonical experiment: textbook loop, ours with an emptied feature cache, ours with
                      a full one; frozen_cold and frozen_warm have only one of the two
  finetune_inception  all of InceptionV3 trains: images a second after the first steps
  finetune_mobilenet  MobileNetV2 from layer 100 on: seconds an epoch after the first
  accuracy            EfficientNet-Lite0, frozen and fine-tuned; round r has --seed=r
  precision           EfficientNet-Lite0, frozen, ours in float32 and in bfloat16; round r has --seed=r

tf_flowers comes from $TFDS_DATA_DIR and the InceptionV3 module from $TFHUB_CACHE_DIR.
"""

import argparse
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measuring
import reading
from suites import Comparison, Program, comparisons

HERE = Path(__file__).resolve().parent
NETWORKS = {"tfhub_modules"}  # Folders of the cache that hold what did not come from our runs.


class Bench:
    """A scratch folder with one cache for all our runs."""

    def __init__(self, scratch: Path, *, ours_flags: Sequence[str] = ()):
        """Prepares the folder.

        Args:
          scratch: a folder; what it has in `cache` is used and, for a run with an empty cache, removed.
          ours_flags: flags for all our runs besides those of the suite.
        """
        self.scratch, self.ours_flags, self._lite0 = scratch, ours_flags, ""
        self.cache = scratch / "cache"
        self.cache.mkdir(parents=True, exist_ok=True)
        modules = Path(os.environ.get("TFHUB_CACHE_DIR") or scratch / "tfhub_modules").absolute()
        modules.mkdir(parents=True, exist_ok=True)
        # --cache_dir counts for modules, too; the opponent knows only the variable.
        self._environment = {"TFHUB_CACHE_DIR": str(modules), "TF_CPP_MIN_LOG_LEVEL": "2"}
        if not (self.cache / "tfhub_modules").exists():
            (self.cache / "tfhub_modules").symlink_to(modules)

    def measure(self, program: Program, round_number: int) -> dict[str, Any]:
        """Runs a program once and returns {quantity: number}."""
        if program.cache == "empty":
            self.empty_cache()
        if program.cache == "full" and set(os.listdir(self.cache)) <= NETWORKS:
            print("filling the feature cache", flush=True)
            self._run(program, "filling", round_number)
        return self._run(program, program.name, round_number)

    def empty_cache(self) -> None:
        """Removes what our runs have computed; networks stay."""
        for path in self.cache.iterdir():
            if path.name not in NETWORKS:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _run(self, program: Program, name: str, round_number: int) -> dict[str, Any]:
        folder = self.scratch / re.sub(r"\W+", "_", f"{name} {round_number}")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        command = self.command(program, folder, round_number)
        child = measuring.run_child(command, log=folder / "printed.txt", environment=self._environment)
        seen = {"wall_seconds": child.wall_seconds, "peak_rss_mb": child.peak_rss_mb}
        if program.script:
            return seen | reading.theirs(folder / "measured.json")
        return seen | reading.ours(folder / "workdir", child.output)

    def command(self, program: Program, folder: Path, round_number: int) -> list[str]:
        """Returns the command line of a run that writes into `folder`."""
        flags = [flag.replace("{seed}", str(round_number)) for flag in program.flags]
        if any("{lite0}" in flag for flag in flags):
            flags = [flag.replace("{lite0}", self._saved_lite0()) for flag in flags]
        if program.script:
            output = f"--output={folder / 'measured.json'}"
            return [sys.executable, str(HERE / program.script), *flags, output]
        return [
            sys.executable, "-m", "trainer.main", "train", *flags, f"--workdir={folder / 'workdir'}",
            f"--cache_dir={self.cache}", "--progress=plain", *self.ours_flags,
        ]  # fmt: skip

    def _saved_lite0(self) -> str:
        if not self._lite0:
            folder = self.scratch / "lite0"
            command = [sys.executable, str(HERE / "save_lite0.py"), str(folder)]
            measuring.run_child(command, log=self.scratch / "lite0.txt", environment=self._environment)
            self._lite0 = str(folder)
        return self._lite0


Runs = dict[str, list[dict[str, Any]]]
"""{program: what was measured in each round}, the opponent first."""


def run_comparison(bench: Bench, comparison: Comparison, *, rounds: int) -> Runs:
    """Runs all programs in turn, `rounds` times."""
    runs: Runs = {program.name: [] for program in comparison.programs}
    for round_number in range(rounds):
        for program in comparison.programs:
            found = bench.measure(program, round_number)
            told = {name: round(v, 4) for name, v in found.items() if isinstance(v, int | float)}
            print(f"{comparison.name}, round {round_number}, {program.name}: {told}", flush=True)
            if program.script and comparison.extrapolated_to_epochs:
                found["measured_wall_seconds"] = found["wall_seconds"]
                found["wall_seconds"] = reading.extrapolated(
                    found["wall_seconds"], found["epoch_seconds"], epochs=comparison.extrapolated_to_epochs
                )
            runs[program.name].append(found)
    return runs


def table(runs: Runs, quantities: dict[str, str]) -> str:
    """Returns the Markdown table of a comparison; a quantity that a program does not tell has no row."""
    opponent, rows = next(iter(runs)), []
    for quantity, kind in quantities.items():
        values = {name: [run[quantity] for run in runs[name] if quantity in run] for name in runs}
        for name, numbers in values.items():
            if not numbers:
                continue
            middle, low, high = (measuring.show(v, kind=kind) for v in measuring.spread(numbers))
            better = ""
            if name != opponent and values[opponent]:
                by = measuring.better_by(values[opponent], numbers, kind=kind)
                better = measuring.show_better(by, kind=kind)
            rows.append([quantity, name, middle, f"{low} to {high}", better])
    return measuring.markdown(["quantity", "program", "median", "lowest to highest", "better by"], rows)


def remarks(comparison: Comparison, runs: Runs) -> list[str]:
    """Returns what a reader of the table must know besides."""
    trained = {name: found[0]["trained_parameters"] for name, found in runs.items()}
    lines = ["Parameters that train: " + ", ".join(f"{name} {count:,}" for name, count in trained.items())]
    if len(set(trained.values())) > 1:
        lines.append("NOT THE SAME PARAMETERS TRAIN: the numbers above compare nothing.")
    if wanted := comparison.extrapolated_to_epochs:
        opponent, found = next(iter(runs.items()))
        ran = len(found[0]["epoch_seconds"])
        lines.append(
            f"{opponent}: EXTRAPOLATED. It ran {ran} epochs; wall_seconds has {wanted - ran} more, each as "
            f"long as those after the first on average. Its accuracy is that of {ran} epochs."
        )
    return lines


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    known = list(comparisons(textbook_epochs=0, steps=1, epochs=1))
    parser.add_argument("--suite", required=True, choices=known)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--textbook_epochs", type=int, default=0, help="frozen: run fewer and extrapolate")
    parser.add_argument("--steps", type=int, default=24, help="of finetune_inception, at most 40")
    parser.add_argument("--epochs", type=int, default=4, help="of the other fine-tuning")
    parser.add_argument("--ours_flags", default="", help="more flags for ours, in one string")
    parser.add_argument("--scratch", help="folder that keeps what the runs write; default: a temporary one")
    parser.add_argument("--output", help="JSON with every run")
    options = parser.parse_args(argv)
    if options.textbook_epochs == 1:
        parser.error("--textbook_epochs=1: a first epoch is no measure of the others; 2 or more")
    return options


def main() -> None:
    options = parse_arguments()
    suites = comparisons(textbook_epochs=options.textbook_epochs, steps=options.steps, epochs=options.epochs)
    shown, results = [], {}
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(options.scratch or temporary).absolute()
        bench = Bench(scratch, ours_flags=shlex.split(options.ours_flags))
        for comparison in suites[options.suite]:
            runs = run_comparison(bench, comparison, rounds=options.rounds)
            tabled = table(runs, comparison.quantities)
            shown += [f"\n### {comparison.name}, {options.rounds} rounds\n", tabled, ""]
            shown += [f"- {line}" for line in remarks(comparison, runs)]
            results[comparison.name] = {"runs": runs, "table": tabled}
    print("\n".join([*shown, f"- {measuring.machine()}"]))
    measuring.write_json(options.output, {"comparisons": results})


if __name__ == "__main__":
    main()
