"""Names that spreadsheets would take for formulas."""

import csv
import io

import pytest

from trainer.record.predictions import FORMATS, Prediction
from trainer.record.spreadsheets import as_text, is_right, original, read_rows

FORMULAS = [
    "=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", " =1", '=HYPERLINK("x","y")', "'=1", "''-x", "＝1", "-",
]  # fmt: skip
PLAIN = ["roses", "a=b", "x-1", "", "'quoted'", "'", "1.5", "猫", "a/=1.jpg", "''"]


@pytest.mark.parametrize("text", FORMULAS)
def test_a_formula_becomes_text_and_can_be_read_back(text):
    assert as_text(text) == f"'{text}"
    assert original(as_text(text)) == text


@pytest.mark.parametrize("text", PLAIN)
def test_other_text_stays_as_it_is(text):
    assert as_text(text) == original(text) == text


def test_no_two_texts_have_one_cell():
    texts = [quotes + text for text in (*FORMULAS, *PLAIN) for quotes in ("", "'", "''")]
    assert len({as_text(text) for text in texts}) == len(set(texts))
    assert [original(as_text(text)) for text in texts] == texts


def test_rows_are_read_as_they_were_written():
    text = io.StringIO()
    csv.writer(text).writerows([["id", "label"], ["'-x.jpg", "'=1"], ["y.jpg", "a"], ["z"]])
    text.seek(0)
    assert list(read_rows(text)) == [
        {"id": "-x.jpg", "label": "=1"},
        {"id": "y.jpg", "label": "a"},
        {"id": "z", "label": None},
    ]


def test_of_predictions_csv_has_text_and_json_lines_have_the_names():
    prediction = Prediction("-1.jpg", "=1", 0.75, {"=1": 0.75, "b": 0.25})
    form = FORMATS["csv"](["=1", "b"], top_k=1, threshold=0.0)
    assert form.head == "path,prediction,probability,uncertain,error,probability_=1,probability_b\n"
    assert form.line(prediction, shown="-1.jpg") == "'-1.jpg,'=1,0.750000,false,,0.750000,0.250000\n"
    assert form.line(Prediction("-1.jpg", error="-"), shown="-1.jpg") == "'-1.jpg,,,,'-,,\n"
    line = FORMATS["jsonl"](["=1", "b"], top_k=1, threshold=0.0).line(prediction, shown="-1.jpg")
    assert '"path": "-1.jpg", "label": "=1"' in line


def test_what_is_right_is_said_by_the_column_or_by_the_words():
    row = {"label": "(none)", "prediction": "(none)"}
    assert is_right(row)
    # A label that is called so is not the same as no label.
    assert not is_right({**row, "right": "false"})
    assert is_right({"label": "a", "prediction": "b", "right": "true"})
    assert not is_right({"label": "a", "prediction": "b"})
