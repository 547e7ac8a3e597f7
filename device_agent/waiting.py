"""A request that waits for an admin: how long to wait, and the note by which a restart goes on and `status` can tell.

The note says nothing that matters: the key on disk is the request, and the service knows it again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from device_agent.store import Disk, replace_file
from fleet import messages
from fleet.errors import FleetError
from fleet.identity import DeviceId
from fleet.layout import AgentHome
from fleet.messages import format_time, parse_time

SHORTEST_SECONDS: Final = 1.0
LONGEST_SECONDS: Final = 600.0
UNASKED_SECONDS: Final = 30.0  # where the service does not say when to come again
_SPREAD: Final = 0.2


@dataclass(frozen=True, slots=True)
class Patience:
    """How to wait: `sleep` takes seconds, `chance` is uniform in [0, 1), `tell` prints a line for a person."""

    sleep: Callable[[float], None]
    chance: Callable[[], float]
    clock: Callable[[], datetime]
    tell: Callable[[str], None]
    waits: bool = True  # else one question is all


def delay_seconds(retry_after: float | None, chance: float) -> float:
    """When to ask again: as the service wishes, within bounds, and spread so that a fleet does not come all at once."""
    wished = UNASKED_SECONDS if retry_after is None else retry_after
    return min(max(wished, SHORTEST_SECONDS), LONGEST_SECONDS) * (1 + _SPREAD * chance)


@dataclass(frozen=True, slots=True)
class Note:
    """What waits: the service's name for the request, and what to compare of the key."""

    device: DeviceId
    url: str
    request: str
    key: str
    since: datetime

    @property
    def words(self) -> str:
        """For whoever stands before the device."""
        return (
            f"waiting for an admin's approval of {self.device}: code {self.request}, key {self.key}\n"
            f"hint: compare the key, then: enroll request approve {self.request}"
        )

    def fields(self) -> dict[str, str]:
        """What `status -o json` shows."""
        return {
            "device": str(self.device),
            "state": "waiting-for-approval",
            "code": "waiting-for-approval",
            "words": self.words.partition("\n")[0],
            "hint": self.words.partition("hint: ")[2],
            "url": self.url,
            "request": self.request,
            "key": self.key,
            "since": format_time(self.since),
        }


def note_path(home: AgentHome) -> Path:
    return home.path / "run" / "waiting.json"


def write_note(home: AgentHome, disk: Disk, note: Note) -> None:
    """Keep the note, for a restart and for `status`. Raises: OSError."""
    path = note_path(home)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    replace_file(disk, path, json.dumps({"v": 1} | note.fields()).encode() + b"\n")


def read_note(home: AgentHome) -> Note | None:
    """The note, if there is one that can be read."""
    try:
        fields: dict[str, Any] = messages.decode_object(note_path(home).read_bytes())
        texts = (str(fields["url"]), str(fields["request"]), str(fields["key"]))
        return Note(DeviceId(fields["device"]), *texts, parse_time(fields["since"]))
    except (OSError, KeyError, TypeError, FleetError):
        return None


def remove_note(home: AgentHome) -> None:
    """Nothing waits any more. Raises: OSError."""
    note_path(home).unlink(missing_ok=True)
