"""A QR code as text, for a phone in front of the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

_QUIET: Final = 4  # modules of margin (ISO/IEC 18004, 5.3.8)
_HALVES: Final = {(0, 0): "█", (0, 1): "▀", (1, 0): "▄", (1, 1): " "}  # above, below; a dark module is the background
_WIDE: Final = {0: "##", 1: "  "}

Modules = Sequence[Sequence[int]]


def qr_text(text: str, encoding: str | None) -> str:
    """`text` as a QR code in half blocks, two rows of modules a line; in # if `encoding` has no half blocks.

    Drawn for a dark background, as terminals are; phones read it on a bright one too (they know inverted codes).
    """
    modules = _with_margin(_modules(text))
    return _half_blocks(modules) if _can_say(encoding, "█▀▄") else _hashes(modules)


def _modules(text: str) -> Modules:
    import segno

    return segno.make_qr(text, error="m").matrix


def _with_margin(modules: Modules) -> list[list[int]]:
    blank = [0] * (len(modules[0]) + 2 * _QUIET)
    margin = [0] * _QUIET
    middle = [[*margin, *row, *margin] for row in modules]
    return [blank] * _QUIET + middle + [blank] * _QUIET


def _half_blocks(modules: list[list[int]]) -> str:
    """One row more if their number is odd, as bright as the margin."""
    rows = [*modules, [0] * len(modules[0])] if len(modules) % 2 else modules
    pairs = zip(rows[::2], rows[1::2], strict=True)
    return "\n".join("".join(_HALVES[pair] for pair in zip(above, below, strict=True)) for above, below in pairs)


def _hashes(modules: list[list[int]]) -> str:
    return "\n".join("".join(_WIDE[module] for module in row) for row in modules)


def _can_say(encoding: str | None, characters: str) -> bool:
    try:
        characters.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
