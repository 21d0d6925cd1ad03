"""An ablation: variants of a recipe, several seeds of each, and what each of them gave in one table.

    python experiments/ablation.py --source=folder:flower_photos --seeds=0,1,2 --out=runs/ablation

Run it from the repository's root: the flagfiles name each other from there. A variant is a flagfile in
experiments/ablations; its first line is a comment that says what it is. A file whose name begins with _ is no
variant, but what several of them include with --flagfile=. Flags that are not listed below go to all runs,
and overrule those of the variants.

Each variant and seed is a run in OUT/VARIANT/seed-SEED, one after another, all variants with one seed before
any with the next. What a run prints goes to OUT/VARIANT/seed-SEED.log. After each of them, OUT/table.md and
OUT/table.json have the numbers of all that are finished. Ctrl-C saves the run under way, and the same command
goes on; a finished run, which is one with a report, is not run again.

Exit status: 0 done; 1 runs failed, the others are done; 2 usage; 75 stopped, with runs left.
"""

import argparse
import itertools
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from trainer.cli import flags
from trainer.record.workdir import Workdir
from trainer.store.files import read_json, write_json, write_text
from trainer.values import TrainerError, UsageError

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE / "ablations"), str(HERE / "benchmarks")]

import measuring  # noqa: E402
import tabling  # noqa: E402

STOPPED = 75


def find_variants(folder: Path, only: Sequence[str]) -> list[tabling.Variant]:
    """Returns the variants in a folder, by name, or those named in `only`, in its order.

    Raises:
      UsageError: there is none, or none of that name.
    """
    paths = {path.stem: path for path in sorted(folder.glob("*.flags")) if not path.name.startswith("_")}
    if not paths:
        raise UsageError(f"--variants={folder}: there is no NAME.flags in it")
    if unknown := [name for name in only if name not in paths]:
        raise UsageError(f"--only={unknown[0]}: {folder} has {', '.join(paths)}")
    return [tabling.Variant(name, _first_comment(paths[name]), paths[name]) for name in only or paths]


def _first_comment(path: Path) -> str:
    first = path.read_text(errors="replace").partition("\n")[0]
    return first.lstrip("# ").rstrip() if first.startswith("#") else ""


class Ablation:
    """The runs of some variants below one folder. A run that fails is noted, and ends nothing."""

    def __init__(self, out: Path, *, passed_on: Sequence[str]):
        """Notes where the runs are.

        Args:
          out: a folder; made if missing.
          passed_on: flags for all runs.
        """
        self._out, self._passed_on = out, passed_on
        self.results: dict[str, dict[int, tabling.Result]] = {}
        self.faults: dict[str, str] = {}

    def take(self, variant: tabling.Variant, seed: int) -> bool:
        """Reads a run that is finished; returns whether it is left to be run."""
        try:
            line = flags.parse(["trainer", *self._flags(variant, seed)])
            if line.command != "train":
                raise UsageError(f"{line.command} cannot be passed on: the runs are trained")
            workdir = self._workdir(variant, seed)
            # Numbers of a run with other options do not belong in the table.
            Workdir(str(workdir)).check_same_run(line.config)
            if tabling.is_finished(workdir):
                self._read(variant, seed)
                return False
            return True
        except TrainerError as error:
            self._note(variant, seed, str(error))
            return False

    def run(self, variant: tabling.Variant, seed: int) -> None:
        """Trains, or goes on with, a run that is not finished, and reads what it left.

        Raises:
          KeyboardInterrupt: Ctrl-C; what was reached is saved.
        """
        workdir = self._workdir(variant, seed)
        log, times = workdir.with_name(f"{workdir.name}.log"), tabling.times_file(workdir)
        print(f"{tabling.run_name(variant.name, seed)}: runs, see {log}", flush=True)
        log.parent.mkdir(parents=True, exist_ok=True)
        # A run that goes on has the time of all its processes.
        before = read_json(times)["seconds"] if times.exists() and workdir.exists() else []
        began = time.monotonic()
        command = [sys.executable, "-m", "trainer.main", "train", *self._flags(variant, seed)]
        try:
            status = run_child(command, log=log)
        finally:
            write_json(times, {"seconds": [*before, round(time.monotonic() - began, 1)]})
        if status not in (0, STOPPED):
            said = log.read_text(errors="replace").strip().splitlines()
            self._note(variant, seed, f"exit status {status}: {said[-1] if said else 'nothing printed'}")
        # A run that is not as good as --assert_accuracy_at_least has its numbers nevertheless.
        if tabling.is_finished(workdir):
            self._read(variant, seed)

    def _read(self, variant: tabling.Variant, seed: int) -> None:
        try:
            result = tabling.read_result(self._workdir(variant, seed))
        except TrainerError as error:
            self._note(variant, seed, str(error))
            return
        self.results.setdefault(variant.name, {})[seed] = result
        accuracies = f"{tabling.percent(result.best)} % at best, {tabling.percent(result.last)} % at the end"
        print(f"{tabling.run_name(variant.name, seed)}: {accuracies}", flush=True)

    def _note(self, variant: tabling.Variant, seed: int, why: str) -> None:
        self.faults[tabling.run_name(variant.name, seed)] = why
        print(f"{tabling.run_name(variant.name, seed)}: FAILED: {why}", file=sys.stderr, flush=True)

    def _workdir(self, variant: tabling.Variant, seed: int) -> Path:
        return self._out / variant.name / f"seed-{seed}"

    def _flags(self, variant: tabling.Variant, seed: int) -> list[str]:
        own = [f"--workdir={self._workdir(variant, seed)}", f"--seed={seed}"]
        return [f"--flagfile={variant.flagfile}", *self._passed_on, *own]


