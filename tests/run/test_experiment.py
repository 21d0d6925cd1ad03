"""What an experiment says of its pictures, and what it takes for granted of them."""

import logging
import shutil

import pytest

from tests.data.tables.tables import write_table
from tests.model.modules import save_with_signature
from trainer.cli.config import Config
from trainer.record.workdir import Workdir
from trainer.run.experiment import Experiment
from trainer.run.introduction import check_record
from trainer.store.files import read_json, write_json
from trainer.values import TrainerError, UsageError


@pytest.fixture
def experiment(tmp_path, tiny_backbone):
    """experiment(table, **options) on a table of six pictures."""
    given = {
        "backbone": f"savedmodel:{tiny_backbone}", "image_size": 8, "splits": "4pictures,2pictures",
        "batch_size": 2, "head": "linear", "schedule": "frozen", "split_order": "source",
    }  # fmt: skip

    def made(table, *, damaged="", **options):
        folder = tmp_path / "pictures"
        source = write_table(folder, table)
        if damaged:
            (folder / damaged).write_bytes(b"\xff\xd8 cut")
        return Experiment(
            Config().replace(**{**given, "source": source, "cache_dir": str(tmp_path), **options})
        )

    return made


WEIGHTED = "file,label,w\n1.jpg,a,{0}\n2.jpg,b,{1}\n3.jpg,a,{2}\n4.jpg,b,{3}\n5.jpg,a,1\n6.jpg,b,1\n"


def test_weights_that_go_with_the_class_assume_other_shares(experiment):
    made = experiment(WEIGHTED.format(1, 3, 1, 3), weight_column="w")
    assert made.assumed_prevalence() == {
        "why": "--weight_column=w",
        "classes": {
            "a": {"train": 0.5, "assumed": pytest.approx(0.25)},
            "b": {"train": 0.5, "assumed": pytest.approx(0.75)},
        },
    }
    both = experiment(WEIGHTED.format(1, 3, 1, 3), weight_column="w", class_weights="a=3,b=1")
    found = both.assumed_prevalence()
    assert found["why"] == "--class_weights=a=3,b=1"
    assert found["classes"]["a"]["assumed"] == pytest.approx(0.5)
    # These have nothing to do with it.
    assert experiment(WEIGHTED.format(1, 1, 3, 3), weight_column="w").assumed_prevalence() is None
    assert experiment(WEIGHTED.format(1, 3, 1, 3)).assumed_prevalence() is None


def test_a_run_goes_on_with_the_weights_it_began_with(experiment, tmp_path):
    workdir = Workdir(str(tmp_path / "run"))
    workdir.make()
    for _ in range(2):
        check_record(experiment(WEIGHTED.format(1, 3, 1, 3), weight_column="w"), workdir)
    other = experiment(WEIGHTED.format(1, 3, 1, 2), weight_column="w")
    with pytest.raises(TrainerError, match=r"^the weights of pictures in column w are not those this run be"):
        check_record(other, workdir)
    # Records of before there was a digest of weights.
    record = read_json(workdir.splits_json)
    del record["weights"]
    write_json(workdir.splits_json, record)
    check_record(other, workdir)


def test_a_run_goes_on_with_the_order_of_classes_it_began_with(experiment, tmp_path, monkeypatch):
    workdir, made = Workdir(str(tmp_path / "run")), experiment(WEIGHTED.format(1, 1, 1, 1))
    workdir.make()
    for names in (["a", "b"], ["b", "a"]):
        monkeypatch.setattr(Workdir, "read_facts", lambda self, names=names: {"class_names": names})
        if names == ["a", "b"]:
            check_record(made, workdir)
            continue
        with pytest.raises(
            TrainerError, match=r"tells b, a apart, in this order, and the pictures have a, b"
        ):
            check_record(made, workdir)


def test_a_class_that_nothing_teaches_is_told(experiment, caplog):
    table = WEIGHTED.format(1, 1, 1, 1).replace("4.jpg,b,1", "4.jpg,c,")
    with caplog.at_level(logging.WARNING, logger="trainer"):
        made = experiment(table, weight_column="w", on_bad_image="skip", splits="3pictures,2pictures")
    assert made.source.class_names == ("a", "b", "c")
    assert "no picture is of c: the network can name what nothing has taught it" in caplog.text


def test_a_fold_may_have_only_damaged_pictures_of_a_rare_class(experiment, caplog):
    """In another one it has whole ones."""
    table = WEIGHTED.format(1, 1, 1, 1).replace("1.jpg,a", "1.jpg,rare").replace("2.jpg,b", "2.jpg,rare")
    options = {"on_bad_image": "skip", "folds": 3, "splits": "auto", "split_order": "stratified"}
    experiment(table, **options, fold=1)
    with caplog.at_level(logging.WARNING, logger="trainer"):
        made = [experiment(table, damaged="1.jpg", **options, fold=fold) for fold in (1, 2, 3)]
    parts = [one.splits.indices for one in made]
    assert sorted(at for part in parts for at in part["test"].tolist()) == [1, 2, 3, 4, 5]
    assert "train has no picture of rare, as it may be in a fold" in caplog.text


def test_a_module_without_statistics_of_the_batch_refuses_them_for_a_head_alone(experiment, tmp_path):
    given = {"backbone": f"savedmodel:{save_with_signature(tmp_path / 'module')}"}
    table = WEIGHTED.format(1, 1, 1, 1)
    experiment(table, **given)
    with pytest.raises(UsageError, match=r"^phase one: .* cannot be trained: it has only the signature"):
        experiment(table, **given, phase=("name=one; for=1epochs; train=head; bn=batch",))


def test_pictures_that_are_dropped_are_in_two_splits_no_more(experiment, tmp_path):
    asked = experiment(WEIGHTED.format(1, 1, 1, 1)).asked
    shutil.copy(tmp_path / "pictures" / "1.jpg", tmp_path / "pictures" / "5.jpg")
    for drop in (False, True):
        made = Experiment(asked.replace(drop_duplicates=drop), pictures_only=True)
        assert made.shared == [["1.jpg (train)", "5.jpg (validation)"]]
        assert made.still_shared == ([] if drop else made.shared)
