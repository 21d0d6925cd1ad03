"""Time and memory of many small pictures in Parquet shards: indexed, and one shuffled epoch of them.

    python experiments/benchmarks/table_shards.py --examples=10000,100000,1000000 --output=shards.json

The shards are as the `datasets` package writes them, {bytes, path} and numbers of classes with their names,
10,000 JPEGs of 32x32 px each. For each number of pictures a process of its own opens them as
`--source=table:`, and takes an epoch from the pipeline, decoded and in the order of training. Memory is what
the kernel counts as resident: when TensorFlow is imported, when the table is read, and during the epoch.
"""

import argparse
import io
import json
import sys
import tempfile
import time
from pathlib import Path

import measuring

SHARD_PICTURES = 10_000
CLASSES = [f"class {k}" for k in range(10)]
SIDE_PX = 32


def write_shards(folder: Path, examples: int) -> None:
    """Writes pictures of noise, of which no two are alike in label, path and bytes."""
    import numpy as np
    import pyarrow as pa
    from PIL import Image
    from pyarrow import parquet

    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(1000):
        out = io.BytesIO()
        coarse = rng.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(coarse).resize((SIDE_PX, SIDE_PX)).save(out, "JPEG", quality=90)
        pictures.append(out.getvalue())
    names = {"names": CLASSES, "_type": "ClassLabel"}
    features = {"info": {"features": {"image": {"_type": "Image"}, "label": names}}}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", image), ("label", pa.int64())], {"huggingface": json.dumps(features)})
    shards = -(-examples // SHARD_PICTURES)
    folder.mkdir(parents=True)
    for shard in range(shards):
        rows = range(shard * SHARD_PICTURES, min((shard + 1) * SHARD_PICTURES, examples))
        # Bytes behind the end of a JPEG tell pictures apart, and decoders pass them over.
        made = [{"bytes": pictures[k % 1000] + k.to_bytes(4, "big"), "path": f"{k:07d}.jpg"} for k in rows]
        table = pa.table([pa.array(made, image), pa.array([k % 10 for k in rows])], schema=schema)
        path = folder / f"train-{shard:05d}-of-{shards:05d}.parquet"
        parquet.write_table(table, path, row_group_size=1000)


def resident_mb() -> float:
    """Returns the memory of this process, MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1000


def measure(folder: Path, cache: str, *, only_read: bool) -> None:
    """Prints JSON: seconds and memory of what is done with the shards in a folder."""
    import numpy as np

    from trainer.data.inspect.scan import Scan
    from trainer.data.pipeline import Pipeline
    from trainer.data.sources import SourceOptions, open_source
    from trainer.values import Contract

    found: dict[str, object] = {"imported_mb": resident_mb()}
    start = time.perf_counter()
    options = SourceOptions(cache_dir=cache, memory_budget_bytes=64 * 2**20)
    source = open_source(f"table:{folder}", options)
    found |= {"index_secs": time.perf_counter() - start, "indexed_mb": resident_mb()}
    start = time.perf_counter()
    source.load()
    found |= {"load_secs": time.perf_counter() - start, "loaded_mb": resident_mb()}
    count = len(source.ids)
    scan = Scan([""] * count, np.ones(count, np.int32))
    contract = Contract(SIDE_PX, SIDE_PX, (0.0, 1.0), feature_width=1, any_size=True)
    pipeline = Pipeline(source, scan, contract=contract, batch_size=256, seed=0)
    steps, every = -(-count // 256), np.arange(count)
    start, during, num_bytes = time.perf_counter(), [], 0
    batches = np.array_split(np.random.default_rng(0).permutation(every), steps)
    if not only_read:
        batches = pipeline.training(every, start_step=0, stop_step=steps)
    for step, batch in enumerate(batches):
        if step % max(steps // 10, 1) == 0:
            during.append(round(resident_mb(), 1))
        if only_read:
            num_bytes += sum(len(source.read(at)) for at in batch.tolist())
        else:
            assert batch["image"].shape == (256, SIDE_PX, SIDE_PX, 3)
    found |= {"epoch_secs": time.perf_counter() - start, "during_mb": during, "read_bytes": num_bytes}
    print(json.dumps(found))


def table(rows: dict[int, dict]) -> str:
    """Returns the Markdown table of {number of pictures: what was measured}."""
    lines = [
        [
            f"{count:,}", f"{row['index_secs']:.1f}", f"{row['load_secs']:.1f}",
            f"{count / row['epoch_secs']:,.0f}", f"{row['imported_mb']:,.0f}", f"{row['indexed_mb']:,.0f}",
            f"{row['loaded_mb']:,.0f}", f"{row['during_mb'][0]:,.0f} to {max(row['during_mb']):,.0f}",
        ]
        for count, row in rows.items()
    ]  # fmt: skip
    head = [
        "pictures", "indexed in s", "copied in s", "pictures/s of the epoch", "MB before", "MB indexed",
        "MB copied", "MB during the epoch",
    ]  # fmt: skip
    return measuring.markdown(head, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--examples", default="10000,100000,1000000", help="numbers of pictures, rising")
    parser.add_argument("--output", help="JSON")
    parser.add_argument("--only_read", action="store_true", help="shuffled, but not decoded")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--cache", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        return measure(Path(options.measure), options.cache, only_read=options.only_read)
    rows: dict[int, dict] = {}
    for examples in map(int, options.examples.split(",")):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            write_shards(folder / "shards", examples)
            command = [
                *(sys.executable, __file__, f"--measure={folder / 'shards'}"),
                *(f"--cache={folder / 'cache'}", *(["--only_read"] if options.only_read else [])),
            ]
            child = measuring.run_child(
                command, log=folder / "log.txt", environment={"PYTHONPATH": str(measuring.ROOT)}
            )
            line = next(line for line in child.output.splitlines() if line.startswith('{"imported_mb"'))
            rows[examples] = {**json.loads(line), "peak_mb": child.peak_rss_mb}
            print(examples, rows[examples], flush=True)
    print(f"\n{table(rows)}\n\n- {measuring.machine()}")
    measuring.write_json(options.output, rows)


if __name__ == "__main__":
    main()
