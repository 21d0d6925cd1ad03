"""Long names in a line: short enough, and told apart."""

from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.report.shortening import shortened, shortened_apart


def test_what_is_short_stays_and_what_is_long_loses_its_middle():
    assert shortened("a  b\n c", 30) == "a b c"
    assert shortened("0123456789", 10) == "0123456789"
    assert shortened("0123456789a", 10) == "01234…789a"


def test_names_that_only_their_middles_tell_apart():
    kinds = ("beagle", "boxer", "bulldog")
    names = [f"Canis lupus familiaris, {kind}, photographed by day" for kind in kinds]
    assert len({shortened(name, 30) for name in names}) == 1
    found = shortened_apart([*names, *names, "Felis"], 30)
    assert found == {
        names[0]: "Canis lupu…eagle, photographed",
        names[1]: "Canis lupu…oxer, photographed ",
        names[2]: "Canis lupu…ulldog, photographe",
        "Felis": "Felis",
    }


def test_names_that_no_part_tells_apart_are_numbered():
    names = [
        "a" * 20 + middle + "b" * 20 for middle in ("c" * 30 + "d", "e" + "c" * 29 + "d", "e" + "c" * 30)
    ]
    assert list(shortened_apart(names, 12).values()) == ["aaaaaa…bbb…1", "aaaaaa…bbb…2", "aaaaaa…bbb…3"]
    assert shortened_apart(["a  b", "a b"], 20) == {"a  b": "a b…1", "a b": "a b…2"}


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text("ab …12", max_size=14), max_size=12), st.integers(8, 12))
def test_they_fit_and_differ_where_the_names_do(names, most):
    found = shortened_apart(names, most)
    assert found.keys() == set(names)
    assert all(len(short) <= most for short in found.values())
    assert len(set(found.values())) == len(set(names))
