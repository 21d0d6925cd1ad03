"""What tests share: a tiny backbone, folders of tiny pictures, and the program's door."""

import gc
import logging
import os
from pathlib import Path

# Read once, when TensorFlow is imported: several test processes share the cores.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "2")
# As the program does: Keras 3 takes longer to import than the rest of TensorFlow.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
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


# Ten seconds or more each, longest first.
LONGEST = (
    "test_cluster", "test_experiments", "test_export", "test_exact_resume", "test_steps", "test_cli_errors",
    "test_feature_cache", "test_stages", "test_cli", "test_python_api", "test_explain", "test_replicas",
    "test_cli_http", "test_pipeline", "test_several_labels", "test_plugins", "test_report",
    "test_checkpoint_faults", "test_cli_surroundings", "test_cli_recipes", "test_chain", "test_gradients",
    "test_keras", "test_team", "test_efficientnet_lite", "test_predict", "test_evaluate", "test_tflite",
    "test_exact_resume_kept", "test_recommended", "test_cli_signals", "test_tables", "test_extend",
    "test_sweep", "test_tensorboard", "test_features",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """Brings the longest files to the front, so that no process works on one when the other has ended."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONGEST)))


def pytest_collection_finish():
    """Takes what is imported by now out of the garbage collector's rounds.

    It never becomes garbage, and each full round over the million objects of TensorFlow takes 0.3 s.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture(scope="session", autouse=True)
def no_power_fails():
    """Nothing waits for the disk, which can take a sixth of a run; what is no open file is still refused."""
    patch = pytest.MonkeyPatch()
    patch.setattr(os, "fsync", lambda handle: os.fstat(handle) and None)
    yield
    patch.undo()


@pytest.fixture(scope="session", autouse=True)
def no_openvino():
    """Where it is installed, it is measured by its own tests alone: others are of TensorFlow's numbers."""
    from trainer.precision import openvino

    patch = pytest.MonkeyPatch()
    patch.setattr(openvino, "version", lambda: "")
    yield
    patch.undo()


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


@pytest.fixture(scope="module")
def figures_undrawn():
    """For the tests of a module that are of something else; see tests/helpers/undrawn.py."""
    from tests.helpers.undrawn import undrawn

    with undrawn():
        yield


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory):
    """Path of a reusable SavedModel of two features, red + blue and green + blue, for any size."""
    from tests.model.modules import save_tiny

    return save_tiny(tmp_path_factory.mktemp("backbone") / "tiny")


@pytest.fixture(scope="session")
def colours(tmp_path_factory, tiny_backbone):
    """A finished run that nobody may change; see tests/helpers/trained.py."""
    from tests.helpers.trained import train_colours

    return train_colours(tmp_path_factory.mktemp("colours"), tiny_backbone)


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


def changed(options, *changes):
    """Returns flags and changes of them, in which another --source takes the place of the one before."""
    has_source = any(change.startswith("--source=") for change in changes)
    return [*(flag for flag in options if not (has_source and flag.startswith("--source="))), *changes]


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


@pytest.fixture
def without_plugins():
    """A test that finds no plugin another has loaded, and leaves none."""
    from tests.helpers.plugins import forget_plugins

    forget_plugins()
    yield
    forget_plugins()
