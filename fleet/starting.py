"""What a program does before it is loaded, which takes seconds on a small machine."""

from __future__ import annotations

import gc
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

INTERRUPTED = 130
"""The exit status that a shell gives to whom Ctrl-C ended."""


@contextmanager
def interruptible(leave: Callable[[int], object]) -> Iterator[None]:
    """Within, Ctrl-C is `leave(130)`, quietly: nothing has begun yet.

    A KeyboardInterrupt in the middle of an import may be printed and forgotten, or come out as another error. Who is
    to ignore Ctrl-C still does. The main thread alone may enter.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, lambda _number, _frame: leave(INTERRUPTED))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def uncollected() -> Iterator[None]:
    """Within, garbage is collected once, at the end; what is there then is looked through no more.

    What is loaded is no garbage: to look through it while more comes is up to a seventh of a start's CPU.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def version_of(program: str) -> str:
    """The line that `--version` prints."""
    from importlib.metadata import version  # as long as all else that this file loads

    return f"{program} {version('mqtt-fleet')}"
