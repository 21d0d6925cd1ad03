"""What the tests of archives share: options with empty caches."""

import pytest

from trainer.data.sources import SourceOptions


@pytest.fixture
def options(tmp_path) -> SourceOptions:
    return SourceOptions(cache_dir=str(tmp_path / "cache"))
