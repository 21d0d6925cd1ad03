"""What a sweep searches: texts of --search and the file of --space, read once and checked like the options.

A value is a text with ranges in it, such as `log(1e-5,1e-3)` or `focal(uniform(0,5))`; `|` stands between
alternatives. Each alternative may have options of its own, which are searched where it is taken.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.cli.config import Config
from trainer.cli.flags import typed
from trainer.paths import local_path
from trainer.values import UsageError, as_number

_RANGE = re.compile(r"(?<![\w.])(log|uniform|int|logint|choice)\(([^()]*)\)")
_SUCH_AS = "log(1e-5,1e-3), uniform(0,0.5), int(1,8), logint(64,1024) or 0,0.2,0.5"
_CANNOT = ("plugin", "by_hand", "folds", "fold", "budget")


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included, or texts of which one is taken."""

    kind: str
    text: str
    low: float = 0.0
    high: float = 0.0
    step: int = 1
    choices: tuple[str, ...] = ()

    @property
    def is_whole(self) -> bool:
        return self.kind in ("int", "logint")

    @property
    def is_log(self) -> bool:
        return self.kind in ("log", "logint")

    def grid(self) -> list[Any]:
        """Returns all values; none where they are not few."""
        if self.kind == "choice":
            return list(self.choices)
        return list(range(int(self.low), int(self.high) + 1, self.step)) if self.kind == "int" else []

    def ends(self) -> tuple[Any, ...]:
        """Returns what is to be tried to know that all is allowed."""
        if self.kind == "choice":
            return self.choices
        return (int(self.low), int(self.high)) if self.is_whole else (self.low, self.high)


@dataclass(frozen=True)
class Alternative:
    """A value with ranges in it, and what else is searched where it is taken."""

    pieces: tuple[str | Range, ...]
    then: "Space" = ()

    @property
    def label(self) -> str:
        """The value as it was written."""
        return "".join(piece if isinstance(piece, str) else piece.text for piece in self.pieces)


@dataclass(frozen=True)
class Dimension:
    """An option that is searched; `phase.NAME.FIELD` is a field of a --phase."""

    option: str
    alternatives: tuple[Alternative, ...]


Space = tuple[Dimension, ...]
Draw = Callable[[str, Range], Any]
"""(name of what is drawn, range) -> a value in it."""


def read_space(search: Sequence[str], file: str) -> Space:
    """Returns the space of a sweep.

    Args:
      search: texts such as `dropout=0,0.2,0.5`.
      file: of --space; empty for none.

    Raises:
      UsageError: one cannot be read, or an option is searched twice.
    """
    found = list(_read_file(file)) if file else []
    for text in search:
        option, equals, value = text.partition("=")
        if not equals or not option.strip():
            raise UsageError(f"--search={text} is not OPTION=VALUES, such as dropout=0,0.2,0.5")
        try:
            found.append(Dimension(option.strip().lstrip("-"), _alternatives(value)))
        except UsageError as error:
            raise UsageError(f"--search={text}: {error}") from None
    names = [dimension.option for dimension in found]
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise UsageError(f"--search={twice[0]}=...: it is searched twice; give all its values in one")
    if both := sorted(field for is_whole, field in _of_phases(found) if is_whole and field):
        raise UsageError(
            f"--phase is searched whole, so {both[0]} cannot be searched besides: give its ranges in the "
            "values of phase, such as lr=log(1e-5,1e-3)"
        )
    if not found:
        raise UsageError("sweep needs --search=OPTION=VALUES, such as --search='dropout=0,0.2,0.5'")
    return tuple(found)


def _of_phases(space: Sequence[Dimension]) -> set[tuple[bool, str]]:
    """Returns {(whether phase is searched, a field of one that is, or '')}, one for each kind of trial."""
    found = {(False, "")}
    for dimension in space:
        is_whole = dimension.option == "phase"
        field = dimension.option if dimension.option.startswith("phase.") else ""
        inner = {pair for one in dimension.alternatives for pair in _of_phases(one.then)}
        found = {
            (is_whole or before[0] or then[0], field or before[1] or then[1])
            for before in found
            for then in inner
        }
    return found


