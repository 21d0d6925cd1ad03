"""How much faster two workers train than one: two processes, each pinned to a core, beside one on one core.

    python experiments/benchmarks/workers.py --rounds=5 --output=workers.json

All have the same --batch_size, that of all workers together. Three kinds of run: large pictures and a small
network, a network that takes long to train, and a head on kept features. Each round runs all of them one
after another. Images a second are those of all intervals of the log but the first; efficiency is what two do
in a second over twice what one does.

Then, computed and not measured: a worker takes the measured seconds of a step of one, and all add up their
gradients over a network of 10 Gb/s, of which each worker sends and gets 2 (n - 1) / n times the bytes (ring
all-reduce; Patarasuk & Yuan, 2009, J. Parallel Distrib. Comput. 69(2)), and waits 2 (n - 1) times for the
next one. Nothing of that is hidden behind computing: a lower bound, given these bytes and times.
"""

import argparse
import json
import os
import shutil
import socket
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import measuring
import numpy as np
import reading
from PIL import Image

BYTES_A_SECOND = 10e9 / 8
HOP_SECONDS = 50e-6
SIMULATED = (4, 8, 16, 32, 64)
FASTER = 50
"""How much faster than one core of this machine the second line of a run computes."""
BATCH_SIZE = 32
COMMON = (
    "--backbone=keras:MobileNetV2", "--weights=none", f"--batch_size={BATCH_SIZE}", "--precision=float32",
    "--engine=tensorflow", "--picture_cache=off", "--evaluate_every=1000epochs", "--save_every=1000epochs",
    "--embeddings=0", "--figures_every=", "--splits=80%,20%", "--progress=plain",
)  # fmt: skip
DRAWN = ("--source=synthetic:flowers", "--synthetic_examples=160")
RUNS = {
    "input": (
        "--image_size=32", "--head=linear", "--log_every=4steps",
        "--phase=name=input; for=12steps; train=head; augment=flip; lr=0.001",
    ),
    "network": (
        *DRAWN, "--image_size=96", "--head=linear", "--log_every=3steps",
        "--phase=name=network; for=9steps; train=all; lr=0.0001; optimizer=sgd",
    ),
    "features": (
        *DRAWN, "--image_size=32", "--head=mlp(512)", "--log_every=100steps",
        "--phase=name=features; for=400steps; train=head; lr=0.001",
    ),
}  # fmt: skip
"""{what the time goes into: flags}."""


