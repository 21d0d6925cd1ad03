"""The folder of an evaluation: read back, recomputed with scikit-learn, and looked through as a page."""

import base64
import csv
import io
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pyarrow.parquet
import pytest
import tensorflow as tf
from PIL import Image
from sklearn import metrics as sk_metrics

from trainer.metrics.scores import scores
from trainer.report import writer
from trainer.report.page import thumbnail
from trainer.report.scored import find_reports
from trainer.report.sections import Predictions
from trainer.report.writer import write_report
from trainer.tasks import SINGLE_LABEL, SingleLabel

# Rows are examples. Predictions: a a b c c c b; one example of a goes to b, one of b to c.
CHANCES = np.array([[8, 1, 1], [6, 2, 2], [1, 8, 1], [1, 2, 7], [2, 1, 7], [1, 1, 8], [2, 6, 2]]) / 10
LOGITS = np.log(CHANCES).astype(np.float32)
LABELS = np.array([0, 0, 0, 1, 2, 2, 1])
NAMES = ("a", "b", "c, with a comma")
IDS = [f"x/{i}.jpg" for i in range(6)] + ['strange, "name".jpg']
# Files of every report of up to ten classes without pictures.
FILES = {
    "confusion_matrix.png", "index.html", "metrics.json", "per_class.png", "predictions.csv",
    "predictions.parquet", "reliability.png", "report_manifest.json", "roc_curve.png",
}  # fmt: skip


TAGS = {
    "html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "div", "i", "b", "span", "small", "br",
    "figure", "figcaption", "img", "table", "thead", "tbody", "tr", "th", "td", "details", "summary", "ul",
    "li", "a",
}  # fmt: skip


def write(
    folder,
    *,
    labels=LABELS,
    logits=LOGITS,
    class_names=NAMES,
    ids=None,
    digests=None,
    task=SINGLE_LABEL,
    **changes,
):
    ids = ids or (IDS if len(labels) == len(IDS) else [f"{i}.jpg" for i in range(len(labels))])
    digests = digests or [f"{i:064x}" for i in range(len(labels))]
    predictions = Predictions(ids, labels, logits, class_names, digests, task)
    return write_report(folder, predictions, **({"split": "test", "step": 12, "loss": 0.5} | changes))


def greys(rows):
    """Returns pictures [n, 20, 30, 3], each of another grey."""
    return np.ones([len(rows), 20, 30, 3], np.float32) * (np.array(rows)[:, None, None, None] / 255)


def size_of(png):
    """Returns (width, height) in pixels."""
    return Image.open(io.BytesIO(png)).size


class Page(HTMLParser):
    """Collects what a page holds.

    Attributes:
      tags: [(name, attributes)].
      text: all of it.
    """

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def page_of(folder):
    return Page((folder / "index.html").read_text())


def test_what_is_written(tmp_path):
    report = write(tmp_path / "report", how="80 %", left_out_pictures=[["z.jpg", "no picture"]])
    assert {path.name for path in (tmp_path / "report").iterdir()} == FILES
    values = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert values == report.values
    assert (values["format"], values["split"], values["step"], values["loss"]) == (3, "test", 12, 0.5)
    assert (values["how"], values["left_out_pictures"]) == ("80 %", [["z.jpg", "no picture"]])
    numbers = scores(LABELS, LOGITS, NAMES)
    assert {key: values[key] for key in numbers} == numbers
    assert set(report.figures) == {"confusion_matrix", "reliability", "roc_curve", "per_class"}
    for name, png in report.figures.items():
        assert (tmp_path / "report" / f"{name}.png").read_bytes() == png
        assert min(size_of(png)) >= 200


def test_classes_that_a_split_has_no_picture_of_are_named_on_the_page(tmp_path):
    missing = {"validation": ["<b>", "c"], "test": ["d"]}
    values = write(tmp_path, missing_classes=missing).values
    assert values["missing_classes"] == missing
    text = page_of(tmp_path).text
    assert "No picture of <b>, c is in validation: the best weights were chosen without them." in text
    assert "No picture of d is in test: this score says nothing about it." in text
    write(tmp_path, missing_classes={})
    assert "No picture of" not in page_of(tmp_path).text


