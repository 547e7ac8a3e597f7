"""InfluxDB line protocol: `measurement,tag=value field=1,other="text" 1700000000000000000` (pure).

Written from InfluxDB's reference of the format. One point is one line, always: a line break in a text is written as the
two characters `\\n`, as InfluxData's own encoder does.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

Fields = dict[str, float | bool | str]

MAX_FIELDS: Final = 256
"""Each name becomes a series of its own: one message of a confused device must not make thousands."""
MAX_NAME_CHARS: Final = 255
_NAMES: Final = 1024  # a fleet says the same names again and again; none that is cleaned is longer than the above
MAX_TEXT_BYTES: Final = 65_535  # "length limit 64KB" of a string field
_RESERVED: Final = frozenset({"time"})  # and whatever begins with an underscore
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SPECIAL: Final = re.compile(r"([,= ])")
_IN_TEXT: Final = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\f": "\\f"})
_MIN_NANOSECONDS: Final = -9_223_372_036_854_775_806
_MAX_NANOSECONDS: Final = 9_223_372_036_854_775_806


def line(measurement: str, tags: Mapping[str, str], fields: Fields, nanoseconds: int) -> str:
    """One point, without the line break. There must be a field, and no tag may be empty."""
    series = ",".join([escape_name(measurement), *(f"{escape_name(k)}={escape_name(v)}" for k, v in tags.items())])
    values = ",".join(f"{escape_name(name)}={format_value(value)}" for name, value in fields.items())
    return f"{series} {values} {nanoseconds}"


@functools.lru_cache(_NAMES)
def escape_name(name: str) -> str:
    """A measurement, tag or field key as it stands in a line.

    A measurement need not have its `=` escaped, but may. Anything that cannot be told, such as a backslash at the end,
    has been replaced: see `clean_name`.
    """
    return _SPECIAL.sub(r"\\\1", clean_name(name))


@functools.lru_cache(_NAMES)
def clean_name(name: str) -> str:
    """`name` with `_` for what a name cannot hold for every reader: control characters, backslashes, quotation marks.

    A name that is reserved (`time`, and all that begin with `_`) or empty has `field` before it.
    """
    if not name.isprintable() or "\\" in name or '"' in name:
        name = "".join("_" if c in '\\"' or not c.isprintable() else c for c in name)
    if not name or name.startswith(("_", "#")) or name in _RESERVED:
        return f"field_{name.lstrip('_#')}" if name.strip("_#") else "field"
    return name


def format_value(value: float | bool | str) -> str:
    """A field's value. Every number is a float: a field that is 21 now and 21.5 later must not change its type."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{value.translate(_IN_TEXT)}"'
    return repr(value)


def flatten(data: Any) -> tuple[Fields, int]:
    """The fields that `data` has, and how many were left out.

    What is inside an object or a list has a name of its parts joined by dots (`cpu.load`, `temperatures.0`); a value
    that is neither is `value`. `null` is no field. Left out are texts and names that are too long, and all beyond
    MAX_FIELDS. Of two that come to the same name the later stands.
    """
    fields: Fields = {}
    left_out = 0
    for name, value in _leaves("", data):
        key = clean_name(name) if len(name) <= MAX_NAME_CHARS else ""
        if not key or _is_long(value) or (len(fields) >= MAX_FIELDS and key not in fields):
            left_out += 1
        else:
            fields[key] = value
    return fields, left_out


def _leaves(path: str, data: Any) -> Iterator[tuple[str, float | bool | str]]:
    if isinstance(data, dict):
        for name, value in data.items():
            yield from _leaves(f"{path}.{name}" if path else name or "field", value)
    elif isinstance(data, list):
        for at, value in enumerate(data):
            yield from _leaves(f"{path}.{at}" if path else str(at), value)
    elif data is not None:
        yield path or "value", data


def _is_long(value: float | bool | str) -> bool:
    return isinstance(value, str) and len(value) > MAX_TEXT_BYTES // 4 and len(value.encode()) > MAX_TEXT_BYTES


def timestamp(moment: datetime, seq: int) -> int:
    """Nanoseconds since 1970, of which those that `moment` is too coarse to have are taken from `seq`.

    InfluxDB replaces a point by another of the same series and time. So two messages of one millisecond stay two, and
    one message that is written twice stays one.
    """
    micros = (moment - _EPOCH) // timedelta(microseconds=1)
    free = 1_000_000 if micros % 1000 == 0 else 1000
    return micros * 1000 + seq % free


def is_timestamp(nanoseconds: int) -> bool:
    """Whether InfluxDB can keep it: from 1677 to 2262."""
    return _MIN_NANOSECONDS <= nanoseconds <= _MAX_NANOSECONDS