def draw_photos(folder: Path, *, count: int) -> None:
    """Writes photos of 1600x1200 px, in two classes."""
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8))
        (place := folder / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        coarse.resize((1600, 1200), Image.Resampling.BICUBIC).save(place / f"{number:03d}.jpg", quality=92)


def free_addresses(count: int) -> list[str]:
    with ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in found:
            one.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{one.getsockname()[1]}" for one in found]


def train(flags: list[str], scratch: Path, *, count: int, cores: list[int]) -> dict[str, float]:
    """Trains with some workers, each on a core of its own; returns what the chief tells of it."""
    addresses = free_addresses(count)
    shutil.rmtree(scratch / "run", ignore_errors=True)

    def one(index: int) -> measuring.Child:
        command = [
            "taskset", "-c", str(cores[index]), sys.executable, "-m", "trainer.main", *flags,
            f"--workdir={scratch / 'run'}", f"--cache_dir={scratch / f'cache{index}'}",
        ]  # fmt: skip
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        environment = {"TF_CONFIG": json.dumps(task) if count > 1 else ""}
        return measuring.run_child(command, log=scratch / f"{index}.txt", environment=environment)

    with ThreadPoolExecutor(count) as pool:
        children = list(pool.map(one, range(count)))
    told = reading.ours(scratch / "run", children[0].output)
    return {
        name: told[name] for name in ("images_per_second", "trained_parameters")
    } | {"peak_rss_mb": max(child.peak_rss_mb for child in children)}  # fmt: skip


def measure(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    draw_photos(scratch / "photos", count=options.photos)
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("two workers need two cores, and this process may use one")
    found: dict[str, Any] = {name: {"one": [], "two": []} for name in options.runs}
    for number in range(options.rounds):
        for name in options.runs:
            source = [] if DRAWN[0] in RUNS[name] else [f"--source=folder:{scratch / 'photos'}"]
            # By turns, so that what else the machine does falls on both.
            for kind in ("one", "two") if number % 2 == 0 else ("two", "one"):
                count = {"one": 1, "two": 2}[kind]
                flags = [*COMMON, *RUNS[name], *source]
                found[name][kind].append(train(flags, scratch, count=count, cores=cores))
    return found


def efficiencies(runs: dict[str, list[dict[str, float]]]) -> list[float]:
    """Returns what two workers do over twice what one does, round by round."""
    pairs = zip(runs["one"], runs["two"], strict=True)
    return [two["images_per_second"] / one["images_per_second"] / 2 for one, two in pairs]


def simulated(step_seconds: float, gradient_bytes: float, count: int) -> float:
    """Returns the efficiency of many workers, each of which computes as long as one does alone."""
    adding = 2 * (count - 1) / count * gradient_bytes / BYTES_A_SECOND + 2 * (count - 1) * HOP_SECONDS
    return step_seconds / (step_seconds + adding)


def measured_table(found: dict[str, Any]) -> str:
    rows = []
    for name, runs in found.items():
        speeds = [
            measuring.show(
                measuring.spread([run["images_per_second"] for run in runs[kind]]).median, kind="rate"
            )
            for kind in ("one", "two")
        ]
        middle, low, high = (f"{100 * value:.0f} %" for value in measuring.spread(efficiencies(runs)))
        rows.append([name, *speeds, f"{middle} ({low} to {high})"])
    return measuring.markdown(["run", "one, images/s", "two, images/s", "efficiency of two"], rows)


def steps_of_one(found: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Returns {run: (seconds of a step of one worker, bytes of its gradients)}."""
    speeds = {
        name: measuring.spread([run["images_per_second"] for run in runs["one"]]).median
        for name, runs in found.items()
    }
    return {
        name: (BATCH_SIZE / speeds[name], 4.0 * runs["one"][0]["trained_parameters"])
        for name, runs in found.items()
    }


def simulated_table(steps: dict[str, tuple[float, float]]) -> str:
    """Returns the table of many workers; `steps` is as of `steps_of_one`."""
    rows = []
    for name, (step_seconds, num_bytes) in steps.items():
        for faster in (1, FASTER):
            secs = step_seconds / faster
            cells = [f"{100 * simulated(secs, num_bytes, n):.1f} %" for n in SIMULATED]
            told = f"{measuring.show(1e3 * secs, kind='time')} ms"
            rows.append([name, f"{num_bytes / 1e6:.2f}", told, *cells])
    header = ["run", "MB of gradients", "a step of each", *(f"{n} workers" for n in SIMULATED)]
    return measuring.markdown(header, rows)


def given_steps(texts: list[str]) -> dict[str, tuple[float, float]]:
    """Reads texts such as `head:1.74:4.2` into what `simulated_table` takes."""
    parts = [text.rsplit(":", 2) for text in texts]
    return {name: (float(step_ms) / 1e3, float(size_mb) * 1e6) for name, step_ms, size_mb in parts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--photos", type=int, default=80, help="how many large photos to make")
    parser.add_argument(
        "--step",
        action="append",
        metavar="NAME:MS:MB",
        help="measure nothing, and compute the second table of such a step; repeatable",
    )
    parser.add_argument("--output", help="JSON file with all numbers")
    options = parser.parse_args()
    if options.step:
        print(simulated_table(given_steps(options.step)))
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(options, Path(scratch))
    measuring.write_json(options.output, {"runs": found})
    print(f"{measuring.machine()}; batches of {BATCH_SIZE}, {options.rounds} rounds\n")
    print(measured_table(found))
    print(f"\nComputed: 10 Gb/s, {1e6 * HOP_SECONDS:.0f} us a hop\n")
    print(simulated_table(steps_of_one(found)))


if __name__ == "__main__":
    main()
