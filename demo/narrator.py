"""What the demo says, and whether everything that it claimed held."""

from __future__ import annotations

import sys
import textwrap
import time
from dataclasses import dataclass, field

_WIDTH = 110


@dataclass(slots=True)
class Narrator:
    """Prints as things happen. `is_colourful` only on a terminal."""

    is_colourful: bool = field(default_factory=sys.stdout.isatty)
    started: float = field(default_factory=time.monotonic)
    steps: int = 0
    held: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def step(self, title: str) -> None:
        """Begin a numbered step."""
        self.steps += 1
        print(f"\n{self._paint('1', f'{self.steps}. {title}')}", flush=True)

    def say(self, text: str) -> None:
        """One line of what goes on, folded."""
        print(textwrap.fill(text, _WIDTH, initial_indent="   ", subsequent_indent="   "), flush=True)

    def show(self, text: str) -> None:
        """Lines as a program printed them, cut at the screen's edge."""
        for line in text.rstrip().splitlines():
            print(
                "   " + self._paint("2", "│ " + (line if len(line) <= _WIDTH else line[: _WIDTH - 1] + "…")), flush=True
            )

    def check(self, holds: bool, claim: str, otherwise: str = "") -> None:
        """Say a claim that was tried, and keep whether it held."""
        (self.held if holds else self.failed).append(claim)
        mark = self._paint("32", "✓") if holds else self._paint("31", "✗")
        print(f"   {mark} {claim}" + ("" if holds else f": {otherwise}"), flush=True)

    def summary(self) -> int:
        """The last lines; the exit status of the demo."""
        seconds = time.monotonic() - self.started
        print(f"\n{len(self.held)} of {len(self.held) + len(self.failed)} claims held, in {seconds:.1f} s")
        for claim in self.failed:
            print(f"   {self._paint('31', '✗')} {claim}")
        return 1 if self.failed else 0

    def _paint(self, code: str, text: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self.is_colourful else text
