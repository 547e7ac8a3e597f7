"""Printing what others chose, on terminals that cannot show it."""

from __future__ import annotations

import io
from typing import TextIO


def escape_unencodable(*streams: TextIO | None) -> None:
    """From now on a stream escapes what its encoding does not have: `f\\xfcnf` where ASCII is all that is shown.

    Without this a command dies in the middle of a line when a device says `fünf` and LANG is C.
    """
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):  # not one that a test or an embedding program put there
            stream.reconfigure(errors="backslashreplace")
