"""Pictures in memory and beyond it: the same bytes come back, memory stays small, no file is left."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.data.trees import FILES, write_tree
from trainer.data.encoded_cache import EncodedStore, Kept
from trainer.data.sources.folder import open_folder
from trainer.values import TrainerError


def picture(index: int) -> bytes:
    return bytes([index % 251]) * (index % 7 + 1)


def test_what_fits_is_held_in_memory_and_no_file_is_made(tmp_path):
    store = EncodedStore(budget_bytes=6, spill_folder=tmp_path / "spill")
    for data in (b"one", b"", b"two"):
        store.append(data)
    assert [*store] == [b"one", b"", b"two"]
    assert (len(store), store.nbytes, store.memory_bytes, store.in_memory) == (3, 6, 6, True)
    assert not (tmp_path / "spill").exists()


def test_what_exceeds_the_budget_comes_back_from_a_file_without_a_name(tmp_path):
    store = EncodedStore(budget_bytes=40, spill_folder=tmp_path / "a/spill")
    for index in range(100):
        store.append(picture(index))
    assert [*store] == [picture(index) for index in range(100)]
    assert store[3:100:40] == [picture(3), picture(43), picture(83)]
    assert not store.in_memory
    assert store.memory_bytes <= 40
    assert (len(store), store.nbytes) == (100, sum(len(picture(index)) for index in range(100)))
    assert os.listdir(tmp_path / "a/spill") == []
    with pytest.raises(IndexError):
        store.read(100)


def test_without_a_folder_what_exceeds_the_budget_is_not_kept():
    store = EncodedStore(budget_bytes=5)
    assert [store.put(at, data) for at, data in ((7, b"123"), (2, b"456"), (4, b"78"))] == [True, False, True]
    assert [store.get(at) for at in (7, 2, 4, 0)] == [b"123", None, b"78", None]
    assert (len(store), store.nbytes, store.in_memory) == (2, 5, True)


def test_positions_come_in_any_order_and_the_first_picture_of_one_stays(tmp_path):
    store = EncodedStore(budget_bytes=3, spill_folder=tmp_path)
    for at in (9, 0, 5):
        assert store.put(at, b"%03d" % at)
        assert store.put(at, b"another")
    assert [store.get(at) for at in (9, 0, 5, 4, 10)] == [b"009", b"000", b"005", None, None]
    assert (len(store), store.nbytes) == (3, 9)


@pytest.mark.parametrize("budget_bytes", [0, 20, 1000])
def test_a_store_goes_on_after_its_end_was_taken_back(tmp_path, budget_bytes):
    store = EncodedStore(budget_bytes=budget_bytes, spill_folder=tmp_path)
    for index in range(12):
        store.append(picture(index))
    store.truncate(3)
    assert [*store] == [picture(0), picture(1), picture(2)]
    assert store.nbytes == 1 + 2 + 3
    store.append(b"next")
    store.append(b"")
    assert store[:] == [picture(0), picture(1), picture(2), b"next", b""]
    assert store.nbytes == 10


def test_threads_write_and_read_one_store(tmp_path):
    store = EncodedStore(budget_bytes=300, spill_folder=tmp_path)
    kept = Kept(picture, 2000, store)
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(kept.__getitem__, [*range(2000)] * 2))
    assert read == [picture(index) for index in range(2000)] * 2
    assert (len(store), store.nbytes) == (2000, sum(len(picture(index)) for index in range(2000)))
    assert store.memory_bytes <= 300


def test_kept_pictures_are_made_once_and_those_without_room_each_time():
    made: list[int] = []

    def make(index: int) -> bytes:
        made.append(index)
        return b"12345"

    kept = Kept(make, 3, EncodedStore(budget_bytes=10))
    assert [*kept, *kept] == [b"12345"] * 6
    assert made == [0, 1, 2, 2]
    assert kept[-2:] == [b"12345"] * 2
    for index in (-1, 3):
        with pytest.raises(IndexError):
            kept[index]


def test_a_folder_keeps_what_fits_and_reads_the_rest_from_disk(tmp_path):
    photos = write_tree(tmp_path / "photos", FILES)
    files = sorted(FILES)
    sizes = [len(FILES[file]) for file in files]
    source = open_folder(str(photos), name="folder:x", budget_bytes=sum(sizes[:3]))
    assert source.ids == files
    assert [source.read(at) for at in range(7)] == [FILES[file] for file in files]
    for file in files:
        (photos / file).unlink()
    assert [source.read(at) for at in range(3)] == [FILES[file] for file in files[:3]]
    with pytest.raises(TrainerError, match=r"^--source=folder:x: cannot read \S+/roses/9.jpg: No such file"):
        source.read(3)


GROWTH = """
import sys
from pathlib import Path
from trainer.data.encoded_cache import EncodedStore
store = EncodedStore(budget_bytes=8 * 2**20, spill_folder=Path(sys.argv[1]))
def peak():
    # ru_maxrss would be that of the process that started this one, where that is larger.
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
before = peak()
for index in range(int(sys.argv[2])):
    store.append(bytes([index % 256]) * 2**15)
