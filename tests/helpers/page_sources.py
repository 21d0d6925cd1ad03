"""What docs/sources.md takes for there, in small: an archive, tables, shards, folders, scans."""

import csv
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def _write_table(path: Path, head, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([head, *rows])


def _pictures(folder: Path):
    return [(path, path.parent.name) for path in sorted(folder.rglob("*.jpg"))]


def make(folder: Path) -> None:
    """Writes all of it into a folder in which `my_pictures` are."""
    pictures = _pictures(folder / "my_pictures")
    shutil.make_archive(str(folder / "photos"), "zip", folder / "my_pictures")
    (folder / "images").mkdir()
    for k, (path, _) in enumerate(pictures, 1):
        shutil.copy(path, folder / f"images/{k}.jpg")
    rows = [(f"images/{k}.jpg", name, "ann") for k, (_, name) in enumerate(pictures, 1)]
    _write_table(folder / "photos.csv", ("file", "species", "photographer"), rows)
    patients = [(file, name, f"p{k // 3}") for k, (file, name, _) in enumerate(rows)]
    _write_table(folder / "scans.csv", ("file", "finding", "patient"), patients)
    _write_table(folder / "b.csv", ("file", "label"), [row[:2] for row in rows[::2]])
    for k, (path, name) in enumerate(pictures):
        part = ("train", "train", "train", "test")[k % 4]
        for place in (
            f"photos_with_metadata/{part}/{k}.jpg",
            f"x/{part}/{name}/{k}.jpg",
            f"scans/{name}/p{k // 3}_{k}.jpg",
            *([f"a/{name}/{k}.jpg"] if k % 2 else []),
        ):
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / place)
    for part in ("train", "test"):
        inside = sorted((folder / "photos_with_metadata" / part).glob("*.jpg"))
        metadata = [(path.name, pictures[int(path.stem)][1]) for path in inside]
        _write_table(folder / f"photos_with_metadata/{part}/metadata.csv", ("file_name", "label"), metadata)
    encoded = [{"bytes": path.read_bytes(), "path": None} for path, _ in pictures]
    names = [name for _, name in pictures]
    (folder / "shards/data").mkdir(parents=True)
    for k in range(2):
        table = pa.table({"image": encoded[k::2], "label": names[k::2]})
        pq.write_table(table, folder / f"shards/data/train-{k:05d}-of-00002.parquet")
    fine = pa.table({"image": encoded, "fine_label": names, "coarse_label": ["flower"] * len(names)})
    pq.write_table(fine, folder / "one.parquet")
