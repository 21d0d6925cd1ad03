"""Reports against one another, with numbers worked out by hand."""

import csv
import io
import json
import shutil

import pytest

from tests.record.runs import make_run, outcomes
from trainer.report import scored, writer
from trainer.report.comparison import (
    WIDTH,
    as_json,
    comma_separated,
    compare_pairs,
    differing_options,
    holm,
    markdown,
    notes,
    terminal,
    verdicts,
)
from trainer.report.scored import find_reports, short_names
from trainer.values import TrainerError, UsageError

# 2 (1 + 15 + 105 + 455) / 2**15: 15 coins that show 3 heads or fewer, or 12 or more.
P_12_TO_3 = 1152 / 32768


def compared(*folders, **which):
    reports = find_reports([str(folder) for folder in folders], **which)
    return reports, compare_pairs(reports)


def words(*folders, **which):
    return verdicts(compared(*folders, **which)[1])


@pytest.fixture
def two(tmp_path):
    """Runs a and b, of 100 pictures: 80 both have right, 12 only a, 3 only b."""
    first, second = outcomes(80, 12, 3, 5)
    return make_run(tmp_path / "a", first), make_run(tmp_path / "b", second, frozen_learning_rate=0.01)


def test_the_better_of_two_is_named(two):
    reports, [pair] = compared(*two)
    assert (pair.num_shared, pair.only_first, pair.only_second) == (100, 12, 3)
    assert pair.p_value == pytest.approx(P_12_TO_3, rel=1e-9)
    assert pair.holm_p_value == pair.p_value
    assert pair.better is reports[0]
    assert words(*two) == ["a is better than b: right alone on 12 against 3, p = 0.035"]
    assert words(*two[::-1]) == ["a is better than b: right alone on 12 against 3, p = 0.035"]


def test_among_three_the_corrected_p_decides(two, tmp_path):
    third = make_run(tmp_path / "c", outcomes(80, 12, 3, 5)[1])
    _, pairs = compared(*two, third)
    assert [pair.p_value for pair in pairs] == pytest.approx([P_12_TO_3, P_12_TO_3, 1.0])
    assert [pair.holm_p_value for pair in pairs] == pytest.approx([3 * P_12_TO_3, 3 * P_12_TO_3, 1.0])
    assert verdicts(pairs) == [
        "a and b: no difference can be shown: right alone on 12 and 3, p = 0.035, Holm 0.105",
        "a and c: no difference can be shown: right alone on 12 and 3, p = 0.035, Holm 0.105",
        "b and c: no difference can be shown: right alone on 0 and 0, p = 1.000, Holm 1.000",
    ]


def test_holm():
    # The smallest counts three times, the next twice; and none may become smaller than one before it.
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.001, 0.5, 0.02]) == pytest.approx([1.0, 0.004, 1.0, 0.06])
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


def test_of_more_than_ten_pairs_only_those_with_the_first_are_tested(tmp_path):
    folders = [make_run(tmp_path / f"r{i}", [True, False]) for i in range(6)]
    assert len(compared(*folders[:5])[1]) == 10
    reports, pairs = compared(*folders)
    assert [(p.first.name, p.second.name) for p in pairs] == [("r0", f"r{i}") for i in range(1, 6)]
    assert any("only those with the first run" in note for note in notes(reports, pairs))
    assert not any("first run" in note for note in notes(*compared(*folders[:5])))


def test_pictures_are_matched_by_their_bytes_whatever_their_names_and_order(tmp_path):
    first = make_run(tmp_path / "a", [True, True, False], ids=["x", "y", "z"])
    second = make_run(tmp_path / "b", [True, False, True], ids=["z", "y", "x"])
    _, [pair] = compared(first, second)
    assert (pair.num_shared, pair.only_first, pair.only_second) == (3, 1, 1)
    third = make_run(
        tmp_path / "c", [True, False, True], ids=["z2", "y2", "x2"], bytes_of=lambda name: name[0]
    )
    assert compared(first, third)[1][0].only_first == 1


def test_strangers_of_the_same_names_are_no_pairs(tmp_path):
    """As two reports of `evaluate --source` on different photos called 0.jpg, 1.jpg, ..."""
    right, wrong = outcomes(80, 60, 3, 5)
    folders = [
        make_run(
            tmp_path / name, outcome, split="folder:new", bytes_of=lambda i, n=name: n + i, recorded=False
        )
        for name, outcome in (("a", right), ("b", wrong))
    ]
    assert words(*folders) == ["a and b: no test, no picture is in both reports (none has the same bytes)"]