def run_child(command: Sequence[str], *, log: Path) -> int:
    """Runs a program to its end and returns its exit status; what it prints is added to a file.

    Raises:
      KeyboardInterrupt: Ctrl-C came, and the program, which was told the same, has ended.
    """
    with open(log, "ab") as out:
        # In a group of its own: of two Ctrl-C, one from the terminal and one from here, a run saves nothing.
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, process_group=0)
        try:
            return child.wait()
        except KeyboardInterrupt:
            child.send_signal(signal.SIGINT)
            try:
                child.wait()
            except KeyboardInterrupt:
                child.kill()
                child.wait()
            raise


def parse_arguments(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """Returns the options of this script, and the flags for the runs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", required=True, type=Path, help="folder for the runs and the table")
    parser.add_argument("--seeds", default="0,1,2", help="whole numbers; default: 0,1,2")
    parser.add_argument("--only", default="", help="names of variants, in the table's order; default: all")
    parser.add_argument("--base", help="variant that the others are compared with; default: the first")
    parser.add_argument("--variants", default=HERE / "ablations", type=Path, help="folder of the flagfiles")
    options, passed_on = parser.parse_known_args(argv)
    try:
        options.seeds = list(dict.fromkeys(int(seed) for seed in options.seeds.split(",")))
    except ValueError:
        parser.error(f"--seeds={options.seeds} is not a list of whole numbers such as 0,1,2")
    options.out = options.out.expanduser()
    options.only = list(dict.fromkeys(filter(None, options.only.split(","))))
    for flag in passed_on:
        if flag.lstrip("-").partition("=")[0] in ("workdir", "seed"):
            parser.error(f"{flag}: each run has its own; see --out and --seeds")
    return options, passed_on


def run_all(options: argparse.Namespace, passed_on: Sequence[str]) -> int:
    """Runs what is left to be run, with a table after each run, and returns the exit status.

    Raises:
      UsageError: a variant is not there.
    """
    variants = find_variants(options.variants, options.only)
    names = [variant.name for variant in variants]
    base = options.base or names[0]
    if base not in names:
        raise UsageError(f"--base={base} is none of the variants of the table: {', '.join(names)}")
    ablation = Ablation(options.out, passed_on=passed_on)
    runs = list(itertools.product(options.seeds, variants))
    left = [(seed, variant) for seed, variant in runs if ablation.take(variant, seed)]
    try:
        for seed, variant in left:
            ablation.run(variant, seed)
            write_table(options, variants, ablation, base=base)
    except KeyboardInterrupt:
        print("stopped: the same command goes on", flush=True)
    text, num_left = write_table(options, variants, ablation, base=base)
    print(f"\n{text}\nwritten to {options.out / 'table.md'}")
    if ablation.faults:
        return 1
    return STOPPED if num_left else 0


def write_table(
    options: argparse.Namespace, variants: Sequence[tabling.Variant], ablation: Ablation, *, base: str
) -> tuple[str, int]:
    """Writes table.md and table.json; returns the former and how many runs neither ended nor failed."""
    results, faults = ablation.results, ablation.faults
    runs = [(variant.name, seed) for variant in variants for seed in options.seeds]
    num_left = sum(
        seed not in results.get(name, {}) and tabling.run_name(name, seed) not in faults
        for name, seed in runs
    )
    rows = tabling.summary(variants, results, base=base)
    command, machine = shlex.join(["python", *sys.argv]), measuring.machine()
    notes = [*tabling.remarks(results, faults=faults, num_left=num_left), f"{machine}; `{command}`"]
    shown = tabling.table(rows, seeds=options.seeds, base=base)
    text = "\n".join([shown, "", *(f"- {note}" for note in notes), ""])
    write_text(options.out / "table.md", text)
    content = {"machine": machine, "command": command, "base": base, "variants": rows, "failed": faults}
    write_json(options.out / "table.json", content)
    return text, num_left


def main() -> int:
    options, passed_on = parse_arguments()
    # Whoever ends this script ends the run under way, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return run_all(options, passed_on)
    except TrainerError as error:
        print(f"ablation: {error}", file=sys.stderr)
        return error.exit_status
    except OSError as error:
        print(f"ablation: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("ablation: interrupted", file=sys.stderr)
        return STOPPED


if __name__ == "__main__":
    sys.exit(main())
