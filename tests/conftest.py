"""What tests share: a tiny backbone, folders of tiny pictures, and the program's door."""

import logging
import os
from pathlib import Path

# Read once, when TensorFlow is imported: several test processes share the cores.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "2")
# Nothing of the machine's own may leak into a test.
for _name in ("TFHUB_CACHE_DIR", "TFDS_DATA_DIR", "TF_CONFIG"):
    os.environ.pop(_name, None)

import pytest  # noqa: E402

COLOURS = {
    "red": (220, 20, 10),
    "green": (20, 200, 30),
    "blue": (10, 30, 210),
    "grey": (128, 128, 128),
    "black": (5, 5, 5),
}


@pytest.fixture(scope="session", autouse=True)
def shared_cache(tmp_path_factory):
    """The cache folder of all tests, instead of the user's; one for all test processes."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared-cache"
    folder.mkdir(exist_ok=True)
    patch = pytest.MonkeyPatch()
    # Its table of fonts takes seconds to build, and is no business of ours.
    patch.setenv("MPLCONFIGDIR", os.environ.get("MPLCONFIGDIR", str(_user_cache() / "matplotlib")))
    patch.setenv("XDG_CACHE_HOME", str(folder))
    yield folder / "hub-trainer"
    patch.undo()


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory):
    """Path of a reusable SavedModel of two features, red + blue and green + blue, for any size."""
    from tests.model.modules import save_tiny

    return save_tiny(tmp_path_factory.mktemp("backbone") / "tiny")


@pytest.fixture(scope="session")
def flower_folder():
    """make(root, n=6, classes=("red", "green", "blue")): one folder a class, n JPEGs of 12x10 px each.

    Every picture has the colour of its class with some noise, and no two have the same bytes.
    """
    return make_flower_folder


def make_flower_folder(root, n=6, classes=("red", "green", "blue")) -> Path:
    import numpy as np
    from PIL import Image

    for k, name in enumerate(classes):
        folder = Path(root) / name
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(n):
            noise = np.random.default_rng([k, i]).integers(-25, 26, (10, 12, 3))
            pixels = np.clip(np.array(COLOURS[name]) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{i:03d}.jpg", quality=95)
    return Path(root)


def call_main(*arguments: object) -> int:
    """Calls the program in this process and returns its exit status; logging is left as it was."""
    from trainer.main import main

    log = logging.getLogger("trainer")
    before = (log.handlers, log.level, log.propagate)
    try:
        return main(["trainer", *map(str, arguments)])
    finally:
        log.handlers, _, log.propagate = before
        log.setLevel(before[1])  # Set by hand, what the logger remembers of its level would stay.


@pytest.fixture
def run_main(capfd):
    """run(*arguments) -> (exit status, standard output, standard error), without a new process."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        status = call_main(*arguments)
        out, err = capfd.readouterr()
        return status, out, err

    return run
