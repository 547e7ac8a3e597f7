"""What a run found: one outcome for each scenario, broker and repetition; compared by medians."""

from __future__ import annotations

import os
import platform
import ssl
import statistics
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from benchmarks.brokers.contenders import MOSQUITTO, NAMES, OURS


@dataclass(frozen=True, slots=True)
class Bar:
    """What is to be reached: at most (or at least) `ratio` of Mosquitto's value, or that very `value`."""

    ratio: float | None = None
    value: float | None = None
    is_floor: bool = False

    def is_met(self, ours: float, theirs: float | None) -> bool | None:
        """None where Mosquitto was not measured."""
        limit = self.value
        if self.ratio is not None:
            if theirs is None:
                return None
            limit = self.ratio * theirs
        assert limit is not None
        return ours >= limit if self.is_floor else ours <= limit

    def __str__(self) -> str:
        sign = ">=" if self.is_floor else "<="
        return f"{sign} {self.ratio}x" if self.ratio is not None else f"{sign} {self.value:g}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One measurement. `figures` holds what is told beside it, `window` when it was (CLOCK_MONOTONIC)."""

    scenario: str
    broker: str
    unit: str
    value: float
    bar: Bar | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    load_average: float = field(default_factory=lambda: os.getloadavg()[0])
    window: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Line:
    """One scenario: every broker's values, in the order in which they were measured."""

    scenario: str
    unit: str
    bar: Bar | None
    values: Mapping[str, Sequence[float]]
    figures: Mapping[str, Mapping[str, float]]
    load_average: float

    def median(self, broker: str) -> float | None:
        """The median of a broker that was measured."""
        return statistics.median(self.values[broker]) if broker in self.values else None

    def ratios(self, broker: str) -> list[float]:
        """Mosquitto's neighbours in time, one by one: what a busy machine does to one it does to the other."""
        pairs = zip(self.values.get(broker, ()), self.values.get(MOSQUITTO, ()), strict=False)
        return [ours / theirs for ours, theirs in pairs if theirs]

    def ratio(self, broker: str) -> float | None:
        found = self.ratios(broker)
        return statistics.median(found) if found else None

    @property
    def is_met(self) -> bool | None:
        """Whether the bar is met; None where there is none, or nothing to compare with."""
        ours = self.median(OURS)
        if self.bar is None or ours is None:
            return None
        if self.bar.ratio is not None and (ratio := self.ratio(OURS)) is not None:
            return self.bar.is_met(ratio, 1.0)
        return self.bar.is_met(ours, self.median(MOSQUITTO))


def lines(outcomes: Iterable[Outcome]) -> list[Line]:
    """By scenario, in the order in which they came first."""
    found: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        found.setdefault(outcome.scenario, []).append(outcome)
    return [_line(scenario, of_it) for scenario, of_it in found.items()]


def _line(scenario: str, outcomes: Sequence[Outcome]) -> Line:
    values = {name: [o.value for o in outcomes if o.broker == name] for name in NAMES}
    figures = {name: _medians([o.figures for o in outcomes if o.broker == name]) for name in NAMES}
    first = outcomes[0]
    load = max(outcome.load_average for outcome in outcomes)
    measured = {name: found for name, found in values.items() if found}
    return Line(scenario, first.unit, first.bar, measured, {n: f for n, f in figures.items() if f}, load)


def _medians(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for figures in found for name in figures)
    return {name: statistics.median([figures[name] for figures in found if name in figures]) for name in names}


@cache
def machine() -> dict[str, str]:
    """Where this was measured, and what of."""
    cpu = next((line for line in _lines_of("/proc/cpuinfo") if line.startswith("model name")), "?").partition(": ")[2]
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": f"{cpu} x {os.cpu_count()}",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "openssl": ssl.OPENSSL_VERSION,
        "mosquitto": _first_line("mosquitto", "-h"),
        "node": _first_line("node", "--version"),
        "commit": _first_line("git", "describe", "--always", "--dirty"),
    }


def _lines_of(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines()


def _first_line(*command: str) -> str:
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    return said[0] if said else "?"


def as_json(outcomes: Iterable[Outcome]) -> list[dict[str, object]]:
    """Every measurement by itself."""
    return [asdict(outcome) for outcome in outcomes]
