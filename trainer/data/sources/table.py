"""`table:ADDRESS`: pictures that a table names or holds; `trainer.data.sources.table_reader` reads it."""

from trainer.data.sources.base import DEFAULT_OPTIONS, SOURCES, Source, SourceOptions
from trainer.paths import local_path


@SOURCES.register("table", address="FILE_FOLDER_OR_PATTERN", check=local_path)
def open_table_of_pictures(address: str, *, name: str, options: SourceOptions = DEFAULT_OPTIONS) -> Source:
    """The pictures of a table: a .csv, .tsv, .jsonl or .parquet file, a folder or a pattern of such.

    Also a folder of pictures with a metadata.csv.
    """
    # To import pyarrow takes a moment.
    from trainer.data.sources.table_reader import open_table_source

    return open_table_source(address, name=name, options=options)
