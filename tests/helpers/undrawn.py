"""Runs whose figures are one pixel: for tests of something else, a figure takes a tenth of a second."""

import base64
import contextlib
from collections.abc import Iterator

import pytest
from matplotlib.figure import Figure

PLAIN = ("--embeddings=0", "--figures_every=")
"""Flags of a run that shows nothing but numbers."""
_PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAG7buVgAAAABJRU5ErkJggg=="
)


@contextlib.contextmanager
def undrawn() -> Iterator[None]:
    """Within the block, each figure is saved as the same pixel, and no pictures of a phase are shown."""
    from trainer.run import session

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda figure, file, **how: file.write(_PIXEL))
        # Whoever looks for its letters would make all ticks, too, and nobody draws them.
        patch.setattr(Figure, "findobj", lambda figure, *of_kind, **how: [])
        # To read them, tf.data traces functions of its own: a tenth of such a run.
        patch.setattr(session, "show_pictures", lambda experiment, summaries, phase: None)
        yield
