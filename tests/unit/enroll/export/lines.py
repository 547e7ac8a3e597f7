"""A reader of InfluxDB line protocol, written from its reference and not from our writer."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """Hashable by what makes it one point to InfluxDB."""

    measurement: str
    tags: dict[str, str]
    fields: dict[str, float | bool | str]
    nanoseconds: int

    def __hash__(self) -> int:
        return hash((self.measurement, self.nanoseconds))

    def field(self, name: str) -> float:
        value = self.fields[name]
        assert isinstance(value, float)
        return value


def parse(line: str) -> Point:
    """One point. Raises: ValueError."""
    series, values, nanoseconds = split(line, " ", quoted=True)
    measurement, *tags = split(series, ",")
    fields = dict(_pair(each) for each in split(values, ",", quoted=True))
    return Point(
        unescape(measurement),
        {unescape(key): unescape(value) for key, value in map(_pair, tags)},
        {unescape(key): read_value(value) for key, value in fields.items()},
        int(nanoseconds),
    )


def split(text: str, separator: str, *, quoted: bool = False) -> list[str]:
    """The parts between separators that no backslash is before, nor, if `quoted`, quotation marks around."""
    parts, part, at, is_inside = [], "", 0, False
    while at < len(text):
        if text[at] == "\\":
            part, at = part + text[at : at + 2], at + 2
            continue
        if quoted and text[at] == '"':
            is_inside = not is_inside
        if text[at] == separator and not is_inside:
            parts.append(part)
            part = ""
        else:
            part += text[at]
        at += 1
    return [*parts, part]


def _pair(text: str) -> tuple[str, str]:
    key, value = split(text, "=", quoted=True)
    return key, value


def unescape(name: str) -> str:
    for special in ",= ":
        name = name.replace("\\" + special, special)
    return name


def read_value(text: str) -> float | bool | str:
    if text in ("true", "false"):
        return text == "true"
    if text[0] == '"':
        if text[-1] != '"' or len(text) < 2:
            raise ValueError(text)
        return re.sub(r'\\([\\"])', r"\1", text[1:-1])
    return float(text)
