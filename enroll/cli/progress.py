"""How far a bulk verb is: a bar on stderr where a person looks at it, nothing where a program does."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol, TextIO

_WIDTH: Final = 30


class Advance(Protocol):
    """Says that so many more are done."""

    def __call__(self, count: int, /) -> None: ...


@contextmanager
def progress(words: str, total: int, stream: TextIO | None = None) -> Iterator[Advance]:
    """Within, `advance(n)` moves the bar on; it is redrawn once a percent, and its line is ended in any case."""
    out = sys.stderr if stream is None else stream
    if not out.isatty() or total < 1:
        yield lambda _count: None
        return
    done, drawn = 0, -1

    def advance(count: int) -> None:
        nonlocal done, drawn
        done += count
        if (percent := 100 * done // total) != drawn:
            drawn = percent
            bar = ("#" * (_WIDTH * percent // 100)).ljust(_WIDTH, ".")
            out.write(f"\r{words} [{bar}] {done}/{total}")
            out.flush()

    advance(0)
    try:
        yield advance
    finally:
        out.write("\n")
