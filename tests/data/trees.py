"""Small sources on disk: class folders, archives of them, and a tfds data set."""

import functools
import io
import os
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np

from tests.data.pictures import jpeg

FILES = {
    "roses/10.jpg": jpeg(1),
    "roses/9.jpg": jpeg(2),
    "roses/B.JPG": jpeg(3),
    "roses/a.Jpeg": jpeg(4),
    "daisy/garden/1.jpg": jpeg(5),
    "daisy/0.jpg": jpeg(6),
    "tulips/ü.jpg": jpeg(7),
}
# Plain code points: digits, capitals, small letters; "1" before "9", and folders by their path.
ORDER = ["daisy/0.jpg", "daisy/garden/1.jpg", "roses/10.jpg", "roses/9.jpg", "roses/B.JPG", "roses/a.Jpeg"]
ORDER.append("tulips/ü.jpg")
OTHERS = {"LICENSE.txt": b"free", ".DS_Store": b"x", "roses/.hidden.jpg": b"x", "roses/notes.txt": b"x"}


LONG_AGO = time.time_ns() - 3600 * 10**9


def age(root: Path, ns: int = LONG_AGO) -> Path:
    """Makes all files of a folder look settled, as files are that lie there for longer than a test."""
    for path in root.rglob("*"):
        os.utime(path, ns=(ns, ns))
    return root


def write_tree(root: Path, files: dict[str, bytes]) -> Path:
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


def write_tgz(path: Path, files: dict[str, bytes], top: str = "flower_photos/") -> Path:
    with tarfile.open(path, "w:gz") as packed:
        for name, data in files.items():
            add(packed, top + name, data)
    return path


def add(packed: tarfile.TarFile, name: str, data: bytes = b"", **facts) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for key, value in facts.items():
        setattr(member, key, value)
    packed.addfile(member, io.BytesIO(data))


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in {**files, "__MACOSX/roses/._10.jpg": b"x"}.items():
            packed.writestr(name, data)
    return path


@functools.cache
def tiny_builder():
    """A tfds builder with a train and a test split; made on demand, as importing tfds takes a while."""
    import tensorflow_datasets as tfds

    class TinyBlooms(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = [  # noqa: RUF012
            tfds.core.BuilderConfig(name="plain", version="1.0.0", description="labelled"),
            tfds.core.BuilderConfig(name="bare", version="1.0.0", description="without labels"),
            tfds.core.BuilderConfig(name="hidden", version="1.0.0", description="test labels not public"),
        ]

        def _info(self):
            features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=["b", "a"])}
            if self.builder_config.name == "bare":
                features = {
                    "image": tfds.features.Image(),
                    "mask": tfds.features.Tensor(shape=(), dtype=np.int64),
                }
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"test": self._generate_examples(20, 3), "train": self._generate_examples(0, 8)}

        def _generate_examples(self, first, count):
            second = "mask" if self.builder_config.name == "bare" else "label"
            hidden = {21} if self.builder_config.name == "hidden" else set()
            for k in range(first, first + count):
                yield k, {"image": np.full((4, 5, 3), k, np.uint8), second: -1 if k in hidden else k % 2}

    return TinyBlooms


def prepare_tiny(data_dir: str, config: str = "plain") -> None:
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    tiny_builder()(config=config, data_dir=data_dir).download_and_prepare()
