"""Every command once: which ids were seen, how far each has come, and what of it outlives a restart.

    RECEIVED --on disk--> HELD --an application takes it--> OPEN --its answer--> FINAL
        \\---------------------\\--deadline, nobody takes it, application gone--/

A command is on disk before anyone is told of it and before the broker gets its PUBACK. So a restart finds every command
that may have begun, reports it as failed, and never begins it again. An upload alone is gone on with, by MAX_RUNS runs
at most: to send a content again does nothing twice, and the service knows how much of it came.

Whose id was forgotten is not begun again either: of those it is remembered when the latest was given, and until when
the last of them could have begun. What was given no later than that, and comes before then, may be one of them.
Where the file was damaged all were forgotten: `lost` has that of everything until it is known how late it is.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from typing import Any, Final

from fleet import messages, topics, uploads
from fleet.errors import InvalidInput
from fleet.messages import JsonObject, ResultState

REMEMBERED: Final = 256  # DESIGN section 7
MAX_UNFINISHED: Final = 64
MAX_OUTPUT_BYTES: Final = 1 << 20
MAX_FILE_BYTES: Final = 4 * MAX_OUTPUT_BYTES
# No command is good for longer: the most that a job may take.
MAX_LIFE: Final = timedelta(days=90)
_ALWAYS: Final = datetime(9999, 12, 31, tzinfo=UTC)
RESTARTED: Final = "the agent was restarted before this command was answered"
# One that ends the agent each time, by its memory or a broken disk, must not do so until its deadline.
MAX_RUNS: Final = 5


class Phase(Enum):
    """How far a command has come on this device."""

    RECEIVED = auto()
    HELD = auto()
    OPEN = auto()
    FINAL = auto()


@dataclass(frozen=True, slots=True)
class Entry:
    """One command. `hold_until` (monotonic) is when it fails if no application takes it; `app` is who has it.

    `sent_at`: when the fleet gave it, by the fleet's clock.

    `is_confirmed`: the broker has the final result. `runs`: how many runs of the agent have known it, unfinished.
    """

    id: str
    name: str
    phase: Phase = Phase.RECEIVED
    deadline: datetime | None = None
    args: JsonObject = field(default_factory=dict, repr=False)
    hold_until: float = 0.0
    app: int | None = None
    state: ResultState | None = None
    output: Any = field(default=None, repr=False)
    error: str = ""
    is_confirmed: bool = False
    sent_at: datetime | None = None
    runs: int = 1

    def finished(self, state: ResultState, output: Any = None, error: str = "") -> Entry:
        """With its final result."""
        return replace(self, phase=Phase.FINAL, args={}, app=None, state=state, output=output, error=error)

    @property
    def output_bytes(self) -> int:
        return 0 if self.output is None else len(json.dumps(self.output))


@dataclass(frozen=True, slots=True)
class Journal:
    """The last REMEMBERED commands, the oldest first.

    `forgotten_upto`: when the latest was given of those before them; `forgotten_until`: their last deadline.
    """

    entries: tuple[Entry, ...] = ()
    forgotten_upto: datetime | None = None
    forgotten_until: datetime | None = None

    def find(self, command_id: str) -> Entry | None:
        return next((entry for entry in self.entries if entry.id == command_id), None)

    def of(self, phase: Phase) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.entries if entry.phase is phase)

    @property
    def unfinished(self) -> int:
        return sum(entry.phase is not Phase.FINAL for entry in self.entries)

    def put(self, entry: Entry) -> Journal:
        """With `entry` in the place of the one with its id, or as the newest."""
        if self.find(entry.id) is not None:
            entries = tuple(entry if known.id == entry.id else known for known in self.entries)
        else:
            entries = (*self.entries, entry)
        kept = _forget_oldest(entries)
        ids = {each.id for each in kept}
        gone = [each for each in entries if each.id not in ids]
        return Journal(
            _without_large_outputs(kept),
            max(filter(None, (self.forgotten_upto, *(each.sent_at for each in gone))), default=None),
            max(filter(None, (self.forgotten_until, *(each.deadline for each in gone))), default=None),
        )

    def may_have_forgotten(self, sent_at: datetime, now: datetime) -> bool:
        """Whether a command that is not known, and was given then, may have been."""
        if self.forgotten_upto is None or self.forgotten_until is None:
            return False
        return sent_at <= self.forgotten_upto and now <= self.forgotten_until

    @property
    def is_lost(self) -> bool:
        """Whether all that was ever given may have been forgotten, and it is not known yet when that was."""
        return self.forgotten_upto == _ALWAYS

    def dated(self, now: datetime) -> Journal:
        """Where it was lost: what is given after `now` cannot be one of those that were forgotten."""
        return replace(self, forgotten_upto=now, forgotten_until=now + MAX_LIFE) if self.is_lost else self

    def encode(self) -> bytes:
        """As a file: one object a line, so that an output is nested no deeper than in the line it came in."""
        lines: list[JsonObject] = [{"v": 1}, *(_encode(entry) for entry in self.entries)]
        if self.forgotten_upto is not None and self.forgotten_until is not None:  # an older agent reads over it
            times = map(messages.format_time, (self.forgotten_upto, self.forgotten_until))
            lines[-1] |= {"forgotten": list(times)}
        return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def lost() -> Journal:
    """What is left of one that cannot be read: any command may have been in it."""
    return Journal(forgotten_upto=_ALWAYS, forgotten_until=_ALWAYS)


def _forget_oldest(entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
    if len(entries) <= REMEMBERED:
        return entries
    at = next((at for at, entry in enumerate(entries) if entry.phase is Phase.FINAL), 0)
    return entries[:at] + entries[at + 1 :]


def _without_large_outputs(entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
    """The oldest outputs are let go, those that the broker has first: memory and the file stay bounded."""
    excess = sum(entry.output_bytes for entry in entries) - MAX_OUTPUT_BYTES
    if excess <= 0:
        return entries
    kept = list(entries)
    for at in sorted(range(len(kept)), key=lambda at: (not kept[at].is_confirmed, at)):
        if excess > 0 and kept[at].output is not None:
            excess -= kept[at].output_bytes
            kept[at] = replace(kept[at], output=None, error=kept[at].error or "the output was too large to be kept")
    return tuple(kept)


def _encode(entry: Entry) -> JsonObject:
    fields: JsonObject = {"id": entry.id, "name": entry.name}
    if entry.sent_at is not None and entry.deadline is not None:
        fields |= {"ts": messages.format_time(entry.sent_at), "deadline": messages.format_time(entry.deadline)}
    if entry.phase is Phase.FINAL and entry.state is not None:
        fields |= {"state": entry.state.value, "confirmed": entry.is_confirmed}
        fields |= {"output": entry.output, "error": entry.error}
    elif entry.name == uploads.COMMAND:
        with suppress(InvalidInput):  # what cannot be read fails, now or after a restart
            fields |= {"order": uploads.decode_order(entry.args).encode(), "runs": entry.runs}
    return fields


def decode_journal(data: bytes) -> Journal:
    """The inverse of `Journal.encode`, where what was not final has failed, or is an upload. Raises: InvalidInput."""
    try:
        header, *lines = [messages.decode_object(line, max_bytes=MAX_FILE_BYTES) for line in data.splitlines()]
        if header.keys() - {"forgotten"} != {"v"} or header["v"] != 1:
            raise ValueError("it is of another version")
        return Journal(tuple(map(_decode, lines))[-REMEMBERED:], *_forgotten([header, *lines]))
    except (KeyError, TypeError, ValueError, AttributeError, InvalidInput) as error:
        raise InvalidInput(f"the list of commands is damaged: {error}") from error


def _forgotten(lines: list[JsonObject]) -> tuple[datetime | None, datetime | None]:
    if "forgotten" not in lines[-1]:
        return None, None
    upto, until = lines[-1]["forgotten"]
    return messages.parse_time(upto), messages.parse_time(until)


def _decode(fields: JsonObject) -> Entry:
    entry = Entry(topics.check_name(fields["id"]), topics.check_name(fields["name"]))
    if "ts" in fields:
        sent_at, deadline = messages.parse_time(fields["ts"]), messages.parse_time(fields["deadline"])
        entry = replace(entry, sent_at=sent_at, deadline=deadline)
    if "state" not in fields:
        return _left(entry, fields)
    done = entry.finished(ResultState(fields["state"]), fields.get("output"), str(fields.get("error", "")))
    if not ResultState(fields["state"]).is_final:
        raise ValueError("a result that is not final")
    return replace(done, is_confirmed=fields.get("confirmed") is True)


def _left(entry: Entry, fields: JsonObject) -> Entry:
    """What an earlier run left unfinished: to be written again, as of this run, before it is gone on with."""
    order, runs = fields.get("order"), fields.get("runs")
    if entry.name != uploads.COMMAND or order is None or entry.deadline is None:
        return entry.finished(ResultState.FAILED, error=RESTARTED)
    if type(runs) is not int or runs < 1:
        raise ValueError("runs is not a number from 1")
    if runs >= MAX_RUNS:
        return entry.finished(ResultState.FAILED, error=f"the agent was restarted {runs} times while it was sent")
    return replace(entry, args=uploads.decode_order(order).encode(), runs=runs + 1)
