"""In what a number is measured: as the end of its name says, `temperature_celsius`, or as an admin does (pure)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fleet.errors import InvalidInput

_MAX_CHARS: Final = 16


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit, and what Home Assistant calls what is measured in it (`device_class`), where that is certain."""

    text: str = ""
    measures: str = ""


NONE: Final = Unit()

# Only what Home Assistant allows together (homeassistant.components.sensor.const.DEVICE_CLASS_UNITS).
_BY_ENDING: Final[Mapping[str, Unit]] = {
    "celsius": Unit("°C", "temperature"),
    "fahrenheit": Unit("°F", "temperature"),
    "kelvin": Unit("K", "temperature"),
    "percent": Unit("%"),
    "bar": Unit("bar", "pressure"),
    "hpa": Unit("hPa", "pressure"),
    "pascal": Unit("Pa", "pressure"),
    "volts": Unit("V", "voltage"),
    "amperes": Unit("A", "current"),
    "watts": Unit("W", "power"),
    "kilowatts": Unit("kW", "power"),
    "hertz": Unit("Hz", "frequency"),
    "seconds": Unit("s", "duration"),
    "lux": Unit("lx", "illuminance"),
    "dbm": Unit("dBm", "signal_strength"),
    "bytes": Unit("B", "data_size"),
    "meters": Unit("m", "distance"),
    "ppm": Unit("ppm"),
}


def unit_of(stream: str, field: str, told: Mapping[str, Unit]) -> Unit:
    """The unit of a field; what an admin has `told` for `stream.field` stands before its name."""
    return told.get(f"{stream}.{field}") or _BY_ENDING.get(field.rpartition("_")[2].lower(), NONE)


def parse_told(texts: list[str]) -> dict[str, Unit]:
    """Units by `stream.field`, from `load.l1=A`. Raises: InvalidInput."""
    found = {}
    for text in texts:
        name, sign, unit = text.rpartition("=")
        if not (sign and "." in name and 0 < len(unit) <= _MAX_CHARS and unit.isprintable()):
            raise InvalidInput(f"{text[:80]!r} is no unit of a field", hint="write STREAM.FIELD=UNIT: load.l1=A")
        found[name] = Unit(unit)
    return found
