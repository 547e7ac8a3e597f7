"""What goes on when whoever waited for it pressed Ctrl-C."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from enroll.cli.output import say


@contextmanager
def going_on(words: str) -> Iterator[None]:
    """Within, Ctrl-C ends the waiting alone, and `words` say what goes on and which command shows it."""
    try:
        yield
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            print(file=sys.stderr)  # behind the terminal's ^C
        say(words)
        raise
