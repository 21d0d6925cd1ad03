"""What was predicted for each picture: a table for spreadsheets, and an exact one for programs."""

import csv
import io
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from trainer.measures.probabilities import predicted, softmax


def unique_names(names: Sequence[str]) -> list[str]:
    """Returns the names, each that was there before with a number behind it: ['a', 'a (2)']."""
    taken: set[str] = set()
    unique = []
    for name in names:
        made, number = name, 1
        while made in taken:
            number += 1
            made = f"{name} ({number})"
        taken.add(made)
        unique.append(made)
    return unique


def as_csv(ids: Sequence[str], labels: np.ndarray, logits: np.ndarray, class_names: Sequence[str]) -> str:
    """Returns id, label, prediction and probability_NAME of each class, 6 decimals, or `nan`.

    Args:
      ids: [N].
      labels: [N] int.
      logits: [N, K].
      class_names: [K], all different.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(_columns(class_names))
    for name, label, prediction, row in zip(ids, labels, predicted(logits), softmax(logits), strict=True):
        rows.writerow([name, class_names[label], class_names[prediction], *(f"{p:.6f}" for p in row)])
    return text.getvalue()


def as_parquet(
    ids: Sequence[str], labels: np.ndarray, logits: np.ndarray, class_names: Sequence[str]
) -> bytes:
    """Returns the same columns as an Apache Parquet file, probabilities in all their 64 bits.

    Args:
      ids: [N].
      labels: [N] int.
      logits: [N, K].
      class_names: [K], all different.
    """
    names = np.array(class_names, dtype=object)
    columns = [
        pa.array(list(ids), pa.string()),
        pa.array(names[np.asarray(labels)], pa.string()),
        pa.array(names[predicted(logits)], pa.string()),
        *(pa.array(np.ascontiguousarray(column), pa.float64()) for column in softmax(logits).T),
    ]
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table(columns, names=_columns(class_names)), sink)
    return sink.getvalue().to_pybytes()


def _columns(class_names: Sequence[str]) -> list[str]:
    return ["id", "label", "prediction", *(f"probability_{name}" for name in class_names)]