def test_pictures_by_hand(tmp_path):
    values = write(tmp_path).values
    # Rows 2 and 3 are wrong, at 0.8 and 0.7.
    assert [(row["id"], row["label"], row["prediction"]) for row in values["worst_mistakes"]] == [
        ("x/2.jpg", "a", "b"),
        ("x/3.jpg", "b", "c, with a comma"),
    ]
    assert [row["probability"] for row in values["worst_mistakes"]] == pytest.approx([0.8, 0.7])
    probabilities = [row["probability"] for row in values["least_certain"]]
    assert probabilities == pytest.approx([0.6, 0.6, 0.7, 0.7, 0.8, 0.8, 0.8])
    assert values["least_certain"][0]["id"] in (IDS[1], IDS[6])


def test_predictions_are_read_back(tmp_path):
    write(tmp_path)
    with open(tmp_path / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == IDS
    assert [row["label"] for row in rows] == [NAMES[k] for k in LABELS]
    assert [row["prediction"] for row in rows] == [NAMES[k] for k in (0, 0, 1, 2, 2, 2, 1)]
    probabilities = [[float(row[f"probability_{name}"]) for name in NAMES] for row in rows]
    np.testing.assert_allclose(probabilities, CHANCES, atol=1e-6)
    table = pyarrow.parquet.read_table(tmp_path / "predictions.parquet")
    assert table.column_names == list(rows[0])
    assert [str(field.type) for field in table.schema] == ["string"] * 3 + ["double"] * 3 + ["string", "bool"]
    assert [row["sha256"] for row in rows] == [f"{i:064x}" for i in range(7)]
    for name in ("id", "label", "prediction", "sha256"):
        assert table[name].to_pylist() == [row[name] for row in rows]
    assert [row["right"] for row in rows] == ["true", "true", "false", "false", "true", "true", "true"]
    assert table["right"].to_pylist() == [True, True, False, False, True, True, True]


@pytest.mark.parametrize("num_classes", [2, 4, 12])
def test_the_numbers_are_recomputed_from_the_predictions(num_classes, tmp_path):
    draw = np.random.default_rng(num_classes)
    labels = draw.integers(0, num_classes, 400)
    logits = 2 * draw.normal(size=(400, num_classes)).astype(np.float32)
    logits[np.arange(400), labels] += 2
    names = [f"class {k:02d}" for k in range(num_classes)]
    temperature = 1.7
    write(tmp_path, labels=labels, logits=logits, class_names=names, temperature=(temperature, ""))
    values = json.loads((tmp_path / "metrics.json").read_text())
    table = pyarrow.parquet.read_table(tmp_path / "predictions.parquet")
    true, said = table["label"].to_pylist(), table["prediction"].to_pylist()
    chances = np.stack([table[f"probability_{name}"].to_numpy() for name in names], axis=1)
    assert [names[k] for k in chances.argmax(axis=1)] == said

    assert values["accuracy"] == sk_metrics.accuracy_score(true, said)
    assert values["log_loss"] == pytest.approx(sk_metrics.log_loss(true, chances), abs=1e-12)
    assert values["confusion_matrix"] == sk_metrics.confusion_matrix(true, said).tolist()
    told = sk_metrics.classification_report(true, said, output_dict=True)
    by_class = {**values["classes"], "macro avg": values["macro"], "weighted avg": values["weighted"]}
    for name, found in by_class.items():
        for key, told_as in {"precision": "precision", "recall": "recall", "f1": "f1-score"}.items():
            assert found[key] == pytest.approx(told[name][told_as])
    for k, share in values["top_k_accuracy"].items():
        if num_classes > 2:
            expected = sk_metrics.top_k_accuracy_score(true, chances, k=int(k))
            assert share == pytest.approx(expected)
    areas = {"y_score": chances[:, 1]} if num_classes == 2 else {"y_score": chances, "multi_class": "ovr"}
    assert values["roc_auc"] == pytest.approx(sk_metrics.roc_auc_score(true, **areas))
    if num_classes == 2:
        brier = sk_metrics.brier_score_loss(true, chances[:, 1], pos_label=names[1])
        assert values["brier_score"] == pytest.approx(brier)
    scaled = chances ** (1 / temperature)
    scaled /= scaled.sum(axis=1, keepdims=True)
    calibration = values["calibration"]
    assert calibration["log_loss_scaled"] == pytest.approx(sk_metrics.log_loss(true, scaled))
    for suffix, p in (("", chances), ("_scaled", scaled)):
        right, error = np.array(true) == np.array(said), 0.0
        for low in range(15):
            inside = (p.max(axis=1) > low / 15) & (p.max(axis=1) <= (low + 1) / 15)
            error += abs((right[inside] - p.max(axis=1)[inside]).sum()) / 400
        assert calibration[f"expected_calibration_error{suffix}"] == pytest.approx(error)


def test_the_same_evaluation_gives_the_same_bytes(tmp_path):
    given = {"pictures": greys, "temperature": (2.0, ""), "curves_png": b"\x89PNG of curves"}
    for name in ("one", "two"):
        write(tmp_path / name, **given)
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("one", "two"))
    assert one == two
    assert set(one) == {*FILES, "mistakes.png", "least_certain.png"}


