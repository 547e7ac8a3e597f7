"""Presence and commands: reads and writes within a caller's transaction."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Row, Select, bindparam, false, func, insert, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from enroll.registry import state
from enroll.registry.records import UNDELIVERED, CommandRecord, CommandState, PresenceRecord
from enroll.registry.schema import commands, presence, principals
from fleet.identity import DeviceId, State
from fleet.messages import ResultMessage, encode_object

_UNDELIVERED: Final = tuple(each.value for each in UNDELIVERED)
_UNFINISHED: Final = (*_UNDELIVERED, CommandState.ACCEPTED.value, CommandState.RUNNING.value)

_COMMAND = select(
    commands.c.id,
    commands.c.device,
    commands.c.epoch,
    commands.c.name,
    commands.c.args,
    commands.c.state,
    commands.c.created_at,
    commands.c.deadline,
    commands.c.changed_at,
    commands.c.output,
    commands.c.error,
)
_IS_FOR_THIS_HOLDER = (principals.c.epoch == commands.c.epoch) & (principals.c.state == State.ACTIVE.value)
_SENDABLE = (
    _COMMAND.join(principals, principals.c.id == commands.c.device)
    .where(_IS_FOR_THIS_HOLDER, commands.c.deadline > bindparam("now"))
    .order_by(commands.c.number)
)
_DUE: Select[Any] = _SENDABLE.where(commands.c.is_due).limit(bindparam("limit"))
_IS_READY = (
    select(presence.c.online & presence.c.claimed).where(presence.c.principal == bindparam("for")).scalar_subquery()
)
_ADD = insert(commands).values(is_due=func.coalesce(_IS_READY, false()))
_CAME_OR_WENT = (
    update(commands)
    .where(
        commands.c.device == bindparam("of"),
        commands.c.state == CommandState.QUEUED.value,
        commands.c.is_due != bindparam("is_ready"),
    )
    .values(is_due=bindparam("is_ready"))
)
_UNFINISHED_OF = _SENDABLE.where(commands.c.device == bindparam("device"), commands.c.state.in_(_UNFINISHED)).limit(
    bindparam("limit")
)
_COMMAND_BY_ID = _COMMAND.where(commands.c.id == bindparam("id"))
_COMMANDS_BY_ID = _COMMAND.where(commands.c.id.in_(bindparam("ids", expanding=True))).order_by(commands.c.number)
_COMMANDS_BY_AGE = _COMMAND.order_by(commands.c.number.desc())
_STATES = select(commands.c.id, commands.c.device, commands.c.state).where(
    commands.c.id.in_(bindparam("ids", expanding=True))
)
_RESULT = (
    update(commands)
    .where(commands.c.id == bindparam("of"))
    .values({name: bindparam(name) for name in ("state", "changed_at", "output", "error")} | {"is_due": False})
)
_SENT = (
    update(commands)
    .where(commands.c.id == bindparam("of"), commands.c.state == CommandState.QUEUED.value)
    .values(state=CommandState.SENT.value, changed_at=bindparam("at"), is_due=False)
)
_OVER = (
    select(commands.c.id)
    .where(commands.c.state.in_(_UNDELIVERED), commands.c.deadline <= bindparam("now"))
    .limit(bindparam("limit"))
)
_ORPHANED = (
    update(commands)
    .where(commands.c.device == bindparam("of"), commands.c.state.in_(_UNDELIVERED))
    .values(state=CommandState.EXPIRED.value, changed_at=bindparam("at"), is_due=False)
)
_NEXT_DEADLINE = select(func.min(commands.c.deadline)).where(commands.c.state.in_(_UNDELIVERED))
_OF_PRESENCE: Final = (
    presence.c.online,
    presence.c.reason,
    presence.c.agent,
    presence.c.changed_at,
    presence.c.last_seen,
    presence.c.claimed,
    presence.c.said,
    presence.c.boot,
    presence.c.session,
    presence.c.address,
    presence.c.broker,
    presence.c.changes,
)
_PRESENCE = select(*_OF_PRESENCE).where(presence.c.principal == bindparam("id"))
_ADD_PRESENCE = upsert(presence)
_SET_PRESENCE = _ADD_PRESENCE.on_conflict_do_update(
    index_elements=["principal"], set_={column.name: _ADD_PRESENCE.excluded[column.name] for column in _OF_PRESENCE}
)
_WHO_IS_ONLINE = select(presence.c.principal, presence.c.boot, presence.c.session).where(presence.c.online)
_SEEN = update(presence).where(presence.c.principal == bindparam("of")).values(last_seen=bindparam("at"))


def add_command(transaction: Connection, record: CommandRecord, job: int | None = None) -> None:
    """Add a command to a principal that is there; `job`: the number of the job that it is part of."""
    transaction.execute(
        _ADD,
        {
            "for": record.device,
            "id": record.id,
            "device": record.device,
            "epoch": record.epoch,
            "name": record.name,
            "args": record.args,
            "state": record.state.value,
            "created_at": record.created_at,
            "deadline": record.deadline,
            "changed_at": record.changed_at,
            "output": record.output,
            "error": record.error,
            "job": job,
        },
    )


def find_command(transaction: Connection, id: str) -> CommandRecord | None:
    """The command of that id."""
    row = transaction.execute(_COMMAND_BY_ID, {"id": id}).first()
    return None if row is None else _command(row)


def find_commands(transaction: Connection, ids: Collection[str]) -> list[CommandRecord]:
    """Those of these commands that there are, in the order they were given; some hundred ids at once."""
    return [_command(row) for row in transaction.execute(_COMMANDS_BY_ID, {"ids": list(ids)})]


def newest_commands(transaction: Connection, device: DeviceId | None, limit: int) -> list[CommandRecord]:
    """The `limit` newest commands, of that device or of all, oldest first."""
    query = _COMMANDS_BY_AGE if device is None else _COMMANDS_BY_AGE.where(commands.c.device == device)
    return [_command(row) for row in transaction.execute(query.limit(limit))][::-1]


def states_of(transaction: Connection, ids: Collection[str]) -> dict[str, tuple[DeviceId, CommandState]]:
    """Whose each of these commands is, and how far it has come; those that there are."""
    rows = transaction.execute(_STATES, {"ids": list(ids)})
    return {command: (DeviceId(device), CommandState(state)) for command, device, state in rows}


def due_commands(transaction: Connection, now: datetime, limit: int) -> list[CommandRecord]:
    """Up to `limit` queued commands of devices that are online, in the order they were given."""
    return [_command(row) for row in transaction.execute(_DUE, {"now": now, "limit": limit})]


def unfinished_commands(transaction: Connection, device: DeviceId, now: datetime, limit: int) -> list[CommandRecord]:
    """What a device that says hello must (again) be sent: it knows what it has answered, and answers that again."""
    values = {"device": device, "now": now, "limit": limit}
    return [_command(row) for row in transaction.execute(_UNFINISHED_OF, values)]


def mark_sent(transaction: Connection, ids: Iterable[str], now: datetime) -> None:
    """The broker has taken these."""
    for each in ids:
        transaction.execute(_SENT, {"of": each, "at": now})


def record_result(
    transaction: Connection, device: DeviceId, command_id: str, result: ResultMessage, now: datetime
) -> bool | None:
    """Store what a device says of its own command: whether that was news; None if the device has no such command."""
    found = find_command(transaction, command_id)
    if found is None or found.device != device:
        return None
    if not found.state.may_become(result.state):
        return False
    values = {
        "state": result.state.value,
        "changed_at": now,
        "output": encode_output(result.output) if result.state.is_final else None,
        "error": result.error,
    }
    transaction.execute(_RESULT, {"of": command_id, **values})
    return True


def encode_output(output: Any) -> str:
    """A command's output as the tables keep it: any JSON value, not only an object."""
    return encode_object({"output": output}).decode()[len('{"output":') : -1]


