"""How far a bulk verb is: a bar on stderr where a person looks at it, nothing where a program does."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, TextIO

_WIDTH: Final = 30
_ERASE: Final = "\r\x1b[2K"


class Progress:
    """A bar of `total` steps on `out`, or none at all."""

    def __init__(self, words: str, total: int, out: TextIO | None) -> None:
        self._words = words
        self._total = total
        self._out = out
        self._done = 0
        self._drawn = -1

    def advance(self, count: int) -> None:
        """So many more are done; drawn once a percent."""
        self._done += count
        percent = 100 * self._done // self._total if self._total else 100
        if self._out is not None and percent != self._drawn:
            self._drawn = percent
            bar = ("#" * (_WIDTH * percent // 100)).ljust(_WIDTH, ".")
            self._out.write(f"\r{self._words} [{bar}] {self._done}/{self._total}")
            self._out.flush()

    def hide(self) -> None:
        """Make room for a line of another kind, if the bar stands where that would go; it comes back by itself."""
        if self._out is not None and self._drawn >= 0:
            self._drawn = -1
            self._out.write(_ERASE)
            self._out.flush()


@contextmanager
def progress(words: str, total: int, stream: TextIO | None = None) -> Iterator[Progress]:
    """Within, a bar; its line is ended in any case."""
    out = sys.stderr if stream is None else stream
    bar = Progress(words, total, out if out.isatty() and total > 0 else None)
    bar.advance(0)
    try:
        yield bar
    finally:
        if out.isatty() and total > 0:
            out.write("\n")
