"""`tfds:NAME[/CONFIG][:VERSION]`; `trainer.data.sources.tfds_reader` reads it."""

from trainer.data.encoded_cache import EncodedStore
from trainer.data.sources.base import SOURCES, Source


@SOURCES.register("tfds", address="NAME[/CONFIG][:VERSION]")
def open_data_set(data_set: str, *, name: str, data_dir: str, store: EncodedStore) -> Source:
    """A data set of TensorFlow Datasets, prepared where it is not yet."""
    # To import tensorflow_datasets takes a quarter of a second.
    from trainer.data.sources.tfds_reader import open_tfds

    return open_tfds(data_set, name=name, data_dir=data_dir, store=store)
