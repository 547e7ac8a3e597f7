"""What every sink promises. A sink is used by one thread, and by one process at a time (`claim`)."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from enroll.export.readings import Reading
from fleet.errors import FleetError


class SinkBusy(FleetError):
    """Nothing was written, and it may be possible later: the disk is full, or somebody else writes. Try again."""


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a batch; of `left_out` the sink can say nothing in its format."""

    stored: int
    seen_before: int = 0
    left_out: int = 0


class Sink(Protocol):
    """Where readings go."""

    def write(self, readings: Sequence[Reading]) -> Written:
        """Keep all of them: on disk when this returns. Raises: SinkBusy (none is kept), FleetError (give up)."""

    def tend(self) -> None:
        """Do what is due by now; called every now and then. Raises: SinkBusy (nothing is lost; tried again)."""

    def close(self) -> None:
        """Finish what is open. Raises: FleetError."""


def claim(descriptor: int, path: Path) -> None:
    """Keep other exports away from an open file or folder until it is closed. Raises: FleetError if one has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise FleetError(f"another export writes to {path}", hint="stop it, or write to another place") from error


def is_in_place(descriptor: int, path: Path) -> bool:
    """Whether an open file still has its name: else whatever is written to it is nowhere to be found."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    here = os.fstat(descriptor)
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def sync_folder(folder: Path) -> None:
    """What was made, renamed or removed in a folder is so after a power cut too. Raises: OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def reason(error: OSError) -> str:
    """What the system says, in lower case."""
    return (error.strerror or str(error)).lower()