for index in range(len(store)):
    assert store.read(index)[-1] == index % 256
print(peak() - before)
"""


def growth_kib(folder: Path, pictures: int) -> int:
    """Returns by how much the most memory a process ever had grew while it kept pictures of 32 KiB."""
    run = [sys.executable, "-c", GROWTH, str(folder), str(pictures)]
    return int(subprocess.run(run, capture_output=True, text=True, check=True).stdout)


def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path):
    few, many = growth_kib(tmp_path, 300), growth_kib(tmp_path, 6000)
    # 6,000 of them are 187 MiB; the budget is 8 MiB.
    assert many < few + 2048
    assert many < 12 * 1024


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, os.strerror(28))

    store = EncodedStore(budget_bytes=2**20, spill_folder=tmp_path)
    monkeypatch.setattr(os, "pwrite", full)
    line = (
        f"cannot keep pictures beyond 1 MiB of memory in a temporary file in {tmp_path}: "
        "No space left on device after 0 MB; make room there, set --cache_dir or raise --memory_budget_mb"
    )
    with pytest.raises(TrainerError) as found:
        store.append(b"1" * (2**20 + 1))
    assert str(found.value) == line
    assert len(store) == 0
    monkeypatch.undo()
    store.append(b"2" * (2**20 + 1))
    assert store.read(0) == b"2" * (2**20 + 1)


LIMITED = """
import resource, signal, sys
from pathlib import Path
from trainer.data.encoded_cache import EncodedStore
from trainer.values import TrainerError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
store = EncodedStore(budget_bytes=0, spill_folder=Path(sys.argv[1]))
try:
    for index in range(9):
        store.append(b"%d" % index * 150)
except TrainerError as error:
    print(len(store), [data[:1] for data in store], error)
"""


def test_a_picture_that_was_written_in_part_does_not_count(tmp_path):
    run = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True)
    assert run.stderr == ""
    assert run.stdout.startswith("6 [b'0', b'1', b'2', b'3', b'4', b'5'] cannot keep pictures beyond 0 MiB")
    assert "File too large after 0 MB" in run.stdout


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    store = EncodedStore(budget_bytes=0, spill_folder=tmp_path / "file/spill")
    with pytest.raises(TrainerError, match=r"in \S+/file/spill: Not a directory after 0 MB; make room"):
        store.append(b"1")


def test_a_file_cut_short_is_one_line(tmp_path):
    store = EncodedStore(budget_bytes=0, spill_folder=tmp_path)
    store.append(b"12345")
    os.ftruncate(store._file.fileno(), 3)
    with pytest.raises(
        TrainerError, match=r"^cannot read pictures back from the temporary file in \S+: it is"
    ):
        store.read(0)


def test_a_killed_process_leaves_no_file(tmp_path):
    program = (
        "import os, sys; from pathlib import Path; from trainer.data.encoded_cache import EncodedStore\n"
        "store = EncodedStore(budget_bytes=0, spill_folder=Path(sys.argv[1]))\n"
        "store.append(b'1' * 9999)\nos.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "spill")])
    assert done.returncode == -9
    assert os.listdir(tmp_path / "spill") == []
