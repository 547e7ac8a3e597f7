"""Commands as admins give them: into the registry, from where dispatch delivers them. One transaction each."""

from __future__ import annotations

import base64
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from enroll import audit
from enroll.registry import Registry, Transaction, identity, messaging
from enroll.registry.records import CommandRecord, CommandState, PrincipalRecord
from fleet.errors import Denied, InvalidInput, NotFound
from fleet.identity import DeviceId, Role, State
from fleet.messages import MAX_DOWN_BYTES, CommandMessage, InvalidMessage, JsonObject, encode_object

_ID_BYTES: Final = 10


@dataclass(frozen=True, slots=True)
class Order:
    """What devices are to do, and until when they may begin."""

    name: str
    args: JsonObject
    deadline: datetime


@dataclass(frozen=True, slots=True)
class Giver:
    """Who gives commands, when, and where their ids come from."""

    by: str
    now: datetime
    token_bytes: Callable[[int], bytes]


def send(registry: Registry, device: DeviceId, order: Order, giver: Giver) -> CommandRecord:
    """Queue a command to one active device.

    Raises: NotFound, Denied (it may not connect), InvalidInput (it is no device, or the message too large),
    RegistryUnavailable.
    """
    with registry.write() as transaction:
        return give(transaction, device, order, giver)


def give(
    transaction: Transaction, device: DeviceId, order: Order, giver: Giver, job: int | None = None
) -> CommandRecord:
    """As `send`, within its caller's transaction, and for the job of that number. Raises: NotFound, Denied, ..."""
    check_size(device, order, giver)
    found = identity.find_principal(transaction, device)
    if found is None:
        raise NotFound(f"there is no {device}", hint="enroll device list")
    if found.principal.role is not Role.DEVICE:
        raise InvalidInput(f"{device} is of role {found.principal.role}", hint="commands are for devices")
    if found.state is not State.ACTIVE:
        raise Denied(f"{device} is {found.state}", hint=f"enroll device show {device}")
    return _queue(transaction, found, order, giver, job)


def send_all(registry: Registry, devices: Iterable[DeviceId], order: Order, giver: Giver) -> list[CommandRecord]:
    """Queue a command, each with an id of its own, to those of the devices that are active: to all of them, or to none.

    Raises: InvalidInput (the message is too large), RegistryUnavailable.
    """
    queued = []
    with registry.write() as transaction:
        for device in devices:
            check_size(device, order, giver)
            found = identity.find_principal(transaction, device)
            if found is not None and found.principal.role is Role.DEVICE and found.state is State.ACTIVE:
                queued.append(_queue(transaction, found, order, giver))
    return queued


def check_size(device: DeviceId, order: Order, giver: Giver) -> None:
    """What is sent is signed, and an agent reads no more than `MAX_MESSAGE_BYTES`. Raises: InvalidInput."""
    size = len(CommandMessage(device, giver.now, order.deadline, order.args).encode())
    if size > MAX_DOWN_BYTES:
        raise InvalidMessage(f"the message has {size} bytes, the limit is {MAX_DOWN_BYTES}")


def _queue(
    transaction: Transaction, found: PrincipalRecord, order: Order, giver: Giver, job: int | None = None
) -> CommandRecord:
    command = base64.b32encode(giver.token_bytes(_ID_BYTES)).decode().lower()
    text = encode_object(order.args).decode()
    record = CommandRecord(
        command, found.id, found.epoch, order.name, text, CommandState.QUEUED, giver.now, order.deadline, giver.now
    )
    messaging.add_command(transaction, record, job)
    audit.record(
        transaction, giver.now, "command.given", device=found.id, name=order.name, command=command, by=giver.by
    )
    return record


def find(registry: Registry, id: str) -> CommandRecord:
    """The command as it is now. Raises: NotFound."""
    with registry.read() as transaction:
        found = messaging.find_command(transaction, id)
    if found is None:
        raise NotFound(f"there is no command {id[:40]!r}", hint="enroll command list")
    return found


def find_all(registry: Registry, ids: Collection[str]) -> list[CommandRecord]:
    """These commands as they are now, those that there are, in the order they were given."""
    with registry.read() as transaction:
        return messaging.find_commands(transaction, ids)
