"""What the stub measures: the machine it runs on, and a sensor that says it is simulated."""

from __future__ import annotations

import math
import os
from pathlib import Path

_THERMAL_ZONES = Path("/sys/class/thermal")
_MEMINFO = Path("/proc/meminfo")
_TIDE_SECONDS = 60.0


def read_machine(thermal_zones: Path = _THERMAL_ZONES, meminfo: Path = _MEMINFO) -> dict[str, object]:
    """Temperature in degrees Celsius where there is a thermal zone, load over one minute, memory in use in per cent."""
    measured: dict[str, object] = {"load_1m": round(os.getloadavg()[0], 2)}
    temperature = _temperature_celsius(thermal_zones)
    if temperature is not None:
        measured["temperature_celsius"] = temperature
    memory = _memory_used_percent(meminfo)
    if memory is not None:
        measured["memory_used_percent"] = memory
    return measured


def read_simulated(elapsed_seconds: float) -> dict[str, object]:
    """A pressure that swings by the minute; `simulated` is there so that nobody takes it for a measurement."""
    swing = math.sin(2 * math.pi * elapsed_seconds / _TIDE_SECONDS)
    return {"pressure_bar": round(3.0 + 0.5 * swing, 3), "simulated": True}


def _temperature_celsius(zones: Path) -> float | None:
    """The first thermal zone that can be read; the kernel gives thousandths of a degree."""
    for zone in sorted(zones.glob("thermal_zone*/temp")):
        try:
            return round(int(zone.read_text()) / 1000, 1)
        except (OSError, ValueError):
            continue
    return None


def _memory_used_percent(meminfo: Path) -> float | None:
    try:
        rows = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        total, available = (int(rows[name].split()[0]) for name in ("MemTotal", "MemAvailable"))
        return round(100 * (1 - available / total), 1)
    except (OSError, KeyError, ValueError, IndexError, ZeroDivisionError):
        return None
