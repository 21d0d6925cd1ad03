"""What names of groups are."""

from trainer.data.tables.labels import group_name


def test_names_of_groups_that_python_reads_as_numbers_stay_apart():
    assert [group_name(value) for value in ("3", "3.0", " 3 ", 3, 3.0, "3.", "+3.0")] == ["3"] * 7
    for name in ("1_23", "12_3", "1e3", "1000", "1_2.0", "03", "1.5", "inf"):
        assert group_name(name) == name