def test_copies_of_a_picture_count_once(tmp_path):
    """Two names for the same bytes are no two observations; of two classes they are."""
    labels = ["a", "a", "a", "a", "b"]
    copies = {"2.jpg": "1.jpg", "3.jpg": "1.jpg", "4.jpg": "1.jpg"}
    first, second = (
        make_run(tmp_path / name, right, labels=labels, bytes_of=lambda i: copies.get(i, i))
        for name, right in (("a", [True, True, True, True, False]), ("b", [True, False, False, False, True]))
    )
    [pair] = compared(first, second)[1]
    assert (pair.num_shared, pair.only_first, pair.only_second) == (3, 1, 1)
    assert words(first, second)[0].endswith(
        "right alone on 1 and 1 of the 3 different pictures in both reports, p = 1.000"
    )


def test_without_a_common_picture_there_is_no_test(tmp_path):
    first = make_run(tmp_path / "a", [True], ids=["x"], splits="50%,50%", split="validation")
    second = make_run(tmp_path / "b", [True], ids=["y"], split_seed=7)
    reports, [pair] = compared(first, second)
    assert (pair.num_shared, pair.p_value, pair.holm_p_value, pair.better) == (0, None, None, None)
    assert verdicts([pair]) == [
        "a and b: no test, no picture is in both reports (validation of one, test of the other; --splits was "
        "50%,50% and auto; --split_seed was 42 and 7)"
    ]
    assert not any("p:" in note for note in notes(reports, [pair]))


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"labels": ["b", "b"]}, "the 2 that are in both have other labels"),
        ({"bytes_of": lambda name: "other" + name}, "none has the same bytes"),
    ],
)
def test_what_only_has_the_same_name_is_another_picture(other, why, tmp_path):
    folders = make_run(tmp_path / "a", [True, True]), make_run(tmp_path / "b", [True, False], **other)
    assert words(*folders) == [f"a and b: no test, no picture is in both reports ({why})"]


@pytest.mark.parametrize("form", [2, 3])
def test_where_bytes_are_not_recorded_nothing_is_paired(form, tmp_path):
    """A report of format 2 has no digests; of a split, its run has them."""
    first = make_run(tmp_path / "a", [True, True])
    second = make_run(tmp_path / "b", [True, False], form=form)
    unknown = make_run(tmp_path / "c", [True, False], split="folder:x", recorded=False, form=2)
    assert compared(first, second)[1][0].num_shared == 2
    reports, pairs = compared(first, unknown)
    assert verdicts(pairs) == [
        "a and c: no test, not known to be of the same pictures (the report of c does not say which "
        "pictures it is of; evaluate writes it anew)"
    ]
    assert "50.00 %" in terminal(reports, pairs)


def test_only_what_is_in_both_is_tested(tmp_path):
    right = [True, True, True, False]
    first = make_run(tmp_path / "a", right, ids=["1", "2", "3", "4"], labels=["a", "a", "a", "a"])
    second = make_run(tmp_path / "b", [False] * 4, ids=["2", "3", "4", "5"], labels=["a", "b", "a", "a"])
    assert words(first, second) == [
        "a and b: no difference can be shown: right alone on 1 and 0 of the 2 different pictures in both "
        "reports, p = 1.000"
    ]


@pytest.mark.parametrize(("split", "said"), [("validation", "Validation chose"), ("train", "of train")])
def test_scores_that_flatter_are_marked(split, said, tmp_path):
    reports, pairs = compared(*(make_run(tmp_path / n, [True], split=split) for n in "ab"))
    assert [said in note for note in notes(reports, pairs)].count(True) == 1
    assert not any(said in n for n in notes(*compared(*(make_run(tmp_path / n, [True]) for n in "cd"))))


def test_the_table_has_what_the_reports_say(two):
    lines = [" ".join(line.split()) for line in terminal(*compared(*two)).splitlines()]
    assert lines[:5] == [
        "run split pictures accuracy, 95 % interval macro F1 log-loss ECE step",
        "a test 100 92.00 % 25.0 to 75.0 0.6500 0.4000 0.0625 84",
        "efficientnet_lite0, 224 px; frozen_learning_rate=0.001",
        "b test 100 83.00 % 25.0 to 75.0 0.6500 0.4000 0.0625 84",
        "efficientnet_lite0, 224 px; frozen_learning_rate=0.01",
    ]


