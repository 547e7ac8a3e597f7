"""`device-agent status`: what the running agent says of itself; else what the disk does."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from device_agent.application import is_of, short_path, socket_path, spare_path
from device_agent.clock import Reading
from device_agent.renewal import life_of
from device_agent.store import Store
from fleet import messages
from fleet.errors import FleetError, InvalidInput, TimedOut, printable
from fleet.layout import AgentHome, Credential
from fleet.messages import format_time, parse_time

READ_ONLY_WORDS: Final = "read-only: messages wait in memory, commands are refused, the certificate is not renewed"
READ_ONLY_HINT: Final = "see what befell the card: dmesg; replace it, or: mount -o remount,rw"
_ANSWER_SECONDS: Final = 5.0
_MAX_ANSWER_BYTES: Final = 262_144


def read_status(home: AgentHome, store: Store, clock: Reading) -> dict[str, Any]:
    """The fields of the `status` line, of a running agent, or of the files and this process' `clock`.

    Raises: NotFound, TimedOut, FleetError.
    """
    credential = store.credential()
    try:
        return {"clock": clock.fields()} | ask_agent(home)
    except (FileNotFoundError, ConnectionRefusedError):
        return _status_of(credential) | {"clock": clock.fields()}
    except (OSError, InvalidInput) as error:
        raise TimedOut(f"the agent does not answer: {error}", hint="restart it: device-agent run") from error


def whatever_is_known(home: AgentHome, store: Store, clock: Reading) -> dict[str, Any]:
    """As `read_status`, and never an error."""
    try:
        return read_status(home, store, clock)
    except FleetError as error:
        return {"state": "unknown", "words": error.message, "hint": error.hint}


def ask_agent(home: AgentHome, kind: str = "status", seconds: float = _ANSWER_SECONDS) -> dict[str, Any]:
    """The running agent's `status` line, or what it answers to a line of another type, within `seconds` of silence.

    Raises: FileNotFoundError, ConnectionRefusedError, OSError, InvalidInput.
    """
    answer = {"renew": "renewal"}.get(kind, kind)
    with _connected(home, seconds) as connection:
        connection.sendall(messages.encode_object({"type": kind}) + b"\n")
        with connection.makefile("rb") as lines:
            while line := lines.readline(_MAX_ANSWER_BYTES):
                fields = messages.decode_object(line, max_bytes=_MAX_ANSWER_BYTES)
                if fields.get("type") == answer:
                    return fields
    raise ConnectionResetError("it closed the connection")


def _connected(home: AgentHome, seconds: float) -> socket.socket:
    """A connection to the agent, wherever it listens. Raises: OSError."""
    try:
        return _connect(socket_path(home), seconds)
    except (FileNotFoundError, ConnectionRefusedError):
        if not is_of(home, spare_path(home)):
            raise
    return _connect(spare_path(home), seconds)


def _connect(path: Path, seconds: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(seconds)
        with short_path(path) as name:
            connection.connect(name)
    except BaseException:
        connection.close()
        raise
    return connection


def _status_of(credential: Credential) -> dict[str, Any]:
    renewal = {"state": "not-running", "next_at": format_time(life_of(credential).due)}
    return {
        "type": "status",
        "device": str(credential.device),
        "state": "not-running",
        "code": "agent-not-running",
        "words": "the agent is not running",
        "hint": "start it: device-agent run",
        "serial": str(credential.serial),
        "not_after": format_time(credential.not_after),
        "renewal": renewal,
    }


def as_json(fields: dict[str, Any]) -> str:
    return json.dumps({name: value for name, value in fields.items() if name != "type"}, indent=2)


def as_table(fields: dict[str, Any], role: str, now: datetime) -> str:
    """For a person: who, whether connected, and what to do if not."""
    rows = [
        ("device", f"{fields['device']} ({role})"),
        ("state", fields["state"]),
        ("code", "" if fields.get("code") == "ok" else fields.get("code")),
        ("", fields["words"]),
        ("do", fields.get("hint")),
        ("clock", _clock(fields.get("clock", {}))),
        ("certificate", f"{fields['serial']}, {_expiry(parse_time(fields['not_after']), now)}"),
        ("renewal", _renewal(fields.get("renewal", {}))),
        ("applications", _applications(fields)),
        ("waiting", _waiting(fields)),
        ("storage", _storage(fields.get("storage", {}))),
        ("spool", _spool(fields.get("spool", {}))),
        ("down-link", _downlink(fields.get("downlink", {}))),
    ]
    return "\n".join(f"{name:<13}{printable(str(value))}" for name, value in rows if value)


def _clock(fields: dict[str, Any]) -> str:
    """What is wrong with it, and what to do; nothing if nothing is."""
    return f"{fields['words']} [{fields['code']}]; {fields['hint']}" if fields.get("words") else ""


def _expiry(not_after: datetime, now: datetime) -> str:
    left = not_after - now
    date = f"{not_after:%Y-%m-%d %H:%M} UTC"
    if left <= timedelta(0):
        return f"EXPIRED on {date}"
    amounts: list[tuple[Callable[[timedelta], float], str]] = [
        (lambda span: span / timedelta(days=1), "days"),
        (lambda span: span / timedelta(hours=1), "hours"),
        (lambda span: span / timedelta(minutes=1), "minutes"),
    ]
    number, unit = next(((of(left), unit) for of, unit in amounts if of(left) >= 2), (left.total_seconds(), "seconds"))
    return f"valid until {date} ({number:.0f} {unit} left)"


def _renewal(fields: dict[str, Any]) -> str:
    """When, or why not; an alarm first."""
    at = f"{parse_time(fields['next_at']):%Y-%m-%d %H:%M:%S} UTC" if "next_at" in fields else ""
    alarm = "ALARM: " if fields.get("is_alarming") else ""
    if fields.get("failures"):
        times = "once" if fields["failures"] == 1 else f"{fields['failures']} times"
        return f"{alarm}failed {times} ({fields['code']}): {fields['words']}; again at {at}"
    if fields.get("state") in ("preparing", "trying", "falling-back"):
        return f"{alarm}under way ({fields['state']})"
    return f"{alarm}at {at}" if at else ""


def _applications(fields: dict[str, Any]) -> str:
    listed = [f"{each['app']} ({', '.join(each['commands'])})" for each in fields.get("applications", [])]
    return ", ".join(listed) if listed or "applications" not in fields else "none"


def _storage(storage: dict[str, Any]) -> str:
    """Nothing of one that takes writing, or of an agent that does not say."""
    return f"{READ_ONLY_WORDS} [storage-read-only]; {READ_ONLY_HINT}" if storage.get("is_read_only") else ""


def _spool(spool: dict[str, Any]) -> str:
    """What is wrong with the disk, if anything."""
    if spool.get("error"):
        return f"cannot be written: {spool['error']} [spool-failed]; make room, then it goes on by itself"
    if spool.get("problem"):
        return f"was damaged, and began anew: {spool['problem']} [spool-damaged]"
    return ""


def _downlink(fields: dict[str, Any]) -> str:
    """What was refused, or cannot be looked at; nothing if all is well."""
    if fields.get("problem"):
        return f"signatures cannot be looked at: {fields['problem']} [verifier-failed]"
    if not fields.get("refused_count"):
        return ""
    count = "one message" if fields["refused_count"] == 1 else f"{fields['refused_count']} messages"
    last = fields["refused"]
    return f"{count} refused, the last on {last['topic']}: {last['words']} [{last['code']}]; {last['hint']}"


def _waiting(fields: dict[str, Any]) -> str:
    if "waiting_messages" not in fields:
        return ""
    text = f"{fields['waiting_messages']} messages, {fields['unfinished_commands']} commands"
    return f"{text}; {fields['dropped_messages']} messages dropped" if fields["dropped_messages"] else text
