"""A plot by hand: CPU for each message and broker, as horizontal bars on a logarithmic scale."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

from benchmarks.brokers.contenders import NAMES
from benchmarks.brokers.outcomes import Line

_COLOURS: Final = dict(zip(NAMES, ("#0b6e4f", "#6fb89c", "#3b5b92", "#c28f2c", "#a3a3a3"), strict=True))
_LEFT, _WIDTH, _BAR, _GAP, _TOP = 370, 520, 13, 16, 58


def bars(lines: Sequence[Line]) -> str:
    """The SVG document."""
    scale = _Scale([value for line in lines for name in NAMES if (value := line.median(name))])
    body, at = [], _TOP
    for line in lines:
        drawn = [(name, value) for name in NAMES if (value := line.median(name))]
        middle = at + len(drawn) * _BAR / 2 + 4
        body.append(f'<text x="{_LEFT - 10}" y="{middle:.0f}" text-anchor="end">{_escaped(line.scenario)}</text>')
        for name, value in drawn:
            body.append(
                f'<rect x="{_LEFT}" y="{at}" width="{scale.x(value):.1f}" height="{_BAR - 2}" fill="{_COLOURS[name]}"/>'
                f'<text class="s" x="{_LEFT + scale.x(value) + 5:.1f}" y="{at + _BAR - 4}">{_rounded(value)}</text>'
            )
            at += _BAR
        at += _GAP
    frame = [*_legend(), *scale.grid(at - _GAP)]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + 70}" height="{at + 24}" '
        'font-family="sans-serif" font-size="12"><style>.s{font-size:10px;fill:#444}</style>'
        '<rect width="100%" height="100%" fill="white"/>'
    )
    title = '<text x="12" y="20" font-size="14">CPU of the broker for a delivered message, microseconds</text>'
    return "\n".join([head, title, *frame, *body, "</svg>"]) + "\n"


class _Scale:
    """Whole decades."""

    def __init__(self, values: Sequence[float]) -> None:
        self._low = math.floor(math.log10(min(values)))
        self._high = math.ceil(math.log10(max(values)))

    def x(self, value: float) -> float:
        """How long a bar is."""
        return (math.log10(value) - self._low) / (self._high - self._low) * _WIDTH

    def grid(self, bottom: int) -> Iterator[str]:
        for exponent in range(self._low, self._high + 1):
            x = _LEFT + self.x(10.0**exponent)
            yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 6}" y2="{bottom}" stroke="#ddd"/>'
            yield f'<text class="s" x="{x:.1f}" y="{bottom + 14}" text-anchor="middle">{10.0**exponent:g}</text>'


def _legend() -> Iterator[str]:
    for number, name in enumerate(NAMES):
        x = _LEFT + number * 120
        yield f'<rect x="{x}" y="32" width="11" height="11" fill="{_COLOURS[name]}"/>'
        yield f'<text x="{x + 16}" y="42">{name}</text>'


def _rounded(value: float) -> str:
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
