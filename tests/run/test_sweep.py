"""A sweep without its door: what it is known by, and when it ends by itself."""

import pytest

from tests.conftest import make_flower_folder
from trainer.cli.flags import parse
from trainer.cli.search import read_space
from trainer.run.head_trials import Outcome
from trainer.values import TrainerError

pytest.importorskip("optuna")

from trainer.run.sweep import Asked, Sweep


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return make_flower_folder(tmp_path_factory.mktemp("sweep") / "pictures", n=2)


@pytest.fixture
def sweep_of(pictures, tmp_path):
    """sweep_of(train, *flags) -> a sweep in a folder, whose trials are what `train` makes of a Config."""

    def make(train, *flags, trials=4):
        search = f"--search=seed={','.join(map(str, range(trials)))}"
        usual = ["trainer", "sweep", f"--source=folder:{pictures}", f"--workdir={tmp_path / 'sweep'}"]
        line = parse([*usual, "--sampler=grid", "--repeat_seeds=0", search, *flags])
        (tmp_path / "sweep").mkdir(exist_ok=True)
        space = read_space(line.config.sweep.search, "")

        def trained(config, *, told, requested):
            return Outcome({"loss": 1.0, "accuracy": train(config)}, step=1)

        return Sweep(Asked(line.config, line.given, space), heads=None, train=trained, requested=str)

    return make


def test_a_sweep_is_known_by_the_code_of_its_plugins(sweep_of, tmp_path, without_plugins):
    plugin = tmp_path / "mine.py"
    plugin.write_text("NUMBER = 1\n")
    sweep_of(lambda config: 0.5, f"--plugin={plugin}").work()
    # Under another name it is the same.
    plugin.rename(tmp_path / "moved.py")
    sweep_of(lambda config: 0.5, f"--plugin={tmp_path / 'moved.py'}").work()
    plugin.write_text("NUMBER = 2\n")
    for flags in ([f"--plugin={plugin}"], []):
        now = "SHA-256 [0-9a-f]{64}" if flags else "none"
        told = rf"holds a sweep of something else: plugins was SHA-256 [0-9a-f]{{64}}, now {now}\. Choose"
        with pytest.raises(TrainerError, match=told):
            sweep_of(lambda config: 0.5, *flags)