def test_what_a_report_does_not_have_is_a_dash(two, tmp_path):
    bare = make_run(tmp_path / "bare", [True] * 100)
    path = bare / "report" / "metrics.json"
    missing = {"log_loss", "macro", "calibration", "image_size_px", "loss"}
    values = {name: value for name, value in json.loads(path.read_text()).items() if name not in missing}
    path.write_text(json.dumps(values))
    lines = [" ".join(line.split()) for line in terminal(*compared(two[0], bare)).splitlines()]
    assert lines[0] == "run split pictures accuracy, 95 % interval macro F1 loss ECE step"
    assert lines[3:5] == ["bare test 100 100.00 % 25.0 to 75.0 - - - 84", "efficientnet_lite0, - px"]


def test_the_table_fits_a_terminal(tmp_path):
    long = [
        "a-name-that-is-much-longer-than-any-column-can-be-on-a-terminal-of-100-columns" + c for c in "xy"
    ]
    recipe = "flip,rotate(0.2),randaugment(2,9),crop(0.6),brightness(0.2),contrast(0.2)"
    folders = [
        make_run(tmp_path / name, [True], augment=augment, split="folder:some_new_photos_of_mine")
        for name, augment in zip(long, ("", recipe), strict=True)
    ]
    text = terminal(*compared(*folders))
    assert max(map(len, text.splitlines())) <= WIDTH
    assert all(name in text for name in long)
    assert recipe in text


def test_json_holds_all_of_it(two):
    found = json.loads(as_json(*compared(*two)))
    assert found["format"] == 1
    assert [(run["run"], run["macro_f1"], run["log_loss"], run["loss"]) for run in found["runs"]] == [
        ("a", 0.65, 0.4, 0.5),
        ("b", 0.65, 0.4, 0.5),
    ]
    assert found["runs"][1]["options"] == {"frozen_learning_rate": 0.01}
    [pair] = found["pairs"]
    assert pair["p_value"] == pytest.approx(P_12_TO_3)
    wanted = ("a", "b", 100, 12, 3, "a", None)
    names = (
        "first",
        "second",
        "num_shared",
        "only_first_right",
        "only_second_right",
        "better",
        "why_no_test",
    )
    assert tuple(pair[name] for name in names) == wanted


def test_csv_has_no_formulas(tmp_path):
    runs = [make_run(tmp_path / name, [True], backbone=f"={name}") for name in ("-a", "@b")]
    rows = list(csv.DictReader(io.StringIO(comma_separated(*compared(*runs)))))
    assert [(row["run"], row["backbone"]) for row in rows] == [("'-a", "'=-a"), ("'@b", "'=@b")]


def test_csv_has_a_column_for_each_option_that_differs(two):
    rows = list(csv.DictReader(io.StringIO(comma_separated(*compared(*two)))))
    assert [(row["run"], float(row["accuracy"]), float(row["accuracy_low"])) for row in rows] == [
        ("a", 0.92, 0.25),
        ("b", 0.83, 0.25),
    ]
    assert [row["frozen_learning_rate"] for row in rows] == ["0.001", "0.01"]


def test_markdown_keeps_its_columns(tmp_path):
    phases = [("name=a; for=1epochs; train=head|x",), ("name=a; for=2epochs; train=head",)]
    folders = [make_run(tmp_path / n, [True], phase=phase) for n, phase in zip("ab", phases, strict=True)]
    table = markdown(*compared(*folders)).split("\n\n")[0].splitlines()
    assert [line.replace("\\|", "").count("|") for line in table] == [table[0].count("|")] * 4


def test_recipes_are_the_options_that_change_the_numbers_and_differ(tmp_path):
    first = make_run(tmp_path / "a", [True], log_every="5steps", backbone="keras:MobileNetV2", image_size=160)
    second = make_run(tmp_path / "b", [True], seed=3, average="ema(0.99)")
    assert differing_options(compared(first, second)[0]) == ["average", "seed"]


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/r/base/seed-0", "/r/ema/seed-0"], ["base", "ema"]),
        (["/r/base/seed-0", "/r/base/seed-1"], ["seed-0", "seed-1"]),
        (["/r/base/seed-0", "/r/ema/seed-1"], ["base/seed-0", "ema/seed-1"]),
        (["/r/a", "/r/a/b"], ["a", "a/b"]),
        (["/r/b", "/r/a/b"], ["b", "a/b"]),
        (["/r/a/report/x", "/r/b/report/x"], ["a", "b"]),
    ],
)
def test_names_are_short_and_different(paths, names):
    assert short_names(paths) == names


