"""What all folds have in common, and what is found out before the first one trains."""

from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from tests.data.tables.tables import write_table
from trainer.cli.config import Config
from trainer.cli.flags import CommandLine
from trainer.commands import cross_validate
from trainer.record.workdir import Workdir
from trainer.report.sections import Predictions, as_parquet
from trainer.run import cross_validation
from trainer.run.cross_validation import check_folds
from trainer.store.files import make_folder, read_json, write_bytes, write_json
from trainer.tasks import SingleLabel
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


class Squares(SingleLabel):
    """Probabilities that are proportional to the squares of the logits."""

    def activation(self, logits):
        return logits**2 / tf.reduce_sum(logits**2, axis=-1, keepdims=True)


@pytest.fixture
def pooled(tmp_path, monkeypatch):
    """pooled(task) -> (the folds' probabilities [4, 2], what all folds together have for `write_scores`)."""
    names, ids, labels = ("a", "b"), ["0", "1", "2", "3"], np.array([0, 1, 0, 1])
    logits = np.array([[2, 1], [1, 2], [1, 3], [3, 4]], np.float64)
    report = {"format": 1, "split": "test", "num_examples": 2, "num_correct": 1, "accuracy": 0.5}
    values = {**report, "num_examples": 4, "accuracy_95_percent_interval": [0.0, 1.0]}
    written = {}

    def write_scores(folder, workdir, **given):
        written.update(given)
        return SimpleNamespace(values=values)

    def run(task, **facts):
        for number, at in ((1, slice(0, 2)), (2, slice(2, 4))):
            folder = tmp_path / f"fold-{number}" / "report"
            make_folder(folder, flag="", wrong="")
            parts = Predictions(ids[at], labels[at], logits[at], names, ["0"] * 2, task)
            write_bytes(folder / "predictions.parquet", as_parquet(parts))
            write_json(folder / "metrics.json", {**report, **facts})
        experiment = SimpleNamespace(
            task=task, config=Config(), pipeline=None, left_out=(),
            source=SimpleNamespace(ids=ids, class_names=names, labels=labels, name="folder:x"),
            scan=SimpleNamespace(digests=["0"] * 4), splits=SimpleNamespace(how="fold 1 of 2 of x"),
            backbone=SimpleNamespace(name="x", contract=SimpleNamespace(width_px=8)),
        )  # fmt: skip
        monkeypatch.setattr(cross_validation, "Experiment", lambda config: experiment)
        monkeypatch.setattr(cross_validation, "thumbnails", lambda pipeline, indices: None)
        monkeypatch.setattr(cross_validation, "recipe_facts", lambda config, workdir: {})
        monkeypatch.setattr(cross_validation, "write_scores", write_scores)
        monkeypatch.setattr(Workdir, "read_config", lambda self: Config())
        config = Config().replace(folds=2)
        cross_validation.put_together(config, str(tmp_path), asked=config.run)
        return task.probabilities(logits), written

    return run


def test_what_the_run_that_all_folds_begin_with_has_seen_is_added_up(pooled, tmp_path):
    _, given = pooled(SingleLabel(), seen_before={"train": 1, "validation": 2})
    result = read_json(tmp_path / "cross_validation.json")
    assert given["seen_before"] == result["seen_before"] == {"train": 2, "validation": 4}
    told = (tmp_path / "cross_validation.md").read_text()
    assert "\n\n2 of the test pictures are among those that the run in --init_from was trained with" in told
    pooled(SingleLabel())
    assert "seen_before" not in read_json(tmp_path / "cross_validation.json")
    assert "--init_from" not in (tmp_path / "cross_validation.md").read_text()


def test_all_folds_together_have_the_probabilities_of_each(pooled):
    shares, given = pooled(Squares())
    np.testing.assert_allclose(given["task"].probabilities(given["scored"].logits), shares)