def pick(space: Space, draw: Draw, *, within: str = "") -> dict[str, str]:
    """Returns {option: its value, as text} of one trial.

    Args:
      space: what is searched.
      draw: chooses; what it is asked for depends on what it has chosen before.
      within: name of the alternative that these options belong to.
    """
    found: dict[str, str] = {}
    for dimension in space:
        name = f"{within}{dimension.option}"
        at, several = 0, len(dimension.alternatives) > 1
        if several:
            labels = tuple(one.label for one in dimension.alternatives)
            at = labels.index(draw(name, Range("choice", "|".join(labels), choices=labels)))
        taken = dimension.alternatives[at]
        text = ""
        for i, piece in enumerate(taken.pieces):
            text += piece if isinstance(piece, str) else told(draw(_name_of(taken, i, name, several), piece))
        found[dimension.option] = text
        found |= pick(taken.then, draw, within=f"{name}={taken.label}/")
    return found


def told(value: Any) -> str:
    """Returns a value as an option takes it."""
    return repr(float(value)) if isinstance(value, float) else str(value)


def _name_of(taken: Alternative, at: int, name: str, several: bool) -> str:
    """Returns what a range is called: the option, and of several ranges the text with ? for this one."""
    if len(taken.pieces) == 1 and not several:
        return name
    shown = "".join(
        piece if isinstance(piece, str) else "?" if i == at else "_" for i, piece in enumerate(taken.pieces)
    )
    return f"{name}={shown}"


def apply(config: Config, given: Mapping[str, Any], texts: Mapping[str, str]) -> Config:
    """Returns a configuration with options set as if they stood behind it on a command line.

    Args:
      config: the others.
      given: the options that were set by hand before, by name.
      texts: of `pick`.

    Raises:
      UsageError: there is no such option, or it cannot have the value.
    """
    values: dict[str, Any] = {}
    phases = list(config.plan.phase)
    for option, text in texts.items():
        if option.startswith("phase."):
            phases = _with_field(phases, option, text)
            values["phase"] = tuple(phases)
        else:
            _require_searchable(option)
            values[option] = typed(option, text)
    # What is noted to be set by hand is of --schedule=recommended, and a trial may have another schedule.
    noted = config.plan.by_hand if "by_hand" in given else ()
    found = config.replace(**{"by_hand": noted, **values}).with_given([*given, *values])
    found.require_unruled({**given, **values})
    return found


def _require_searchable(option: str) -> None:
    declared = {field.name: field.metadata for field in Config.declared()}
    if option in declared and (not declared[option]["identity"] or option in _CANNOT):
        raise UsageError(f"--{option} cannot be searched: no number of a run depends on it, or all would")


def _with_field(phases: list[str], option: str, text: str) -> list[str]:
    """Returns texts of --phase with a field set in one of them."""
    _, _, rest = option.partition(".")
    which, _, field = rest.rpartition(".")
    names = [_fields(phase).get("name", f"phase{i}") for i, phase in enumerate(phases, 1)]
    numbers = [str(i) for i in range(1, len(phases) + 1)]
    if which not in (*names, *numbers):
        there = f"there are {', '.join(names)}" if names else "there is no --phase"
        raise UsageError(f"{option} is no field of a --phase, such as phase.1.lr: {there}")
    at = names.index(which) if which in names else numbers.index(which)
    fields = {**_fields(phases[at]), field: text}
    return [*phases[:at], "; ".join(f"{k}={v}" for k, v in fields.items()), *phases[at + 1 :]]


def _fields(phase: str) -> dict[str, str]:
    parts = (part.partition("=") for part in phase.split(";") if part.strip())
    return {key.strip(): value.strip() for key, _, value in parts}


def corners(space: Space) -> Iterator[dict[str, str]]:
    """Yields trials of which one would be refused if any value of the space were: each end of each range."""
    yield pick(space, _first)
    for name, part in _ranges(space):
        for end in part.ends():
            chosen = dict(_way_to(space, name))
            yield pick(space, lambda asked, r, end=end, name=name, chosen=chosen: (  # type: ignore[misc]
                end if asked == name else chosen.get(asked, _first(asked, r))
            ))  # fmt: skip


