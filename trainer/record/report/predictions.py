"""What was predicted for each picture: a table for spreadsheets, and an exact one for programs."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from trainer.measures.probabilities import predicted, softmax


@dataclass(frozen=True)
class Predictions:
    """What was predicted for N pictures of K classes."""

    ids: Sequence[str]
    labels: np.ndarray
    """[N] int."""
    logits: np.ndarray
    """[N, K]."""
    class_names: Sequence[str]
    """[K], all different."""
    digests: Sequence[str]
    """[N] SHA-256 of the encoded pictures, in hex; empty where it is not known."""


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


def as_csv(given: Predictions) -> str:
    """Returns id, label, prediction, probability_NAME of each class, 6 decimals or `nan`, and sha256."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(_columns(given.class_names))
    names, probabilities = given.class_names, softmax(given.logits)
    said = predicted(given.logits)
    for i, (name, digest) in enumerate(zip(given.ids, given.digests, strict=True)):
        shares = (f"{p:.6f}" for p in probabilities[i])
        rows.writerow([name, names[given.labels[i]], names[said[i]], *shares, digest])
    return text.getvalue()


def as_parquet(given: Predictions) -> bytes:
    """Returns the same columns as an Apache Parquet file, probabilities in all their 64 bits."""
    names = np.array(given.class_names, dtype=object)
    columns = [
        pa.array(list(given.ids), pa.string()),
        pa.array(names[np.asarray(given.labels)], pa.string()),
        pa.array(names[predicted(given.logits)], pa.string()),
        *(pa.array(np.ascontiguousarray(column), pa.float64()) for column in softmax(given.logits).T),
        pa.array(list(given.digests), pa.string()),
    ]
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table(columns, names=_columns(given.class_names)), sink)
    return sink.getvalue().to_pybytes()


def _columns(class_names: Sequence[str]) -> list[str]:
    return ["id", "label", "prediction", *(f"probability_{name}" for name in class_names), "sha256"]
