"""What a Pi's firmware, or a PC's, says of itself; nothing where it says nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_SERIAL_FILES: Final = (
    Path("/proc/device-tree/serial-number"),
    Path("/sys/class/dmi/id/product_serial"),
)
_MODEL_FILES: Final = (Path("/proc/device-tree/model"), Path("/sys/class/dmi/id/product_name"))
_MAX_CHARS: Final = 64


@dataclass(frozen=True, slots=True)
class Hardware:
    """For an admin to look at, who sees by it that a card was put into another machine, or copied; nobody believes it.

    A machine's own number is not on its card; `/etc/machine-id` is, so a copy has the same.
    """

    serial: str = ""
    model: str = ""


UNKNOWN: Final = Hardware()


def read_hardware() -> Hardware:
    """This machine's, without what no header and no terminal should see."""
    return Hardware(plain(first_line(_SERIAL_FILES)), plain(first_line(_MODEL_FILES)))


def plain(text: str) -> str:
    """What may stand in a header (RFC 9110, 5.5), and no more of it than an admin reads."""
    return "".join(character for character in text if character.isascii() and character.isprintable())[:_MAX_CHARS]


def first_line(paths: Sequence[Path]) -> str:
    """What the first of these files that can be read says, as firmware ends it: with a NUL, or a line break."""
    for path in paths:
        try:
            with path.open("rb") as file:
                text = file.read(256).decode("ascii", "replace").rstrip("\0\n")
        except OSError:
            continue
        return text
    return ""
