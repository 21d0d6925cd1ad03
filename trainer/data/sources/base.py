"""What a source of pictures is, and where each kind is registered."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from trainer.data.class_folders import Listing
from trainer.data.encoded_cache import DEFAULT_BUDGET_BYTES, EncodedStore
from trainer.data.tables.files import ENDINGS as TABLE_ENDINGS
from trainer.paths import expanded, local_path, scheme_of
from trainer.registry import AddressRegistry
from trainer.store.places import cache_root
from trainer.values import UsageError


class Source(Protocol):
    """Labelled pictures in a fixed order, as encoded bytes.

    The order never depends on the file system or on a shuffle: the same pictures give the same
    order on every machine. Slicing, shuffling and sharding happen on positions in it.

    A source may have besides `groups` [N] str, what each example belongs to (--group_column), `weights`
    [N] float64, of each example in the loss, and `left_out`, [(what, reason)] of what it has named already
    and does not give.
    """

    @property
    def name(self) -> str:
        """As given on the command line, e.g. `folder:photos`."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Label k is `class_names[k]`."""

    @property
    def ids(self) -> Sequence[str]:
        """[N] one unique, lasting name per example, e.g. `roses/12.jpg`, without control characters."""

    @property
    def labels(self) -> np.ndarray:
        """[N] int64; or, where an example has any number of labels, what `label_tuples` makes.

        `Task.encoded` makes of these what a task calculates with.
        """

    @property
    def sorted_by_class(self) -> bool:
        """Whether neighbours in the order share a class, so that take/skip needs a permutation."""

    @property
    def native_splits(self) -> dict[str, tuple[int, int]]:
        """{name: [start, stop)} where the source comes divided; empty or {'train': (0, N)} otherwise."""

    def read(self, index: int) -> bytes:
        """Returns the encoded picture (JPEG, PNG, GIF, BMP ...) at a position of the order.

        Safe to call from several threads at once.

        Raises:
          BadPictureError: what is there is no picture that could be read; --on_bad_image decides.
          TrainerError: it cannot be read at the moment; the message names it.
        """
        ...

    def load(self) -> None:
        """Does at once what `read` would do one by one; called before all pictures are read.

        Raises:
          TrainerError: it cannot be done; the message says why.
        """

    def stamp(self) -> str | None:
        """Returns a digest that is another one whenever a picture is.

        It is taken of what is cheap to look at, such as names, sizes and modification times of files.
        None where that vouches for nothing.
        """


@dataclass(frozen=True)
class SourceOptions:
    """What some schemes need besides their address."""

    data_dir: str = ""
    cache_dir: str = ""
    checksum: str = ""
    synthetic_examples: int = 1000
    synthetic_seed: int = 0
    memory_budget_bytes: int = DEFAULT_BUDGET_BYTES
    splits: str = "auto"
    """Value of --splits."""
    on_bad_image: str = "fail"
    """Value of --on_bad_image."""
    results: tuple[Path, ...] = ()
    """Folders that the command writes to: they hold no pictures to train with."""
    run_classes: tuple[str, ...] = ()
    """The classes of the run that is to be scored on these pictures; empty where they are trained with."""
    several: bool = False
    """Whether the task is about any number of labels an example."""
    image_root: str = ""
    image_column: str = ""
    label_column: str = ""
    split_column: str = ""
    group_column: str = ""
    weight_column: str = ""

    @property
    def spill_folder(self) -> Path:
        """Where the pictures go for which the budget is too small."""
        return cache_root(self.cache_dir) / "spill"

    def new_store(self) -> EncodedStore:
        """Returns an empty store with the budget, which keeps what exceeds it in a file."""
        return EncodedStore(budget_bytes=self.memory_budget_bytes, spill_folder=self.spill_folder)


DEFAULT_OPTIONS = SourceOptions()


@dataclass
class MemorySource:
    """A Source whose encoded pictures are a sequence: a list, or a store that keeps to a budget.

    `stamped` is what `stamp` returns.
    """

    name: str
    class_names: tuple[str, ...]
    ids: Sequence[str]
    labels: np.ndarray
    encoded: Sequence[bytes]
    sorted_by_class: bool = False
    native_splits: dict[str, tuple[int, int]] = field(default_factory=dict)
    stamped: str | None = None

    def read(self, index: int) -> bytes:
        return self.encoded[index]

    def load(self) -> None:
        pass

    def stamp(self) -> str | None:
        return self.stamped


