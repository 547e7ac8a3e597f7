"""Which devices are meant, in a line: `site=berlin and (model=pi-* or group=pumps) and not online`. Pure.

    selection = all *( "or" all )
    all       = one *( "and" one )
    one       = "not" one / "(" selection ")" / name [ ( "=" / "!=" ) value ]

A name is a field of the registry (`FIELDS`) or else a label's; `*` in a value stands for any run of characters, and a
label's name alone for its being there. Bounded in length and depth: a line may come from somebody else's file.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from fleet.errors import InvalidInput
from fleet.identity import Role, State

MAX_LENGTH: Final = 2_000
MAX_DEPTH: Final = 16
MAX_LABELS: Final = 32  # of one device
ONLINE: Final = "online"
FIELDS: Final = ("id", "role", "state", "group", "agent", ONLINE)

_CHOICES: Final = {"role": tuple(map(str, Role)), "state": tuple(map(str, State))}
_LABEL: Final = re.compile(r"[a-z0-9](?:[a-z0-9_.-]{0,62}[a-z0-9])?")
_VALUE: Final = re.compile(r"[a-z0-9_.-]{1,63}")
_PATTERN: Final = re.compile(r"[a-z0-9_.*-]{1,64}")
_WORDS: Final = ("and", "or", "not")
_TOKEN: Final = re.compile(r"\s*(?:(!=|[()=])|([^\s()=!]+))")


@dataclass(frozen=True, slots=True)
class Has:
    """`name`: the label is there; `online`: it is connected."""

    name: str


@dataclass(frozen=True, slots=True)
class Is:
    """`name=pattern`."""

    name: str
    pattern: str


@dataclass(frozen=True, slots=True)
class Not:
    """`not ...`."""

    of: Selection


@dataclass(frozen=True, slots=True)
class Every:
    """`... and ...`: two at least."""

    of: tuple[Selection, ...]


@dataclass(frozen=True, slots=True)
class Some:
    """`... or ...`: two at least."""

    of: tuple[Selection, ...]


Selection = Has | Is | Not | Every | Some


def check_label(name: str) -> str:
    """The name, if a label may be called so. Raises: InvalidInput."""
    if not _LABEL.fullmatch(name):
        raise InvalidInput(f"{name[:80]!r} is not a label's name", hint="use a-z, 0-9, and _ . - between them: site")
    if name in FIELDS or name in _WORDS:
        raise InvalidInput(f"no label is called {name}", hint=f"not {', '.join((*FIELDS, *_WORDS))}")
    return name


def check_value(value: str) -> str:
    """The value, if a label may have it. Raises: InvalidInput."""
    if not _VALUE.fullmatch(value):
        raise InvalidInput(f"{value[:80]!r} is not a label's value", hint="use 1 to 63 of a-z 0-9 _ . -")
    return value


def parse(text: str) -> Selection:
    """The selection in a line. Raises: InvalidInput, with the place."""
    if len(text) > MAX_LENGTH:
        raise InvalidInput(f"a selection has {MAX_LENGTH} characters at most", hint="ask for a label")
    parser = _Parser(text)
    selection = parser.some(0)
    parser.end()
    return selection


class _Parser:
    """Reads tokens from left to right; `_at` is the one that is next."""

    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, int]] = []
        self._text = text
        self._at = 0
        place = 0
        while place < len(text.rstrip()):
            found = _TOKEN.match(text, place)
            if found is None:
                raise self._error(place)
            self._tokens.append((found[1] or found[2], found.start(found.lastindex or 0)))
            place = found.end()

    def some(self, depth: int) -> Selection:
        parts = self._joined("or", lambda: self._every(depth))
        return parts[0] if len(parts) == 1 else Some(tuple(parts))

    def end(self) -> None:
        if self._next():
            raise self._error()

    def _every(self, depth: int) -> Selection:
        parts = self._joined("and", lambda: self._one(depth))
        return parts[0] if len(parts) == 1 else Every(tuple(parts))

    def _joined(self, word: str, part: Callable[[], Selection]) -> list[Selection]:
        parts = [part()]
        while self._take(word):
            parts.append(part())
        return parts

    def _one(self, depth: int) -> Selection:
        if depth > MAX_DEPTH:
            raise InvalidInput("the selection is nested too deeply", hint=f"{MAX_DEPTH} parentheses and nots at most")
        if self._take("not"):
            return Not(self._one(depth + 1))
        if not self._take("("):
            return self._term()
        inner = self.some(depth + 1)
        if not self._take(")"):
            raise self._error()
        return inner

    def _term(self) -> Selection:
        name = self._next()
        if not _LABEL.fullmatch(name) or name in _WORDS:
            raise self._error()
        self._at += 1
        for sign in ("=", "!="):
            if self._take(sign):
                found = self._comparison(name)
                return found if sign == "=" else Not(found)
        if name in FIELDS and name != ONLINE:
            raise InvalidInput(f"{name} is compared with something", hint=f"{name}=VALUE, or {name}!=VALUE")
        return Has(name)

    def _comparison(self, name: str) -> Is:
        if name == ONLINE:
            raise InvalidInput("online stands alone", hint="online, or not online")
        pattern = self._next()
        if not _PATTERN.fullmatch(pattern):
            raise self._error()
        choices = _CHOICES.get(name)
        if choices is not None and pattern not in choices:
            raise InvalidInput(f"{pattern!r} is not a {name}", hint=f"one of {', '.join(choices)}")
        self._at += 1
        return Is(name, pattern)

    def _next(self) -> str:
        return self._tokens[self._at][0] if self._at < len(self._tokens) else ""

    def _take(self, token: str) -> bool:
        taken = self._next() == token
        self._at += taken
        return taken

    def _error(self, place: int | None = None) -> InvalidInput:
        if place is None:
            place = self._tokens[self._at][1] if self._at < len(self._tokens) else len(self._text)
        rest = self._text[place:].strip()[:40]
        where = f"at {rest!r}" if rest else "at its end"
        return InvalidInput(
            f"the selection is not understood {where}",
            hint="as site=berlin and (model=pi-* or group=pumps)",
        )
