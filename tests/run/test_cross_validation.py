"""What all folds have in common, and what is found out before the first one trains."""

import pytest

from tests.data.tables.tables import write_table
from trainer.cli.config import Config
from trainer.cli.flags import CommandLine
from trainer.commands import cross_validate
from trainer.record.workdir import Workdir
from trainer.run.cross_validation import check_folds
from trainer.values import UsageError


def test_a_fold_that_would_lack_a_class_is_told_before_the_first_one(tmp_path):
    rows = [f"{at}.jpg,{'b' if at < 2 else 'a'}" for at in range(12)]
    source = write_table(tmp_path / "pictures", "\n".join(["file,label", *rows, ""]))
    config = Config().replace(source=source, folds=5, fold=1, cache_dir=str(tmp_path))
    check_folds(config)
    check_folds(config.replace(class_weights="b=5"))
    with pytest.raises(UsageError, match=r"^fold [1-5] of 5: --class_weights.*has no example of b"):
        check_folds(config.replace(class_weights="balanced"))


def test_all_folds_have_the_recipe_of_the_first_one(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(cross_validate, "check_folds", lambda config: None)
    monkeypatch.setattr(cross_validate, "put_together", lambda config, root, asked: None)

    def train_one(line, stop, *, chosen, is_one_of_many):
        assert is_one_of_many
        given.append(chosen)

    monkeypatch.setattr(cross_validate.train, "run", train_one)
    monkeypatch.setattr(Workdir, "read_chosen", lambda self: {"image_size": len(given)})
    config = Config().replace(folds=3, workdir=str(tmp_path / "all"))
    assert cross_validate.run(CommandLine("cross_validate", config, {}), None) == 0
    assert given == [{}, {"image_size": 1}, {"image_size": 1}]