def test_a_split_is_chosen(tmp_path):
    for name in "ab":
        make_run(tmp_path / name, [True, False])
        other = make_run(tmp_path / "other" / name, [True, True], split="validation")
        shutil.copytree(other / "report", tmp_path / name / "report" / "validation")
    folders = [tmp_path / "a", tmp_path / "b"]
    assert {report.split for report in compared(*folders)[0]} == {"test"}
    assert {report.split for report in compared(*folders, split="validation")[0]} == {"validation"}
    assert {report.split for report in compared(*folders, split="test")[0]} == {"test"}
    with pytest.raises(
        TrainerError, match=r"a cannot be compared, it has no report of train: .*eval_split=train"
    ):
        compared(*folders, split="train")


def test_a_report_is_as_good_as_its_run(two, tmp_path):
    shutil.copytree(two[1] / "report", tmp_path / "elsewhere")
    (tmp_path / "one").mkdir()
    reports, [pair] = compared(two[0] / "report", tmp_path / "elsewhere")
    assert [report.workdir for report in reports] == [two[0], None]
    assert (pair.only_first, pair.only_second) == (12, 3)
    assert terminal(reports, [pair])


def test_patterns_leave_out_what_is_no_run(two, tmp_path):
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "plots").mkdir()
    assert [report.name for report in compared(tmp_path / "*")[0]] == ["a", "b"]
    with pytest.raises(UsageError, match=r"none\* fits no folder of a run"):
        compared(two[0], tmp_path / "none*")


DAMAGES = [
    ("run.json", None, r"/b is no run: expected a folder with a run\.json"),
    ("run.json", b"{", r"run\.json is damaged"),
    ("splits.json", b"[]", r"splits\.json is damaged"),
    ("report/metrics.json", None, "it has no report: evaluate --workdir=.*/b --eval_split=test writes one"),
    (
        "report/metrics.json",
        b'{"format": 1}',
        "has format 1, older than those .*, 2 and 3: evaluate writes it anew",
    ),
    ("report/metrics.json", b'{"format": 4}', "has format 4, newer than those"),
    ("report/metrics.json", b'{"format": 2, ', r"metrics\.json is damaged"),
    ("report/metrics.json", b"\xff\x00", r"metrics\.json is damaged"),
    ("report/metrics.json", b"[2]", r"metrics\.json is damaged: it does not say its format"),
    ("report/predictions.csv", None, r"predictions\.csv is missing: evaluate writes it anew"),
    ("report/predictions.csv", b"id,label\n1,a\n", r"predictions\.csv is damaged"),
    ("report/predictions.csv", b"id,label,prediction\n\xff,a,a\n", r"predictions\.csv is damaged"),
    (
        "report/predictions.csv",
        b"id,label,prediction\n1,a,a\n",
        r"says that 83 of 100 are right, and predictions\.csv that 1 of 1 are; evaluate writes both anew",
    ),
]


@pytest.mark.parametrize(("file", "content", "message"), DAMAGES)
def test_what_cannot_be_compared_is_named(file, content, message, two):
    path = two[1] / file
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(TrainerError, match=message) as caught:
        compared(*two)
    assert "\n" not in str(caught.value)


def test_a_report_of_an_older_version_is_told_from_none(two):
    (two[1] / "report" / "metrics.json").rename(two[1] / "report" / "test_metrics.json")
    with pytest.raises(TrainerError, match="its report is of an older version: evaluate --workdir="):
        compared(*two)
    with pytest.raises(TrainerError, match=r"there is no .*/c: expected the folder of a run"):
        compared(two[0], two[1].with_name("c"))


def test_one_run_is_not_compared_with_itself(two, tmp_path):
    (tmp_path / "link").symlink_to(two[0])
    for again in (two[0], tmp_path / "link", two[0] / "report"):
        with pytest.raises(UsageError, match="are the same run"):
            compared(two[0], two[1], again)
    with pytest.raises(UsageError, match="two runs or more"):
        compared(two[0])


def test_the_format_is_that_of_the_report():
    assert scored.REPORT_FORMAT == writer.FORMAT