def label_tuples(labels: Iterable[Iterable[int]]) -> np.ndarray:
    """Returns the labels of a source whose examples have any number of them, none included.

    Args:
      labels: of each of N examples, the numbers of its classes, in any order.

    Returns:
      [N] object: tuples of int, increasing, each number once. An array of this dtype is how a source says
      that it gives several labels an example (`gives_several`).
    """
    rows = [tuple(sorted({int(label) for label in row})) for row in labels]
    found = np.empty(len(rows), object)
    # One by one: NumPy would make tuples of one length rows of a table.
    for at, row in enumerate(rows):
        found[at] = row
    return found


def gives_several(source: Source) -> bool:
    """Returns whether an example of a source has any number of labels instead of one."""
    return source.labels.dtype == object


# Folders in the folder of a run.
_OF_RUNS = ("train", "validation", "test", "options", "report", "checkpoints", "export", "explain")
SOURCES: AddressRegistry[Source] = AddressRegistry("source", flag="--source")


def check_source(address: str) -> None:
    """Makes sure that an address names one of `SOURCES` and that a folder is there; needs no TensorFlow.

    Raises:
      UsageError: it names none; of a path, the message says what to write.
      TrainerError: there is no such folder.
    """
    scheme = scheme_of(address)
    if scheme in ("http", "https"):
        raise UsageError(
            f"--source={address} does not say what it is; of an archive, --source=archive:{address}"
        )
    if (
        not scheme
        and address.partition(":")[0] not in SOURCES
        and os.path.exists(path := expanded(address, flag=f"--source={address}"))
    ):
        kind, what = ("folder", "a folder") if os.path.isdir(path) else ("archive", "a file")
        if path.lower().endswith(TABLE_ENDINGS):
            raise UsageError(f"--source={address} is {what}: write --source=table:{address}")
        others = "" if kind == "folder" else ", if it is a .tgz, .tar or .zip of class folders"
        raise UsageError(f"--source={address} is {what}: write --source={kind}:{address}{others}")
    try:
        chosen = SOURCES.choose(address)
    except UsageError as error:
        is_word = address and ":" not in address and address not in SOURCES
        of_folder = f"; a folder of pictures is written --source=folder:{address}" if is_word else ""
        raise UsageError(f"{error}{of_folder}") from None
    if chosen.name == "folder":
        Listing(address).folders(local_path(chosen.address, flag=f"--source={address}"))


def check_apart(address: str, workdir: Path) -> None:
    """Makes sure that the files of a run do not come to lie among class folders, where they would be classes.

    A run in a folder of its own may lie anywhere: see `Listing`.

    Raises:
      UsageError: they would.
    """
    if not address.startswith("folder:"):
        return
    root = local_path(address.removeprefix("folder:"), flag=f"--source={address}").resolve()
    if workdir.resolve() == root or (workdir.resolve() == root.parent and root.name in _OF_RUNS):
        raise UsageError(
            f"--workdir={workdir} would have the files of the run among the pictures of --source={address}: "
            "choose another, such as --workdir=runs/mine"
        )


def open_source(address: str, options: SourceOptions) -> Source:
    """Opens one of `SOURCES`.

    Raises:
      UsageError: the address names none, or cannot be one.
      TrainerError: the source cannot be had; the message says what was tried.
    """
    check_source(address)
    return SOURCES.choose(address)(
        name=address,
        cache_dir=options.cache_dir,
        data_dir=options.data_dir,
        checksum=options.checksum,
        budget_bytes=options.memory_budget_bytes,
        store=options.new_store(),
        num_examples=options.synthetic_examples,
        seed=options.synthetic_seed,
        options=options,
    )


class Relabelled:
    """A Source with other labels: everything else is asked of the one it is made from."""

    def __init__(self, source: Source, labels: np.ndarray):
        self.source, self.labels = source, labels

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.source.class_names

    @property
    def ids(self) -> Sequence[str]:
        return self.source.ids

    @property
    def sorted_by_class(self) -> bool:
        return self.source.sorted_by_class

    @property
    def native_splits(self) -> dict[str, tuple[int, int]]:
        return self.source.native_splits

    def read(self, index: int) -> bytes:
        return self.source.read(index)

    def load(self) -> None:
        self.source.load()

    def stamp(self) -> str | None:
        return self.source.stamp()

    def __getattr__(self, name: str) -> Any:
        # What a kind of source has besides. Where there is no source yet, as in a copy, nothing is asked.
        if name == "source":
            raise AttributeError(name)
        return getattr(self.source, name)
