"""What can be asked for by name: arguments, their checks, and plugins."""

from dataclasses import dataclass
from typing import Annotated

import pytest

from trainer.registry import AddressRegistry, Bounds, Origin, Registry, registering, see
from trainer.values import UsageError

Share = Annotated[float, Bounds(above=0, below=1)]


@pytest.fixture
def registry():
    made = Registry("thing", flag="--thing")

    @made.register("plain")
    def plain():
        """Needs nothing."""
        return "plain"

    @made.register("rich", source="a paper", heavy=True)
    def rich(share: Share = 0.5, count: int = 3, *, loud: bool = False, name="x", scale: int):
        """Takes
        some things.

        And more is said of it here.
        """
        return share, count, loud, name, scale

    @made.register("many")
    @dataclass
    class Many:
        path: str
        deep: bool = False

    @made.register("list")
    def all_of(*sizes: Annotated[int, Bounds(at_least=1)], **offered):
        """Takes what there is."""
        if list(sizes) != sorted(sizes):
            raise UsageError("sizes must rise")
        return sizes, offered

    return made


def test_arguments_are_those_of_the_function(registry):
    assert registry.choose("plain")() == "plain"
    assert registry.choose("rich")(scale=2) == (0.5, 3, False, "x", 2)
    assert registry.choose("rich(0.25,4)")(scale=2, loud=True) == (0.25, 4, True, "x", 2)
    assert registry.choose("rich(count=4)")(scale=2, unknown=1) == (0.5, 4, False, "x", 2)
    assert registry.choose("rich(0.25, count=4)") == registry.choose("rich(count=4,share=0.25)")
    assert registry.choose("rich(0.5)") == registry.choose("rich") != registry.choose("rich(0.4)")
    made = registry.choose("many('a b', deep=True)")()
    assert (made.path, made.deep) == ("a b", True)
    assert registry.choose("list(1,2)")(a=1, b=2) == ((1, 2), {"a": 1, "b": 2})


def test_a_choice_is_written_as_it_is_read(registry):
    for text in ("plain", "rich", "rich(count=4)", "many(path='a b',deep=True)", "list(1,2)"):
        assert str(registry.choose(text)) == text
        assert registry.choose(str(registry.choose(text))) == registry.choose(text)


def test_what_is_known_of_an_entry(registry):
    entry = registry["rich"]
    assert (entry.help, entry.source, entry.facts) == ("Takes some things.", "a paper", {"heavy": True})
    assert [registry[name].usage() for name in registry] == [
        "plain",
        "rich(share=0.5, count=3)",
        "many(path, deep=False)",
        "list(sizes,...)",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--thing= is not one of plain, rich, many, list"),
        ("plan", "--thing=plan is not one of plain, rich, many, list: is it plain?"),
        ("plain,rich", "--thing=plain,rich is not one of plain, rich, many, list"),
        ("plain(1)", "--thing=plain(1): plain takes no arguments, and there is 1 besides"),
        ("rich(1)", "--thing=rich(1): share=1 must be a number above 0 and below 1"),
        ("rich(0.5,2.0)", "--thing=rich(0.5,2.0): count=2.0 must be a whole number"),
        ("rich(0.5,True)", "--thing=rich(0.5,True): count=True must be a whole number"),
        ("rich(0.5,1e999)", "--thing=rich(0.5,1e999): count=inf must be a whole number"),
        ("rich(cuont=2)", "is it count?"),
        ("rich(scale=2)", "--thing=rich(scale=2): rich has no scale; it takes"),
        ("rich(0.5,share=0.5)", "share is given twice"),
        ("many", "--thing=many: path is missing, a text in quotes"),
        ("many(1)", "path=1 must be a text in quotes"),
        ("list(2,0)", "sizes=0 must be a whole number 1 or more"),
    ],
)
def test_what_is_refused(registry, text, message):
    with pytest.raises(UsageError) as caught:
        registry.choose(text)
    assert message in str(caught.value)


def test_what_does_not_go_together_is_refused_with_flag_and_text(registry):
    with pytest.raises(UsageError, match=r"^--other=list\(2,1\): sizes must rise$"):
        registry.choose("list(2,1)", flag="--other")()


def test_a_name_is_registered_once_and_a_plugin_can_be_forgotten(registry):
    def mine():
        """Mine."""

    origin = Origin("idea.py", "1")
    see(origin)
    with registering(origin):
        registry.register("mine")(mine)
    assert registry["mine"].plugin == "idea.py"
    told = r"plugin other\.py registers the thing 'mine', and there is one already of plugin idea\.py$"
    with registering(Origin("other.py", "1")), pytest.raises(UsageError, match=told):
        registry.register("mine")(mine)
    with pytest.raises(UsageError, match=r"there is one already of plugin idea\.py"):
        registry.register("mine")(mine)
    registry.forget(origin)
    assert "mine" not in list(registry)
    assert len(registry) == 4


def test_parameters_must_say_what_they_are(registry):
    with pytest.raises(TypeError, match="sizes must be annotated as int, float, bool or str"):

        @registry.register("wrong")
        def wrong(sizes: list[int]):
            """Wrong."""


@pytest.fixture
def places():
    made = AddressRegistry("place", flag="--place")

    @made.register("folder", address="PATH", check=refuse_spaces)
    def folder(where: str, *, name):
        """What is in a folder."""
        if where == "full":
            raise UsageError(f"{name} is full")
        if where == "closed":
            raise UsageError("--key opens it")
        if not where.isascii():
            raise UsageError("letters from a to z")
        return where, name

    @made.register("cloud")
    def cloud(region: str = "north"):
        """Up there."""
        return region

    @made.register("here")
    def here():
        """No address."""
        return "here"

    return made


def refuse_spaces(address, *, flag):
    if " " in address:
        raise UsageError(f"{flag}: there is a space in it")


def test_an_address_is_taken_as_it_is(places):
    for address in ("a", "http://a:80/b(1),c=2", "a:b", "(", "'"):
        choice = places.choose(f"folder:{address}")
        assert choice(name="x", other=1) == (address, "x")
        assert (choice.name, choice.address, str(choice)) == ("folder", address, f"folder:{address}")
    assert [places.choose(text)() for text in ("cloud", "cloud:", "cloud:south", "here")] == [
        "north", "north", "south", "here",
    ]  # fmt: skip
    assert [places.usage(name) for name in places] == ["folder:PATH", "cloud[:REGION]", "here"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("foldr:a", "--place=foldr:a is not one of folder:PATH, cloud[:REGION], here: is it folder:PATH?"),
        ("folder", "--place=folder: expected folder:PATH"),
        ("folder:", "--place=folder:: expected folder:PATH"),
        ("here:a", "--place=here:a: here takes no address"),
        ("folder:a b", "--place=folder:a b: there is a space in it"),
        ("folder:full", "folder:full is full"),
        ("folder:closed", "--key opens it"),
        ("folder:\u00e9", "--place=folder:\u00e9: letters from a to z"),
    ],
)
def test_addresses_that_are_refused(places, text, message):
    def open_place():
        choice = places.choose(text)
        choice.check()
        choice(name=text)

    with pytest.raises(UsageError) as caught:
        open_place()
    assert str(caught.value) == message


def test_an_entry_of_addresses_has_one_text_at_most(places):
    with pytest.raises(TypeError, match="expected an address as its one parameter"):
        places.register("two")(lambda one="", two="": None)
    with pytest.raises(TypeError, match="expected an address as its one parameter"):
        places.register("number")(lambda one=1: None)
