"""Attribute-based filters and selectors (ETSI GS MEC 009, clauses 6.18 and 6.19), on plain JSON values. Pure.

    filter=(eq,serviceConsumerId/appInstanceId,video);(in,deviceInformation/associateId/value,10.0.0.1,10.0.0.2)

A path that meets a list means any of its elements. `eq neq in nin gt gte lt lte cont ncont` are the operators; a value
that has one of ``,)'`` in it stands in single quotes, with a quote inside doubled.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from whimbrel.model.errors import BadInput

MOST_FILTER = 4096
_ONE = {"eq", "neq", "gt", "gte", "lt", "lte"}
_MANY = {"in", "nin", "cont", "ncont"}
_NEGATED = {"neq": "eq", "nin": "in", "ncont": "cont"}
SELECTORS = ("all_fields", "fields", "exclude_fields", "exclude_default")

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Condition:
    operator: str
    path: tuple[str, ...]
    values: tuple[str, ...]

    def holds(self, item: Json) -> bool:
        """A negated operator holds where its opposite does not, also where nothing is at the path."""
        found = list(_at(item, self.path))
        opposite = _NEGATED.get(self.operator)
        if opposite is not None:
            return not any(_meets(opposite, value, self.values) for value in found)
        return any(_meets(self.operator, value, self.values) for value in found)


def parse_filter(text: str, names: Collection[str]) -> tuple[Condition, ...]:
    """`names`: the attributes that there are. Raises BadInput that says where the filter is wrong."""
    if len(text) > MOST_FILTER:
        raise BadInput(f"a filter of {len(text)} characters is too long: use at most {MOST_FILTER}")
    conditions: list[Condition] = []
    rest = text
    while True:
        words, rest = _expression(rest)
        operator, path, values = words[0], tuple(words[1].split("/")) if len(words) > 1 else (), tuple(words[2:])
        if operator not in _ONE | _MANY:
            raise BadInput(f"filter: there is no operator {operator!r}: use {', '.join(sorted(_ONE | _MANY))}")
        if not values or (operator in _ONE and len(values) != 1):
            raise BadInput(f"filter: ({','.join(words)}) needs an attribute and {_count(operator)}")
        if path[0] not in names:
            raise BadInput(f"filter: there is no attribute {path[0]!r}: there are {', '.join(sorted(names))}")
        conditions.append(Condition(operator, path, values))
        if not rest:
            return tuple(conditions)
        if not rest.startswith(";"):
            raise BadInput(f"filter: expressions are parted by ';', found {rest[:20]!r}")
        rest = rest[1:]


def _count(operator: str) -> str:
    return "one value" if operator in _ONE else "at least one value"


def _expression(text: str) -> tuple[list[str], str]:
    """The words of the first ``(…)`` of a text, and what follows it."""
    if not text.startswith("("):
        raise BadInput(f"filter: an expression begins with '(', found {text[:20]!r}: write (eq,name,value)")
    words: list[str] = []
    word, at = "", 1
    while at < len(text):
        letter = text[at]
        if letter == "'" and not word:
            word, at = _quoted(text, at)
            continue
        at += 1
        if letter == ")":
            return [*words, word], text[at:]
        if letter == ",":
            words.append(word)
            word = ""
        else:
            word += letter
    raise BadInput("filter: an expression does not end with ')'")


def _quoted(text: str, begin: int) -> tuple[str, int]:
    word, at = "", begin + 1
    while at < len(text):
        if text[at] != "'":
            word += text[at]
            at += 1
        elif text[at + 1 : at + 2] == "'":
            word += "'"
            at += 2
        else:
            return word, at + 1
    raise BadInput("filter: a quoted value does not end")


def _at(value: Any, path: Sequence[str]) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for one in value:
            yield from _at(one, path)
    elif not path:
        yield value
    elif isinstance(value, Mapping) and path[0] in value:
        yield from _at(value[path[0]], path[1:])


def _meets(operator: str, value: Any, wanted: Sequence[str]) -> bool:
    if isinstance(value, Mapping):
        return False
    shown = str(value).lower() if isinstance(value, bool) else str(value)
    if operator in ("eq", "in"):
        return any(_equal(value, shown, one) for one in wanted)
    if operator == "cont":
        return any(one in shown for one in wanted)
    return _ORDER[operator](*_comparable(value, shown, wanted[0]))


def _equal(value: Any, shown: str, wanted: str) -> bool:
    left, right = _comparable(value, shown, wanted)
    return bool(left == right)


def _comparable(value: Any, shown: str, wanted: str) -> tuple[Any, Any]:
    """Numbers as numbers, all else as text."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value), float(wanted)
        except (ValueError, OverflowError):
            pass
    return shown, wanted


_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "gt": lambda a, b: bool(a > b),
    "gte": lambda a, b: bool(a >= b),
    "lt": lambda a, b: bool(a < b),
    "lte": lambda a, b: bool(a <= b),
}


@dataclass(frozen=True)
class Shape:
    """Of a kind of resource: all `names`, those that are structures or lists and may be left out (`complex`), and those
    of them that `exclude_default` leaves out."""

    names: frozenset[str]
    complex: frozenset[str]
    default: frozenset[str]


def select(items: Sequence[dict[str, Any]], query: Mapping[str, str], shape: Shape) -> list[dict[str, Any]]:
    """What a query's filter and selectors leave of `items`. Raises BadInput."""
    dropped = _dropped(query, shape)
    text = query.get("filter", "")
    conditions = parse_filter(text, shape.names) if text else ()
    found = [item for item in items if all(one.holds(item) for one in conditions)]
    return [{name: value for name, value in item.items() if name not in dropped} for item in found]


def _dropped(query: Mapping[str, str], shape: Shape) -> frozenset[str]:
    """The attributes that are left out, by clause 6.18.2."""
    given = [name for name in SELECTORS if name in query]
    if "all_fields" in given and len(given) > 1:
        raise BadInput(f"all_fields cannot go with {given[1]}: name one of them")
    if "exclude_fields" in given and len(given) > 1:
        raise BadInput(f"exclude_fields cannot go with {', '.join(one for one in given if one != 'exclude_fields')}")
    if "exclude_fields" in given:
        return _named(query["exclude_fields"], shape)
    kept = _named(query["fields"], shape) if "fields" in given else frozenset()
    if "exclude_default" in given:
        return shape.default - kept
    return shape.complex - kept if "fields" in given else frozenset()


def _named(text: str, shape: Shape) -> frozenset[str]:
    """A path names the attribute that it begins with: parts of one are not selected."""
    names = {one.strip().partition("/")[0] for one in text.split(",")} - {""}
    for name in sorted(names):
        if name not in shape.complex:
            raise BadInput(
                f"{name!r} is no attribute that can be selected: there are {', '.join(sorted(shape.complex)) or 'none'}"
            )
    return frozenset(names)
