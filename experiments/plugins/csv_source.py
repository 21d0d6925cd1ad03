"""A source: the pictures that a table names, in lines `path,label` with paths from the folder of the table.

python -m trainer.main --plugin=experiments/plugins/csv_source.py --source=csv:photos.csv --workdir=runs/csv
"""

import csv
from pathlib import Path

import numpy as np

import trainer
from trainer.data.sources import MemorySource


@trainer.register.source("csv", address="TABLE")
def table(path: str, *, name):
    """The pictures that a table of path,label names."""
    rows = sorted(csv.reader(Path(path).read_text(encoding="utf-8").splitlines()))
    names = sorted({label for _, label in rows})
    labels = np.array([names.index(label) for _, label in rows])
    encoded = [(Path(path).parent / picture).read_bytes() for picture, _ in rows]
    ids = [picture for picture, _ in rows]
    return MemorySource(name, tuple(names), ids, labels, encoded, sorted_by_class=True)
