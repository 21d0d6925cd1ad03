"""Draws many pictures of `synthetic:` in processes of their own, in order, a few ahead of the reader.

Threads do not help: drawing holds the interpreter's lock. The processes are started as plain programs
that end with their input, so they outlive no crash of this one, and run nothing of its main module.
"""

import logging
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from trainer.data.sources.synthetic.picture import draw_picture, label_of
from trainer.runtime import cores

_log = logging.getLogger("trainer")
# Fewer take seconds anyway, and on a busy machine processes win nothing.
MIN_EXAMPLES = 2000
MAX_PROCESSES = 16
CHUNK = 50
PROGRESS_SECS = 10.0


def draw_all(count: int, *, draw: Callable[[int], bytes], seed: int, name: str) -> Iterator[bytes]:
    """Yields the pictures of positions 0 to `count` - 1, with a line in the log every 10 seconds.

    Args:
      count: how many.
      draw: draws one here, where there are few, only one core, or the processes fail.
      seed: of the pictures.
      name: what messages call the source.
    """
    return _told(_draw_all(count, draw, seed, name), count, name)


def _draw_all(count: int, draw: Callable[[int], bytes], seed: int, name: str) -> Iterator[bytes]:
    done = 0
    processes = min(cores(), MAX_PROCESSES)
    if count >= MIN_EXAMPLES and processes > 1:
        chunks = [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
        try:
            for pictures in _in_processes(chunks, seed, processes):
                yield from pictures
                done += len(pictures)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            _log.info(
                "%s: a process that draws ended (%s): drawing goes on in this one", name, type(error).__name__
            )
    yield from map(draw, range(done, count))


def _told(pictures: Iterable[bytes], count: int, name: str) -> Iterator[bytes]:
    told = time.monotonic()
    for done, picture in enumerate(pictures):
        if time.monotonic() - told >= PROGRESS_SECS:
            told = time.monotonic()
            _log.info("%s: %s of %s pictures drawn", name, f"{done:,}", f"{count:,}")
        yield picture


def _in_processes(chunks: Sequence[range], seed: int, processes: int) -> Iterator[list[bytes]]:
    drawers: list[_Drawer] = []
    # One chunk in work and one that waits, each: so many pictures are in memory at a time.
    ahead = 2 * processes
    try:
        drawers += [_Drawer(seed) for _ in range(processes)]
        for k, chunk in enumerate(chunks[:ahead]):
            drawers[k % processes].ask(chunk)
        for k in range(len(chunks)):
            drawer = drawers[k % processes]
            pictures = drawer.answer()
            if k + ahead < len(chunks):
                drawer.ask(chunks[k + ahead])
            yield pictures
    finally:
        for drawer in drawers:
            drawer.close()


class _Drawer:
    """A process that draws what it is asked for, first come, first served."""

    def __init__(self, seed: int):
        self.seed = seed
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        # What it says is of no use: where it fails, the same is drawn here and fails here.
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from trainer.data.sources.synthetic.workers import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": paths},
        )

    def ask(self, chunk: range) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{self.seed} {chunk.start} {chunk.stop}\n".encode())
        self.process.stdin.flush()

    def answer(self) -> list[bytes]:
        assert self.process.stdout
        return pickle.load(self.process.stdout)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def serve() -> None:
    """Reads lines `SEED START STOP` and writes the pickled pictures [START, STOP), until they end."""
    for line in sys.stdin.buffer:
        seed, start, stop = map(int, line.split())
        pictures = [draw_picture(label_of(seed, i), seed=seed, index=i) for i in range(start, stop)]
        pickle.dump(pictures, sys.stdout.buffer)
        sys.stdout.buffer.flush()