def test_what_an_earlier_evaluation_left_is_removed(tmp_path):
    for name in ("learning_curves.png", "notes.txt", "test_metrics.json"):
        (tmp_path / name).write_bytes(b"of somebody else")
    write(tmp_path, pictures=greys, curves_png=b"\x89PNG of curves")
    assert (tmp_path / "mistakes.png").exists()
    # All right, of one class: no mistakes, no areas; and no pictures are asked for.
    write(tmp_path, labels=np.array([0, 0]), logits=np.array([[2, 1, 0], [2, 1, 0]], np.float32))
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {*FILES, "learning_curves.png", "notes.txt", "test_metrics.json"} - {"roc_curve.png"}
    assert (tmp_path / "learning_curves.png").read_bytes() == b"of somebody else"
    assert "There are no mistakes." in page_of(tmp_path).text


def test_pictures_are_asked_for_once_and_only_those_shown(tmp_path):
    asked = []

    def pictures(rows):
        asked.append(list(rows))
        return greys(rows)

    labels = np.zeros(100, int)
    logits = np.stack([np.linspace(-3, 3, 100), np.zeros(100)], axis=1).astype(np.float32)
    report = write(tmp_path, labels=labels, logits=logits, class_names=("a", "b"), pictures=pictures)
    # The first are the most certain, and wrong; the least certain are in the middle.
    assert asked == [[*range(16), *range(42, 58)]]
    assert [row["id"] for row in report.values["worst_mistakes"]] == [f"{i}.jpg" for i in range(16)]
    assert {"mistakes", "least_certain"} < set(report.figures)
    shown = [tag["src"] for name, tag in page_of(tmp_path).tags if name == "img" and "jpeg" in tag["src"]]
    assert len(shown) == 32
    assert shown[3] == thumbnail(greys([3])[0])


def test_thumbnails_are_small_and_whole():
    prefix = "data:image/jpeg;base64,"
    for shape, expected in (((600, 300, 3), (128, 64, 3)), ((20, 30, 3), (20, 30, 3))):
        uri = thumbnail(np.full(shape, 0.5, np.float32))
        assert uri.startswith(prefix)
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix(prefix)))))
        assert picture.shape == expected
        assert abs(int(picture.mean()) - 128) <= 1


HOSTILE = '<script>alert("1")</script>'


@pytest.mark.parametrize("with_pictures", [False, True])
def test_the_page_runs_nothing_and_loads_nothing(with_pictures, tmp_path):
    names = (HOSTILE, "a' onload='alert(2)", "&amp; https://example.com/x.png")
    write(
        tmp_path,
        class_names=names,
        ids=[f"{HOSTILE}{i}" for i in range(7)],
        split=HOSTILE,
        temperature=(2.0, HOSTILE),
        pictures=greys if with_pictures else None,
        curves_png=b"\x89PNG of curves",
        run=HOSTILE,
        source=HOSTILE,
        seen_before={HOSTILE: 3},
        left_out_pictures=[[HOSTILE, HOSTILE]],
        left_out_batches=[{"what": HOSTILE}],
        shared_pictures=[[HOSTILE, "b"]],
    )
    page = page_of(tmp_path)
    assert {name for name, _ in page.tags} <= TAGS
    assert page.text.count(HOSTILE) > 20
    for name, attributes in page.tags:
        assert not [key for key in attributes if key.startswith("on")]
        assert attributes.get("src", "data:image/").startswith("data:image/")
        if name == "a":
            assert (tmp_path / attributes["href"]).is_file()
    style = re.search("<style>(.*?)</style>", (tmp_path / "index.html").read_text(), re.DOTALL)[1]
    assert "url(" not in style
    assert "@import" not in style
    # The one that is there is text: a class is called so.
    without = (tmp_path / "index.html").read_text().replace("&amp;amp; https://example.com/x.png", "")
    assert "//" not in re.sub(r"base64,[^\"]*", "", without)


