"""Where pictures come from.

A new kind of source is a registered function in a file of this folder, or in a plugin.
"""

# All of them, so that they are registered.
from trainer.data.sources import archive, folder, synthetic, tfds
from trainer.data.sources.base import SOURCES, MemorySource, Source, SourceOptions, open_source

__all__ = [
    "SOURCES",
    "MemorySource",
    "Source",
    "SourceOptions",
    "archive",
    "folder",
    "open_source",
    "synthetic",
    "tfds",
]
