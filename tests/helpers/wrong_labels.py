"""A tfds data set whose files hold other labels than it has classes."""

import shutil
from pathlib import Path

from tests.data.trees import prepare_tiny


def save_wrong_labels(root: Path, **labels: int) -> dict[str, Path]:
    """Returns {name: data_dir} of tfds:tiny_blooms:plain, all of whose pictures have the label given."""
    import tensorflow as tf

    prepare_tiny(str(root / "right"))
    for name, label in labels.items():
        shutil.copytree(root / "right", root / name)
        for file in (root / name).rglob("*.tfrecord*"):
            records = [record.numpy() for record in tf.data.TFRecordDataset(str(file))]
            with tf.io.TFRecordWriter(str(file)) as out:
                for record in records:
                    example = tf.train.Example.FromString(record)
                    example.features.feature["label"].int64_list.value[:] = [label]
                    out.write(example.SerializeToString())
    return {name: root / name for name in labels}