def test_a_reason_that_names_a_class_is_text(tmp_path):
    write(tmp_path, class_names=("a", "b", HOSTILE), labels=np.array([0, 1]), logits=LOGITS[:2])
    page = page_of(tmp_path)
    assert "script" not in {name for name, _ in page.tags}
    assert f"roc_auc: a class needs pictures of its own and of others; not so for {HOSTILE}" in page.text


def test_the_page_says_what_counts(tmp_path):
    write(
        tmp_path,
        temperature=(0.05, "validation, 9 pictures"),
        curves_png=b"\x89PNG of curves",
        run="flowers",
        source="folder:my_pictures",
        left_out_pictures=[["broken.jpg", "no picture"]],
        left_out_batches=[],
    )
    page = page_of(tmp_path)
    text = page.text.replace("\N{NO-BREAK SPACE}", " ")
    low, high = json.loads((tmp_path / "metrics.json").read_text())["accuracy_95_percent_interval"]
    for said in (
        "flowers: test",
        "71.4 % right",
        f"5 of 7 pictures; the 95 % interval is {100 * low:.1f} % to {100 * high:.1f} %",
        "Weights of step 12",
        "temperature of 0.05 (fitted on validation, 9 pictures)",
        "Do not use it.",
        "Pictures that were left out: 1broken.jpg, no picture",
        "folder:my_pictures",
        "taken for",
    ):
        assert said in text
    assert sum(name == "img" for name, _ in page.tags) == 5
    assert "Batches" not in text
    write(tmp_path, left_out_pictures=[], temperature=(1.1, ""))
    assert "Nothing was left out." in page_of(tmp_path).text
    assert "Do not use it." not in page_of(tmp_path).text


def test_classes_of_one_name_are_kept_apart(tmp_path):
    report = write(tmp_path, class_names=("a", "a", "a (2)"))
    assert list(report.values["classes"]) == ["a", "a (2)", "a (2) (2)"]
    table = pyarrow.parquet.read_table(tmp_path / "predictions.parquet")
    names = [f"probability_{name}" for name in ("a", "a (2)", "a (2) (2)")]
    assert table.column_names == ["id", "label", "prediction", *names, "sha256", "right"]
    assert next(csv.reader(io.StringIO((tmp_path / "predictions.csv").read_text()))) == table.column_names


def test_names_that_begin_as_formulas_are_text_in_the_csv_alone(tmp_path):
    names = ("=1+1", "-a", "@b")
    write(tmp_path, class_names=names)
    with open(tmp_path / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == [f"'{names[k]}" for k in LABELS]
    assert not any(row["prediction"].startswith(tuple("=+-@")) for row in rows)
    table = pyarrow.parquet.read_table(tmp_path / "predictions.parquet")
    assert table.column("label").to_pylist() == [names[k] for k in LABELS]
    write(tmp_path / "again", class_names=names)
    for found in find_reports([str(tmp_path), str(tmp_path / "again")]):
        assert {label for _, label in found.examples} == set(names)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_no_numbers(bad, tmp_path):
    logits = LOGITS.copy()
    logits[0, 0] = bad
    report = write(tmp_path, logits=logits, loss=math.nan, temperature=(2.0, ""), pictures=greys)

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    values = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=refuse)
    assert values["loss"] is None
    assert values["undefined"]["loss"] == "it is no finite number"
    assert "roc_auc" in values["undefined"]
    assert "reliability" not in report.figures
    assert not (tmp_path / "roc_curve.png").exists()
    # The picture has no probability to be listed by.
    assert len(values["least_certain"]) == 6
    first = (tmp_path / "predictions.csv").read_text().splitlines()[1]
    assert first.endswith(f",nan,nan,nan,{0:064x},{'false' if np.isnan(bad) else 'true'}")
    text = page_of(tmp_path).text
    assert "log_loss: a logit of 1 of 7 pictures is no finite number" in text
    assert "n/a" in text
    titles = ("Confusion matrix", "Which classes are taken for which others.", "Calibration")
    assert all(title in text for title in titles)


