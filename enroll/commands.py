"""Commands as admins give them: into the registry, from where dispatch delivers them. One transaction each."""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import datetime
from typing import Final

from enroll import audit
from enroll.registry import Registry, identity, messaging
from enroll.registry.records import CommandRecord, CommandState
from fleet.errors import Denied, InvalidInput, NotFound
from fleet.identity import DeviceId, Role, State
from fleet.messages import CommandMessage, JsonObject, encode_object

_ID_BYTES: Final = 10


def send(
    registry: Registry,
    device: DeviceId,
    name: str,
    args: JsonObject,
    *,
    deadline: datetime,
    by: str,
    now: datetime,
    token_bytes: Callable[[int], bytes],
) -> CommandRecord:
    """Queue a command to one active device.

    Raises: NotFound, Denied (it may not connect), InvalidInput (it is no device, or the message too large),
    RegistryUnavailable.
    """
    CommandMessage(device, now, deadline, args).encode()
    command = base64.b32encode(token_bytes(_ID_BYTES)).decode().lower()
    with registry.write() as transaction:
        found = identity.find_principal(transaction, device)
        if found is None:
            raise NotFound(f"there is no {device}", hint="enroll device list")
        if found.principal.role is not Role.DEVICE:
            raise InvalidInput(f"{device} is of role {found.principal.role}", hint="commands are for devices")
        if found.state is not State.ACTIVE:
            raise Denied(f"{device} is {found.state}", hint=f"enroll device show {device}")
        text = encode_object(args).decode()
        record = CommandRecord(command, device, found.epoch, name, text, CommandState.QUEUED, now, deadline, now)
        messaging.add_command(transaction, record)
        audit.record(transaction, now, "command.given", device=device, name=name, command=command, by=by)
    return record


def find(registry: Registry, id: str) -> CommandRecord:
    """The command as it is now. Raises: NotFound."""
    with registry.read() as transaction:
        found = messaging.find_command(transaction, id)
    if found is None:
        raise NotFound(f"there is no command {id[:40]!r}")
    return found
