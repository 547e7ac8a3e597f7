"""Whether a CONNECT is let in, and as which client id: a pure decision, before any state of that id is touched."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from broker.engine import Reason
from broker.engines.amqtt.identity import PeerIdentity
from broker.engines.amqtt.packets import Connect
from fleet.directory import Entry
from fleet.identity import DeviceId, Role
from fleet.policy import Action, Grants, Policy

# 3.2.2.3: return codes of CONNACK.
ACCEPTED: Final = 0
WRONG_LEVEL: Final = 1
ID_REJECTED: Final = 2
UNAVAILABLE: Final = 3
NOT_AUTHORIZED: Final = 5

_MAX_CLIENT_ID_CHARS: Final = 128
_BEYOND_ONE_DEVICE: Final = frozenset({Role.OPERATOR, Role.SERVICE})


@dataclass(frozen=True, slots=True)
class Admitted:
    """Let in."""

    client_id: str
    entry: Entry
    grants: Grants


@dataclass(frozen=True, slots=True)
class Rejected:
    """Answered with a return code, then closed."""

    return_code: int
    reason: Reason
    detail: str = ""


def decide(
    connect: Connect,
    peer: PeerIdentity,
    entry: Entry | None,
    policy: Policy,
    *,
    is_fresh: bool,
    has_session: Callable[[str], bool] = lambda client_id: False,
) -> Admitted | Rejected:
    """Decide with the directory's `entry` of the certificate's common name, and whether the directory is fresh.

    `has_session` tells which client ids are in use: one that gives itself no name is given another.
    """
    if entry is None or entry.principal.id != peer.device or not entry.admits(peer.serial):
        return Rejected(NOT_AUTHORIZED, Reason.NOT_ADMITTED, f"serial {peer.serial}")
    if not is_fresh and needs_fresh_directory(entry.principal.role):
        return Rejected(UNAVAILABLE, Reason.STALE_DIRECTORY)
    if not connect.client_id and not connect.clean_session:
        return Rejected(ID_REJECTED, Reason.NO_CLIENT_ID)  # MQTT-3.1.3-8
    client_id = connect.client_id or _unused_name(peer.device, entry.principal.role, has_session)
    if not _is_own(client_id, peer.device, entry.principal.role):
        # MQTT-3.1.3-9
        return Rejected(ID_REJECTED, Reason.FOREIGN_CLIENT_ID, client_id[:_MAX_CLIENT_ID_CHARS])
    grants = policy.grants(entry.principal)
    if connect.will is not None and not grants.decide(Action.PUBLISH, connect.will.topic).allowed:
        return Rejected(NOT_AUTHORIZED, Reason.WILL_DENIED, connect.will.topic)
    return Admitted(client_id, entry, grants)


def needs_fresh_directory(role: Role) -> bool:
    """Whether a revocation that has not reached us would let someone command: devices go on, these do not."""
    return role in _BEYOND_ONE_DEVICE


def _unused_name(device: DeviceId, role: Role, has_session: Callable[[str], bool]) -> str:
    """The name of a client that gave none (MQTT-3.1.3-6): unique for those with several connections.

    A device has one, and its certificate makes that unique: a second connection takes over.
    """
    if role not in _BEYOND_ONE_DEVICE or not has_session(device):
        return device
    return next(name for n in itertools.count(2) if not has_session(name := f"{device}:{n}"))


def _is_own(client_id: str, device: DeviceId, role: Role) -> bool:
    """The common name, or for those with several connections the common name and a suffix."""
    if client_id == device:
        return True
    has_suffix = client_id.startswith(f"{device}:") and len(device) + 1 < len(client_id) <= _MAX_CLIENT_ID_CHARS
    return has_suffix and role in _BEYOND_ONE_DEVICE
