"""What the engine tells, as lines of the log: one for each connection, refusal, disconnect and denial.

What one peer repeats is told ten times a minute, then the 16th, 32nd, 64th time, with its count: nobody fills the disk.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict
from typing import Final, assert_never

from broker.engine import (
    Client,
    Connected,
    Denied,
    Disconnected,
    Event,
    MessagesLost,
    Refused,
    Restored,
    SessionsExpired,
    Slowed,
    StoreDamaged,
    StoreEvent,
    StoreFailed,
    StoreRecovered,
)
from fleet.logs import event

_log = logging.getLogger("broker")
_WINDOW_SECONDS: Final = 60.0
_TOLD_EACH: Final = 10
_MAX_KINDS: Final = 10_000


class EventLog:
    """Takes events; `monotonic` is in seconds."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._counts: dict[tuple[str, str], int] = {}
        self._since = monotonic()

    def tell(self, happened: Event) -> None:
        """Log one event, if it is not one too many of its kind."""
        match happened:
            case Connected(client, session_present):
                if self._count(client.client_id, "accepted"):
                    _log.info(event("connection.accepted", **_who(client), session_present=session_present))
            case Refused(peer, reason, name, detail):
                if count := self._count(peer.rpartition(":")[0], reason.value):
                    who = {"peer": peer, "name": name, "detail": detail}
                    _log.info(event("connection.refused", reason=reason.value, **who, count=count))
            case Disconnected(client, reason, detail):
                if self._count(client.client_id, reason.value):
                    _log.info(event("connection.ended", **_who(client), reason=reason.value, detail=detail))
            case Denied(client, action, topic, _):
                if count := self._count(client.client_id, "denied"):
                    _log.info(event("action.denied", **_who(client), action=action.value, topic=topic, count=count))
            case Slowed(client):
                if count := self._count(client.client_id, "slowed"):
                    _log.warning(event("client.slowed", **_who(client), count=count))
            case _:
                _tell_of_store(happened)

    def _count(self, who: str, what: str) -> int:
        """How often this happened within the minute; 0 where it is not to be told."""
        now = self._monotonic()
        if now - self._since >= _WINDOW_SECONDS or len(self._counts) >= _MAX_KINDS:
            self._counts.clear()
            self._since = now
        count = self._counts[who, what] = self._counts.get((who, what), 0) + 1
        return count if count <= _TOLD_EACH or count & (count - 1) == 0 else 0


def _tell_of_store(happened: StoreEvent) -> None:
    match happened:
        case StoreFailed(reason):
            _log.error(event("store.failed", reason=reason))
        case StoreRecovered():
            _log.warning(event("store.recovered"))
        case StoreDamaged(kept_at, reason):
            _log.error(event("store.damaged", reason=reason, kept_at=kept_at))
        case MessagesLost(client_id, count):
            _log.error(event("store.messages_lost", client=client_id, count=count))
        case SessionsExpired(count):
            _log.info(event("sessions.expired", count=count))
        case Restored():
            _log.info(event("store.restored", **asdict(happened)))
        case _:
            assert_never(happened)


def _who(client: Client) -> dict[str, object]:
    return {
        "client": client.client_id,
        "principal": str(client.principal),
        "serial": client.serial,
        "peer": client.peer,
    }