def _first(name: str, part: Range) -> Any:
    return part.ends()[0]


def _ranges(space: Space, within: str = "") -> list[tuple[str, Range]]:
    """Returns [(name, range)] of all that may be drawn in any trial."""
    found: list[tuple[str, Range]] = []
    for dimension in space:
        name, several = f"{within}{dimension.option}", len(dimension.alternatives) > 1
        labels = tuple(one.label for one in dimension.alternatives)
        if several:
            found.append((name, Range("choice", "|".join(labels), choices=labels)))
        for one in dimension.alternatives:
            pieces = [(i, piece) for i, piece in enumerate(one.pieces) if isinstance(piece, Range)]
            found += [(_name_of(one, i, name, several), piece) for i, piece in pieces]
            found += _ranges(one.then, f"{name}={one.label}/")
    return found


def _way_to(space: Space, wanted: str, within: str = "") -> list[tuple[str, str]]:
    """Returns [(name of a choice, what is to be chosen)] that lead to where something is drawn."""
    for dimension in space:
        name, several = f"{within}{dimension.option}", len(dimension.alternatives) > 1
        for one in dimension.alternatives:
            here = [(name, one.label)] if several else []
            inner = f"{name}={one.label}/"
            own = [_name_of(one, i, name, several) for i, p in enumerate(one.pieces) if isinstance(p, Range)]
            if wanted in own:
                return here
            if wanted in [at for at, _ in _ranges(one.then, inner)]:
                return here + _way_to(one.then, wanted, inner)
    return []


def all_of(space: Space) -> list[dict[str, Any]]:
    """Returns all trials of a space, as {name: value} of what is drawn, in a fixed order.

    Raises:
      UsageError: a range has no end of values.
    """
    if endless := [name for name, part in _ranges(space) if not part.grid()]:
        raise UsageError(
            f"--sampler=grid tries all values, and {endless[0]} has no end of them: give a list such as "
            "0,0.2,0.5, or int(1,8)"
        )
    found: list[dict[str, Any]] = []
    left: list[dict[str, Any]] = [{}]
    while left:
        known = left.pop(0)
        drawn: dict[str, Any] = {}
        open_at: list[tuple[str, Range]] = []

        def draw(name: str, part: Range, known: Any = known, drawn: Any = drawn, at: Any = open_at) -> Any:
            if name not in known and not at:
                at.append((name, part))
            drawn[name] = known.get(name, part.grid()[0])
            return drawn[name]

        pick(space, draw)
        if not open_at:
            found.append(drawn)
            continue
        [(name, part)] = open_at
        left = [{**known, name: value} for value in part.grid()] + left
    return found


def check_space(config: Config, given: Mapping[str, Any], space: Space) -> list[Config]:
    """Returns configurations at the ends of a space, each of which the options themselves allow.

    Raises:
      UsageError: an option does not exist, or a value is not allowed; the message begins with --search.
    """
    found = []
    for texts in corners(space):
        try:
            found.append(apply(config, given, texts))
        except UsageError as error:
            raise UsageError(f"--search: {error}") from None
    return found


def describe(space: Space) -> list[str]:
    """Returns a line for each option that is searched; the same space has the same lines."""
    lines = []
    for dimension in space:
        values = "|".join(one.label for one in dimension.alternatives)
        lines.append(f"{dimension.option}={values}")
        for one in dimension.alternatives:
            lines += [f"{dimension.option}={one.label}/{line}" for line in describe(one.then)]
    return lines


def _alternatives(text: str) -> tuple[Alternative, ...]:
    parts = _split(text, "|")
    if len(parts) == 1:
        pieces = _pieces(text)
        if any(isinstance(piece, Range) for piece in pieces):
            return (Alternative(pieces),)
        parts = _split(text, ",")
    found = tuple(Alternative(_pieces(part)) for part in parts)
    labels = [one.label for one in found]
    if len(set(labels)) < len(labels):
        raise UsageError("a value is given twice")
    if len(found) == 1:
        raise UsageError(f"{text.strip() or 'nothing'} is one value: give several, or a range: {_SUCH_AS}")
    return found


