"""What can be asked for by name: `--loss=focal(2)` calls the function registered as `focal` with gamma=2.

A registry holds functions, or classes, under names. Their parameters are typed, may have bounds, and are the
arguments of the text. Keyword-only parameters are given by the code that asks, not by the text: of those it
offers, a function gets the ones it names. Standard library only.
"""

import contextlib
import contextvars
import functools
import inspect
import logging
import re
import secrets
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from trainer.values import Call, UsageError, close_names, is_it, parse_calls

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
# Beyond it, products of two are no longer safe in float32.
LARGEST = 1e30
_KINDS = {int: "a whole number", float: "a number", bool: "True or False", str: "a text in quotes"}
_log = logging.getLogger("trainer")


@dataclass(frozen=True, order=True)
class Origin:
    """What an entry came with: a plugin, and its version, which is another text for other code.

    What a script or a notebook registers has the name of its module as the version; ours has none.
    """

    plugin: str = ""
    version: str = ""


_OURS = Origin()
_registering: contextvars.ContextVar[Origin] = contextvars.ContextVar("registering", default=_OURS)
# {plugin: version}: the last ones that were loaded, and those of a context that has its own.
_of_process: dict[str, str] = {}
_of_context: contextvars.ContextVar[Mapping[str, str] | None] = contextvars.ContextVar("seen", default=None)


@dataclass(frozen=True)
class Bounds:
    """What a number may be; for `typing.Annotated[float, Bounds(at_least=0)]`."""

    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None

    def allow(self, value: float) -> bool:
        return not (
            (self.at_least is not None and value < self.at_least)
            or (self.at_most is not None and value > self.at_most)
            or (self.above is not None and value <= self.above)
            or (self.below is not None and value >= self.below)
        )

    def __str__(self) -> str:
        if self.at_least is not None and self.at_most is not None:
            return f"from {self.at_least:g} to {self.at_most:g}"
        words = [
            "" if self.at_least is None else f"{self.at_least:g} or more",
            "" if self.above is None else f"above {self.above:g}",
            "" if self.at_most is None else f"at most {self.at_most:g}",
            "" if self.below is None else f"below {self.below:g}",
        ]
        return " and ".join(filter(None, words))


@dataclass(frozen=True)
class Parameter:
    """An argument of a text. `kind` is int, float, bool or str; `many` takes all that are left."""

    name: str
    kind: type
    default: Any = inspect.Parameter.empty
    bounds: Bounds = Bounds()
    many: bool = False

    def check(self, value: Any) -> None:
        """Raises UsageError unless a value is of the kind and within the bounds."""
        # A bool is an int to Python, and no number to a reader.
        fits = type(value) is self.kind or (self.kind is float and type(value) is int)
        if fits and self.kind in (int, float):
            fits = abs(value) <= LARGEST and self.bounds.allow(value)
        if not fits:
            raise UsageError(f"{self.name}={value!r} must be {self.wanted}")

    @property
    def wanted(self) -> str:
        """What a value must be, in words."""
        return " ".join(filter(None, [_KINDS[self.kind], str(self.bounds)]))

    def __str__(self) -> str:
        if self.many:
            return f"{self.name},..."
        return self.name if self.default is inspect.Parameter.empty else f"{self.name}={self.default!r}"


