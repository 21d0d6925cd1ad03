"""Forward passes and updates of whole networks: ours beside timm's on PyTorch, also with torch.compile.

    make opponents
    python experiments/benchmarks/networks.py --torch_python=.venv-opponents/bin/python --rounds=3

By turns, in fresh processes, batch 32, random weights. Ours is the verb `benchmark`, whose updates read,
decode and shuffle drawn pictures on the same cores; the opponents have one batch in memory. BatchNorm goes by
the batch there; ours is measured so, and with the statistics that it has, which is its default. `of the peak`
is the arithmetic that the forward pass of a picture takes, times three for an update, over what this machine
does in a product of two matrices.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import measuring

HERE = Path(__file__).resolve().parent
BATCH_SIZE = 32
# Ours, timm's name, side in pixels, and how many multiplications with addition a picture takes.
NETWORKS = {
    "InceptionV3": ("keras:InceptionV3", "inception_v3", 299, 5.73e9),
    "MobileNetV2": ("keras:MobileNetV2", "mobilenetv2_100", 160, 0.154e9),
    "EfficientNet-Lite0": ("efficientnet_lite0", "tf_efficientnet_lite0", 224, 0.407e9),
}
OURS = {"ours, BatchNorm of the batch": "batch", "ours": "frozen"}


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--torch_python", required=True, help="of an environment with torch and timm")
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--without_compile", action="store_true", help="torch.compile needs a C++ compiler")
    parser.add_argument("--output", help="JSON with every run")
    return parser.parse_args(argv)


def main() -> None:
    options = parse_arguments()
    peak, results = 0.0, {}
    for name in options.networks.split(","):
        # The most that was ever to be had: other work on the machine takes from it, too.
        peak = max(peak, peak_flops(options.precision))
        runs = run(options, name)
        peak = max(peak, peak_flops(options.precision))
        results[name] = runs
        print(
            f"\n### {name}, {options.precision}\n\n{table(runs, macs=NETWORKS[name][3], peak=peak)}",
            flush=True,
        )
    print(f"\n{measuring.machine()}, {peak / 1e9:,.0f} GFLOP/s in a product of {options.precision}")
    measuring.write_json(options.output, {"peak_flops": peak, "runs": results})


def run(options: argparse.Namespace, name: str) -> dict[str, list[dict[str, float]]]:
    """Returns {program: pictures a second of forward and update in each round}, opponents first."""
    backbone, timm, size, _ = NETWORKS[name]
    theirs = [
        options.torch_python,
        str(HERE / "torch_networks.py"),
        f"--network={timm}",
        f"--image_size={size}",
    ]
    theirs += [f"--batch_size={BATCH_SIZE}", f"--precision={options.precision}"]
    programs = {"timm": theirs}
    if not options.without_compile:
        programs["timm, torch.compile"] = [*theirs, "--compile"]
    for ours, bn in OURS.items():
        programs[ours] = [
            sys.executable, "-m", "trainer.main", "benchmark", f"--backbone={backbone}", "--weights=none",
            f"--image_size={size}", f"--batch_size={BATCH_SIZE}", f"--precision={options.precision}",
            "--source=synthetic:flowers", "--synthetic_examples=80", "--splits=64,8,8", "--head=linear",
            f"--phase=name=all; for=1epochs; train=all; bn={bn}; lr=1e-3; optimizer=sgd",
        ]  # fmt: skip
    found: dict[str, list[dict[str, float]]] = {program: [] for program in programs}
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch, "found.json")
        for _ in range(options.rounds):
            for program, command in programs.items():
                measuring.run_child([*command, f"--output={output}"], log=Path(scratch, "printed.txt"))
                told = json.loads(output.read_text())
                found[program].append(ours_of(told) if program in OURS else told)
    return found


def ours_of(told: dict) -> dict[str, float]:
    """Reads what `benchmark` has measured."""
    speeds = {row["what"]: row["pictures_per_second"] for row in told["measured"]}
    of = {"forward": "forward", "update": "train step"}
    return {
        name: next(v for what, v in speeds.items() if what.startswith(start)) for name, start in of.items()
    }


def table(runs: dict[str, list[dict[str, float]]], *, macs: float, peak: float) -> str:
    """Returns the Markdown table of a network; ratios are to each opponent, round by round."""
    opponents = [program for program in runs if program not in OURS]
    rows = []
    for what, passes in (("forward", 1), ("update", 3)):
        for program, rounds in runs.items():
            speeds = [one[what] for one in rounds]
            better = [
                measuring.show_better(
                    measuring.better_by([one[what] for one in runs[opponent]], speeds, kind="rate"),
                    kind="rate",
                )
                if program in OURS
                else ""
                for opponent in opponents
            ]
            middle, low, high = (measuring.show(v, kind="rate") for v in measuring.spread(speeds))
            share = f"{200 * passes * macs * statistics.median(speeds) / peak:.0f} %"
            rows.append([what, program, middle, f"{low} to {high}", share, *better])
    over = [f"over {opponent}" for opponent in opponents]
    return measuring.markdown(
        ["pictures/s", "program", "median", "lowest to highest", "of the peak", *over], rows
    )


def peak_flops(precision: str) -> float:
    """Returns what a product of two matrices in an arithmetic does a second, the best of ten."""
    import tensorflow as tf

    side = 2048
    matrix, best = tf.cast(tf.random.normal([side, side], seed=0), precision), float("inf")
    for _ in range(11):
        begun = time.perf_counter()
        tf.matmul(matrix, matrix).numpy()
        best = min(best, time.perf_counter() - begun)
    return 2 * side**3 / best


if __name__ == "__main__":
    main()