def has_expired_commands(transaction: Connection, now: datetime) -> bool:
    """Whether `expire_commands` would give up any."""
    return transaction.execute(_OVER, {"now": now, "limit": 1}).first() is not None


def expire_commands(transaction: Connection, now: datetime, limit: int) -> list[str]:
    """Give up what was not accepted in time; their ids."""
    over = [str(each) for (each,) in transaction.execute(_OVER, {"now": now, "limit": limit})]
    for each in over:
        values = {"state": CommandState.EXPIRED.value, "changed_at": now, "output": None, "error": ""}
        transaction.execute(_RESULT, {"of": each, **values})
    return over


def orphan_commands(transaction: Connection, device: DeviceId, now: datetime) -> None:
    """Give up what a device was to be sent that is no more: nobody inherits it."""
    transaction.execute(_ORPHANED, {"of": device, "at": now})
    state.orphan_state(transaction, device)


def next_deadline(transaction: Connection) -> datetime | None:
    """When the next undelivered command is over."""
    moment: datetime | None = transaction.execute(_NEXT_DEADLINE).scalar_one_or_none()
    return moment


def find_presence(transaction: Connection, id: DeviceId) -> PresenceRecord | None:
    """What was last heard of a principal."""
    row = transaction.execute(_PRESENCE, {"id": id}).first()
    return None if row is None else PresenceRecord(*row)


def set_presence(transaction: Connection, id: DeviceId, record: PresenceRecord) -> None:
    """Store what was heard of a principal that is there; while it takes commands, what is queued for it is due."""
    values = {
        "principal": id,
        "online": record.is_online,
        "reason": record.reason,
        "agent": record.agent_version,
        "changed_at": record.changed_at,
        "last_seen": record.last_seen,
        "claimed": record.is_claimed,
        "said": record.said,
        "boot": record.boot,
        "session": record.session,
        "address": record.address,
        "broker": record.broker,
        "changes": record.changes,
    }
    transaction.execute(_SET_PRESENCE, values)
    is_ready = record.is_online and record.is_claimed
    transaction.execute(_CAME_OR_WENT, {"of": id, "is_ready": is_ready})
    state.came_or_went(transaction, id, is_ready=is_ready)


def who_is_online(transaction: Connection) -> dict[DeviceId, tuple[str, int]]:
    """Everybody who is, each with the session that its broker has of it: its boot and number."""
    return {DeviceId(who): (boot, number) for who, boot, number in transaction.execute(_WHO_IS_ONLINE)}


def touch(transaction: Connection, id: DeviceId, now: datetime) -> None:
    """The principal was heard of now."""
    transaction.execute(_SEEN, {"of": id, "at": now})


def _command(row: Row[*tuple[Any, ...]]) -> CommandRecord:
    command, device, epoch, name, args, state, created_at, deadline, changed_at, output, error = row
    return CommandRecord(
        command,
        DeviceId(device),
        epoch,
        name,
        args,
        CommandState(state),
        created_at,
        deadline,
        changed_at,
        output,
        error,
    )