@dataclass(frozen=True)
class Entry(Generic[T]):
    """One registered function.

    `help` is one line, `source` the paper or site it follows, `origin` the plugin it came with, `facts` what
    else its room wants to know of it. `token` is another one each time that something is registered.
    """

    name: str
    make: Callable[..., T]
    help: str
    source: str = ""
    origin: Origin = _OURS
    facts: dict[str, Any] = field(default_factory=dict, hash=False, compare=False)
    token: str = field(default_factory=lambda: secrets.token_hex(16), hash=False, compare=False)

    @property
    def plugin(self) -> str:
        """Name of the plugin it came with; empty: none."""
        return self.origin.plugin

    @property
    def is_loose(self) -> bool:
        """Whether it is of a script or a notebook, that is neither ours nor of a plugin."""
        return self.origin != _OURS and not self.plugin

    @functools.cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """Those that a text may give, in order."""
        found = []
        for one in inspect.signature(self.make, eval_str=True).parameters.values():
            if one.kind in (one.KEYWORD_ONLY, one.VAR_KEYWORD):
                continue
            hint = one.annotation if one.annotation is not one.empty else type(one.default)
            notes = getattr(hint, "__metadata__", ())
            bounds = next((note for note in notes if isinstance(note, Bounds)), None)
            kind = typing.get_args(hint)[0] if notes else hint
            if kind not in _KINDS:
                raise TypeError(f"{self.make}: {one.name} must be annotated as int, float, bool or str")
            many = one.kind is one.VAR_POSITIONAL
            found.append(Parameter(one.name, kind, one.default, bounds or Bounds(), many))
        return tuple(found)

    @functools.cached_property
    def offered(self) -> frozenset[str]:
        """Names of the parameters that the asking code gives; all are wanted where `**` is one."""
        kinds = inspect.signature(self.make).parameters.values()
        return frozenset("**" if one.kind is one.VAR_KEYWORD else one.name for one in kinds
                         if one.kind in (one.KEYWORD_ONLY, one.VAR_KEYWORD))  # fmt: skip

    def usage(self) -> str:
        """Returns e.g. `focal(gamma=2.0)`."""
        return f"{self.name}({', '.join(map(str, self.parameters))})" if self.parameters else self.name

    def bind(self, call: Call) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns the positional and the named arguments of a call, checked, with defaults filled in.

        Raises:
          UsageError: they do not fit; the message says the argument, its type and its bounds.
        """
        rest, given = list(call.args), dict(call.named)
        args: list[Any] = []
        named: dict[str, Any] = {}
        for one in self.parameters:
            if one.many:
                for value in rest:
                    one.check(value)
                args, rest = rest, []
                continue
            if rest and one.name in given:
                raise UsageError(f"{one.name} is given twice")
            value = rest.pop(0) if rest else given.pop(one.name, one.default)
            if value is inspect.Parameter.empty:
                raise UsageError(f"{one.name} is missing, {one.wanted}")
            if value != one.default or type(value) is not type(one.default):
                one.check(value)
            named[one.name] = value
        if rest:
            raise UsageError(f"{self.name} takes {self._takes()}, and there is {rest[0]!r} besides")
        if given:
            name = next(iter(given))
            close = close_names(name, [one.name for one in self.parameters], n=1)
            raise UsageError(f"{self.name} has no {name}; it takes {self._takes()}{is_it(close)}")
        return tuple(args), named

    def _takes(self) -> str:
        return ", ".join(f"{one} ({one.wanted})" for one in self.parameters) or "no arguments"


@dataclass(frozen=True)
class Choice(Generic[T]):
    """An entry with its arguments: what a text asked for. Calling it makes the thing.

    Two are equal if they are of the same entry with the same arguments, however they were written.
    """

    entry: Entry[T]
    args: tuple[Any, ...]
    named: tuple[tuple[str, Any], ...]
    said: str = field(compare=False)
    """For messages: the flag and the text."""

    @property
    def name(self) -> str:
        return self.entry.name

    def __str__(self) -> str:
        """Returns what `Registry.choose` reads as the same."""
        defaults = {one.name: one.default for one in self.entry.parameters}
        return str(Call(self.name, self.args, tuple(kv for kv in self.named if kv[1] != defaults[kv[0]])))

    def __call__(self, **offered: Any) -> T:
        """Makes the thing; of what is offered it gets what it names.

        Raises:
          UsageError: the arguments do not go together; the message begins with flag and text.
        """
        wanted = self.entry.offered
        given = offered if "**" in wanted else {name: offered[name] for name in wanted if name in offered}
        try:
            return self.entry.make(*self.args, **dict(self.named), **given)
        except UsageError as error:
            # Some are about another option, or name the thing themselves.
            said = "" if str(error).startswith(("--", str(self))) else f"{self.said}: "
            raise UsageError(f"{said}{error}") from None


class AddressChoice(Choice[T]):
    """An entry of an `AddressRegistry` with its address, if any."""

    @property
    def address(self) -> str:
        return str(self.args[0]) if self.args else ""

    def __str__(self) -> str:
        return f"{self.name}:{self.address}" if self.address else self.name

    def check(self) -> None:
        """Makes sure, without opening anything, that the address can be one.

        Raises:
          UsageError: the entry's fact `check`, a function (address, flag=...), says that it cannot.
        """
        if check := self.entry.facts.get("check"):
            check(self.address, flag=self.said)


class Registry(Generic[T]):
    """Names of one kind of thing: ours, and those of the plugins that the context has loaded (`apart`)."""

    def __init__(self, what: str, *, flag: str, may_be_none: bool = False):
        """Begins without entries.

        Args:
          what: the kind, for people, such as `loss`.
          flag: what messages begin with, such as `--loss`.
          may_be_none: whether the option may be empty, for none of them.
        """
        self.what, self.flag, self._may_be_none = what, flag, may_be_none
        self._all: list[Entry[T]] = []

    @property
    def _entries(self) -> dict[str, Entry[T]]:
        """Those that are seen here, by name."""
        seen = versions()
        return {
            entry.name: entry
            for entry in self._all
            if not entry.plugin or seen.get(entry.plugin) == entry.origin.version
        }

    def register(self, name: str, *, source: str = "", **facts: Any) -> Callable[[F], F]:
        """Returns a decorator that makes a function known under a name.

        Raises:
          UsageError: from the decorator, there is another under this name.
        """

        def add(make: F) -> F:
            first = (inspect.getdoc(make) or "").split("\n\n")[0]
            # Of an object that is called, rather than a function, nobody knows where it is from.
            origin, module = _registering.get(), getattr(make, "__module__", None) or ""
            if not origin.plugin and module and not module.startswith("trainer."):
                origin = Origin("", module)
            entry: Entry[T] = Entry(name, make, " ".join(first.split()), source, origin, facts)
            before = self._entries.get(name)
            if before and before.is_loose:
                # A cell of a notebook that runs once more; or its code has become a plugin, which is seen.
                if entry.is_loose:
                    self._all.remove(before)
            elif before:
                who = f"plugin {entry.plugin}" if entry.plugin else module
                whose = f" of plugin {before.plugin}" if before.plugin else ""
                raise UsageError(f"{who} registers the {self.what} {name!r}, and there is one already{whose}")
            _ = entry.parameters  # What is wrong with a signature shows at once.
            self._all.append(entry)
            if entry.is_loose:
                _log.warning(
                    "%s %s is of %s: a run with it keeps no copy of that code, as it does of a file that "
                    "plugin= or --plugin= names",
                    self.flag, name, module,
                )  # fmt: skip
            return make

        return add

    def forget(self, origin: Origin) -> None:
        """Removes what came with a version of a plugin."""
        self._all = [entry for entry in self._all if entry.origin != origin]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, name: str) -> Entry[T]:
        return self._entries[name]

    def usage(self, name: str) -> str:
        """Returns how an entry is asked for, e.g. `focal(gamma=2.0)`."""
        return self[name].usage()

    def choose(self, text: str | Call, *, flag: str = "") -> Choice[T]:
        """Reads the one thing that a text must name.

        Args:
          text: such as `focal(2)` or `focal(gamma=2)`, or a call that was read before.
          flag: what messages begin with, where that is not the registry's.

        Raises:
          UsageError: it names none, or its arguments are wrong.
        """
        said = f"{flag or self.flag}={text}"
        try:
            [call] = [text] if isinstance(text, Call) else parse_calls(text)
        except (UsageError, ValueError):
            raise UsageError(f"{said} is not one of {', '.join(self)}") from None
        entry = self._called(call.name, said)
        try:
            args, named = entry.bind(call)
        except UsageError as error:
            raise UsageError(f"{said}: {error}") from None
        return Choice(entry, args, tuple(named.items()), said)

    def _called(self, name: str, said: str) -> Entry[T]:
        if entry := self._entries.get(name):
            return entry
        if not self._entries:
            raise UsageError(f"{said}: there is no {self.what} but those that --plugin=FILE brings")
        told = f"{said} is not one of {', '.join(map(self._shown, self))}"
        if self._may_be_none and name.lower() in _NONE:
            raise UsageError(f"{told}; for none of them, leave what is behind the = empty")
        raise UsageError(f"{told}{is_it(self._close(name))}")

    def _close(self, name: str) -> list[str]:
        """Returns what a name that is none may have been meant to be."""
        return [self._shown(one) for one in close_names(name, self)]

    def _shown(self, name: str) -> str:
        """Returns how messages show an entry."""
        return name


class AddressRegistry(Registry[T]):
    """Names that an address may stand behind, such as `folder:photos`.

    The address is one text, whatever is in it: the only parameter of the entry. An entry without a parameter
    takes none, and one whose parameter has a default can do without.
    """

    def register(self, name: str, *, source: str = "", address: str = "", **facts: Any) -> Callable[[F], F]:
        """See `Registry.register`; `address` shows what is to be written, default the parameter's name."""
        add = super().register(name, source=source, address=address, **facts)

        def checked(make: F) -> F:
            kinds = [one.kind for one in Entry(name, make, "").parameters]
            if kinds not in ([], [str]):
                raise TypeError(f"{make}: expected an address as its one parameter, annotated as str")
            return add(make)

        return checked

    def usage(self, name: str) -> str:
        """Returns how an entry is asked for, e.g. `folder:PATH`."""
        entry = self[name]
        if not entry.parameters:
            return name
        [taken] = entry.parameters
        text = f":{entry.facts['address'] or taken.name.upper()}"
        return f"{name}{text}" if taken.default is inspect.Parameter.empty else f"{name}[{text}]"

    _shown = usage

    def _close(self, name: str) -> list[str]:
        """See Registry: addresses are known by themselves, too, where an entry has the fact `names`."""
        found = [
            f"{one}:{address}"
            for one in self
            if (names := self[one].facts.get("names"))
            for address in close_names(name, names(), n=1)
        ]
        # What begins as it was written, but for case and hyphens, is meant.
        wanted, *plain = (re.sub(r"[\W_]", "", one.lower()) for one in (name, *self))
        begun = [
            one for one, text in zip(self, plain, strict=True) if len(wanted) > 2 and text.startswith(wanted)
        ]
        return [self._shown(one) for one in begun[:1]] or found or super()._close(name)

    def choose(self, text: str | Call, *, flag: str = "") -> AddressChoice[T]:
        """Reads `NAME` or `NAME:ADDRESS`; see `Registry.choose`."""
        said = f"{flag or self.flag}={text}"
        name, colon, address = str(text).partition(":")
        entry = self._called(name, said)
        if colon and not entry.parameters:
            raise UsageError(f"{said}: {name} takes no address")
        if not address and [one for one in entry.parameters if one.default is inspect.Parameter.empty]:
            raise UsageError(f"{said}: expected {self.usage(name)}")
        return AddressChoice(entry, (address,) if address else (), (), said)


_NONE = ("none", "no", "off", "false", "null")


def versions() -> Mapping[str, str]:
    """Returns {plugin: version} of what is seen here."""
    seen = _of_context.get()
    return _of_process if seen is None else seen


def see(origin: Origin) -> None:
    """From here on, what came with this version of a plugin is seen, instead of with another one."""
    _of_process[origin.plugin] = origin.version
    if (seen := _of_context.get()) is not None:
        _of_context.set({**seen, origin.plugin: origin.version})


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """In the block, and in its thread, only those plugins are seen that the block loads.

    Where there is no block, as in threads that were begun in one, the last ones of the process are.
    """
    token = _of_context.set({})
    try:
        yield
    finally:
        _of_context.reset(token)


@contextlib.contextmanager
def registering(origin: Origin) -> Iterator[None]:
    """What is registered in the block comes with a plugin."""
    token = _registering.set(origin)
    try:
        yield
    finally:
        _registering.reset(token)
