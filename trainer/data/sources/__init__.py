"""Where pictures come from.

A new kind of source is a registered function in a file of this folder, or in a plugin.
"""

# All of them, so that they are registered.
from trainer.data.sources import archive, folder, joined, synthetic, table, tfds
from trainer.data.sources.base import (
    SOURCES,
    MemorySource,
    Relabelled,
    Source,
    SourceOptions,
    gives_several,
    label_tuples,
    open_source,
)

__all__ = [
    "SOURCES",
    "MemorySource",
    "Relabelled",
    "Source",
    "SourceOptions",
    "archive",
    "folder",
    "gives_several",
    "joined",
    "label_tuples",
    "open_source",
    "synthetic",
    "table",
    "tfds",
]
