"""Which trials of a sweep are heads over kept features, and which are runs."""

import pytest

from tests.conftest import make_flower_folder
from trainer.cli.config import Config
from trainer.run.experiment import Experiment
from trainer.run.head_trials import why_not_alone


@pytest.fixture
def experiment(tmp_path, tiny_backbone):
    """experiment(**options) on nine pictures."""
    source = make_flower_folder(tmp_path / "pictures", n=3)
    given = {
        "source": f"folder:{source}", "backbone": f"savedmodel:{tiny_backbone}", "image_size": 8,
        "splits": "60%,40%", "batch_size": 4, "precision": "float32", "cache_dir": str(tmp_path / "cache"),
    }  # fmt: skip
    return lambda **options: Experiment(Config().replace(**given, **options))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"head": "linear", "schedule": "frozen"}, ""),
        # It is fitted before it trains, which takes a run.
        ({"head": "probe", "schedule": "frozen"}, "--head=probe is fitted"),
        ({"head": "probe(1)", "schedule": "fit"}, "--head=probe(1) is fitted"),
        ({"head": "linear", "schedule": "frozen", "feature_cache": "off"}, "--feature_cache=off"),
        ({"head": "linear", "schedule": "two_phase"}, "they train the network"),
    ],
)
def test_what_trials_are(experiment, options, why):
    assert why_not_alone(experiment(**options)) == why