def _pieces(text: str) -> tuple[str | Range, ...]:
    text = text.strip()
    found: list[str | Range] = []
    at = 0
    for match in _RANGE.finditer(text):
        found += [text[at : match.start()]] * (match.start() > at)
        found.append(_range(match[0], match[1], match[2]))
        at = match.end()
    return (*found, text[at:]) if at < len(text) or not found else tuple(found)


def _range(text: str, kind: str, inner: str) -> Range:
    if kind == "choice":
        choices = tuple(part.strip() for part in inner.split("|"))
        if len(set(choices)) < 2:
            raise UsageError(f"{text} must have two or more values, as in choice(flip|none)")
        return Range(kind, text, choices=choices)
    try:
        numbers = [as_number(part.strip()) for part in inner.split(",")]
    except ValueError:
        raise UsageError(f"{text}: its ends must be numbers, as in {_SUCH_AS}") from None
    is_whole = kind in ("int", "logint")
    if len(numbers) != 2 and not (kind == "int" and len(numbers) == 3):
        raise UsageError(f"{text} must have two ends, as in {_SUCH_AS}")
    low, high, step = numbers[0], numbers[1], numbers[2] if len(numbers) == 3 else 1.0
    if not all(map(math.isfinite, numbers)) or not low < high:
        raise UsageError(f"{text}: the first end must be below the second")
    if kind in ("log", "logint") and low <= 0:
        raise UsageError(f"{text}: both ends must be above 0")
    if is_whole and not all(number == int(number) for number in (low, high, step)):
        raise UsageError(f"{text}: its ends must be whole numbers")
    if kind == "int" and (step < 1 or (high - low) % step):
        raise UsageError(f"{text}: steps of {step:g} do not lead from {low:g} to {high:g}")
    return Range(kind, text, low, high, int(step))


def _split(text: str, between: str) -> list[str]:
    """Returns the parts of a text between separators that stand in no parentheses."""
    depths = itertools.accumulate((letter in "([{") - (letter in ")]}") for letter in text)
    cuts = [i for i, (c, depth) in enumerate(zip(text, depths, strict=True)) if c == between and not depth]
    return [text[a + 1 : b].strip() for a, b in itertools.pairwise([-1, *cuts, len(text)])]


def _read_file(name: str) -> Space:
    try:
        import yaml  # Late: an extra that only this needs.
    except ImportError:
        raise UsageError("--space needs PyYAML: pip install 'hub-trainer[sweep]'") from None
    path = local_path(name, flag=f"--space={name}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"--space={name}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(f"--space={name} is no YAML: {' '.join(str(error).split())}") from None
    try:
        return _of_mapping(content)
    except UsageError as error:
        raise UsageError(f"--space={name}: {error}") from None


def _of_mapping(content: Any) -> Space:
    if not isinstance(content, dict) or not content:
        raise UsageError("it must have options and their values, such as `dropout: [0, 0.2, 0.5]`")
    found = []
    for option, values in content.items():
        try:
            found.append(Dimension(str(option).lstrip("-"), _of_values(values)))
        except UsageError as error:
            raise UsageError(f"{option}: {error}") from None
    return tuple(found)


def _of_values(values: Any) -> tuple[Alternative, ...]:
    if isinstance(values, dict):
        if not values:
            raise UsageError("it has no values, such as `adam:` and `sgd:` a line each")
        pairs = [(_text(value), then) for value, then in values.items()]
        return tuple(Alternative(_pieces(text), _of_mapping(then) if then else ()) for text, then in pairs)
    if isinstance(values, list):
        if len(values) < 2:
            raise UsageError(f"one value is no search: give several, or a range: {_SUCH_AS}")
        return tuple(Alternative(_pieces(_text(value))) for value in values)
    return _alternatives(_text(values))


def _text(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    raise UsageError(f"{value!r} is no value of an option")


def sweepless(config: Config) -> Config:
    """Returns a configuration with nothing of a sweep in it, as a single run has it."""
    defaults = {field.name: field.default for field in dataclasses.fields(type(config.sweep))}
    return config.replace(**defaults)