def test_one_picture_of_two_classes(tmp_path):
    # Logits [0, z] of a single one.
    report = write(
        tmp_path, labels=np.array([1]), logits=np.array([[0.0, -1.0]], np.float32),
        class_names=("cat", "$dog$ and $_$"), pictures=greys,
    )  # fmt: skip
    assert report.values["roc_auc"] is None
    assert "roc_curve" not in report.figures
    assert report.values["worst_mistakes"][0]["probability"] == pytest.approx(1 / (1 + math.exp(-1)))
    assert report.values["num_correct"] == 0


def test_the_curve_of_two_classes(tmp_path):
    logits = np.stack([np.zeros(5, np.float32), np.array([1, 2, 2, 3, -1], np.float32)], axis=1)
    report = write(tmp_path, labels=np.array([0, 1, 0, 1, 0]), logits=logits, class_names=("cat", "dog"))
    assert report.values["roc_auc"] == pytest.approx(5.5 / 6)
    assert size_of(report.figures["roc_curve"]) == (500, 500)


class Reversed(SingleLabel):
    """The lower a logit is, the more probable is its class."""

    def activation(self, logits):
        return tf.nn.softmax(-logits)


def test_the_curve_is_that_of_the_area_where_a_task_has_an_activation_of_its_own(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(writer, "roc_figure", lambda curves, **words: drawn.extend(curves) or b"")
    logits, labels = np.array([[2, 1], [1, 2], [3, 1], [1, 3]], np.float32), np.array([1, 0, 1, 0])
    report = write(tmp_path, labels=labels, logits=logits, class_names=("cat", "dog"), task=Reversed())
    [(_, false, true)] = drawn
    assert sk_metrics.auc(false, true) == report.values["roc_auc"] == 1.0


def test_figures_of_many_classes(tmp_path):
    draw = np.random.default_rng(0)
    labels, logits = draw.integers(0, 60, 500), draw.normal(size=(500, 60)).astype(np.float32)
    report = write(
        tmp_path, labels=labels, logits=logits, class_names=[f"{k} " + "x" * 80 for k in range(60)]
    )
    # Sixty curves are a tangle; the page has the areas.
    assert set(report.figures) == {"confusion_matrix", "reliability", "per_class"}
    assert report.values["roc_auc"] is not None
    assert max(size_of(report.figures["confusion_matrix"])) < 2000
    assert max(size_of(report.figures["per_class"])) < 2000
    assert (tmp_path / "index.html").stat().st_size < 2e6


def test_pictures_come_before_numbers_which_are_explained_and_validation_is_said_to_be_too_good(tmp_path):
    write(tmp_path, pictures=greys)
    page = (tmp_path / "index.html").read_text()
    assert page.index("Worst mistakes") < page.index("Least certain") < page.index('class="cards"')
    cards = re.findall(r'<div class="card" title="([^"]+)"><b>[^<]*</b><span>([^<]+)</span>', page)
    assert [name for _, name in cards] == [
        "top-2 accuracy", "macro F1", "log-loss", "calibration error", "Brier score", "mean ROC AUC",
    ]  # fmt: skip
    # By hovering, and in words below.
    for meaning, name in cards:
        assert f"<li><b>{name}</b>: {meaning}</li>" in page
    assert "slightly too good" not in page
    write(tmp_path, split="validation", pictures=greys)
    note = "The validation split also chose these weights: read this number as slightly too good."
    assert note in (tmp_path / "index.html").read_text()


def test_how_it_was_trained_is_among_the_facts(tmp_path):
    phases = [
        "frozen for 10epochs: trains head/, adam at 0.001 (constant)",
        "finetune for 5epochs: trains all",
    ]
    write(tmp_path, schedule="two_phase", phases=phases, head="mlp(512)", batch_size=32, began="2026-11-29")
    page = (tmp_path / "index.html").read_text()
    for what, value in (
        ("begun on", "2026-11-29"), ("schedule", "two_phase"), ("phases", "; ".join(phases)),
        ("head", "mlp(512)"), ("pictures per update", "32"),
    ):  # fmt: skip
        assert f'<th class="name" scope="row">{what}</th><th class="name" scope="row">{value}</th>' in page
