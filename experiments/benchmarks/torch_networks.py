"""Forward passes and updates of one of timm's networks, pictures a second. An opponent.

    python experiments/benchmarks/torch_networks.py --network=inception_v3 --image_size=299 --output=t.json

Random weights and one random batch in memory, in channels_last; an update is cross entropy over five
classes and SGD. Runs in an environment of its own: `make opponents`.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import timm
import torch

ARITHMETICS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
AT_LEAST_SECS = 0.5


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--network", required=True, help="timm's name")
    parser.add_argument("--image_size", type=int, required=True)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--precision", default="float32", choices=ARITHMETICS)
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", required=True, help="JSON with pictures a second")
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    torch.manual_seed(0)
    more = {"aux_logits": False} if options.network.startswith("inception_v3") else {}
    network = timm.create_model(options.network, num_classes=5, **more).to(memory_format=torch.channels_last)
    compiled = torch.compile(network) if options.compile else network
    size = options.image_size
    images = torch.rand(options.batch_size, 3, size, size).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(options.batch_size) % 5
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    arithmetic = torch.autocast(
        "cpu", dtype=ARITHMETICS[options.precision], enabled=options.precision != "float32"
    )

    def forward() -> None:
        with torch.inference_mode(), arithmetic:
            compiled(images)

    def update() -> None:
        optimizer.zero_grad()
        with arithmetic:
            loss = torch.nn.functional.cross_entropy(compiled(images), labels)
        loss.backward()
        optimizer.step()

    found = {}
    for name, work, is_training in (("forward", forward, False), ("update", update, True)):
        network.train(is_training)
        found[name] = options.batch_size / seconds(work, repeats=options.repeats)
    with open(options.output, "w") as file:
        json.dump(found, file)


def seconds(work: Callable[[], None], *, repeats: int) -> float:
    """Returns the median over `repeats`, each of half a second or more, after two calls that compile."""
    work()
    work()
    begun = time.perf_counter()
    work()
    count = max(1, round(AT_LEAST_SECS / (time.perf_counter() - begun)))

    def measured() -> float:
        begun = time.perf_counter()
        for _ in range(count):
            work()
        return (time.perf_counter() - begun) / count

    return statistics.median(measured() for _ in range(repeats))


if __name__ == "__main__":
    main()
