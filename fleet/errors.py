"""What can go wrong in words a person can act on.

FleetError                 failed; exit code 1
├── InvalidInput           what was given cannot be used (a flag, a file, a value); exit code 2
├── NotFound               what was named is not there; exit code 3
├── Denied                 authentication or policy said no; exit code 4
├── Unreachable            the other side cannot be reached or trusted; exit code 5
├── PartlyDone             of several things some were done; exit code 6
└── TimedOut               no answer before the deadline; exit code 7
"""

from __future__ import annotations

from typing import ClassVar


class FleetError(Exception):
    """A failure that its reader can act on: `message` says what and why, `hint` what to do or type next."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class InvalidInput(FleetError):
    """What was given cannot be used."""

    exit_code = 2


class NotFound(FleetError):
    """What was named is not there."""

    exit_code = 3


class Denied(FleetError):
    """Authentication or policy said no."""

    exit_code = 4


class Unreachable(FleetError):
    """The other side cannot be reached, or is not who it should be."""

    exit_code = 5


class PartlyDone(FleetError):
    """Of several things that were asked for, some were done and some were not."""

    exit_code = 6


class TimedOut(FleetError):
    """No answer came before the deadline."""

    exit_code = 7


def usage_report(message: str, command: str) -> str:
    """What a library that parses command lines found wrong, as `report` would say it; help that it gives stays help."""
    if message.startswith("Usage:"):  # a noun without its verb
        return message
    # Both are pydantic's, which typer lets through.
    said = message.rstrip(".").replace("Value error, ", "").replace(": Input should be ", ": it should be ")
    error = f"error: {printable(said[:1].lower() + said[1:])}"
    return f"{error}\nhint: {command} --help" if command else error


def reason_of(error: OSError | ValueError) -> str:
    """Why a file cannot be read or written, for a message that has its name already."""
    if isinstance(error, UnicodeError):
        return "it is not text in UTF-8"
    return ((isinstance(error, OSError) and error.strerror) or str(error)).lower()


def printable(text: str) -> str:
    """`text` with every control, format and surrogate character escaped, so that a peer cannot drive a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def report(error: FleetError) -> str:
    """The lines that a command line prints on stderr for `error`."""
    lines = [f"error: {printable(error.message)}"]
    if error.hint:
        lines.append(f"hint: {printable(error.hint)}")
    return "\n".join(lines)
