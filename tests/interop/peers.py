"""What every client library does for its user: the scenarios are written against this."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tests.certificates import Identity


@dataclass(frozen=True, slots=True)
class Broker:
    """Where to connect, and by which root the broker is known."""

    host: str
    port: int
    root_file: str


@dataclass(frozen=True, slots=True)
class Will:
    topic: str
    payload: str
    qos: int = 0
    retain: bool = False


@dataclass(frozen=True, slots=True)
class Message:
    """As it was received."""

    topic: str
    payload: str
    qos: int = 0
    retain: bool = False
    dup: bool = False


@dataclass(frozen=True, slots=True)
class Connack:
    """As the library reports it to its user."""

    return_code: int
    session_present: bool = False


class Client(Protocol):
    """One client. Every method returns when the broker has answered. Raises: AssertionError at the deadline."""

    def connect(
        self,
        *,
        client_id: str | None = None,
        clean: bool = True,
        keep_alive: int = 60,
        will: Will | None = None,
        level: int = 4,
        holds_acks: bool = False,
    ) -> Connack:
        """Connect, under the certificate's name unless told another; again after an end too, with an empty inbox.

        With `holds_acks` nothing that is received is acknowledged (MQTT.js then reads no further).
        """

    def subscribe(self, *filters: tuple[str, int]) -> list[int]:
        """The return codes of SUBACK."""

    def unsubscribe(self, *filters: str) -> None: ...

    def publish(self, topic: str, payload: str, qos: int = 0, *, retain: bool = False) -> None:
        """Returns when the exchange of that QoS is complete; at QoS 0 when it was sent."""

    def receive(self) -> Message:
        """The next message, in the order in which they came."""

    def disconnect(self) -> None:
        """Leave with DISCONNECT."""

    def drop(self) -> None:
        """Lose the network: no DISCONNECT."""

    def fall_silent(self) -> None:
        """Send nothing any more, not even PINGREQ, and keep the connection."""

    def close(self) -> None:
        """Free everything; whatever its state."""


class Library(Protocol):
    """Makes clients."""

    def __call__(self, broker: Broker, identity: Identity) -> Client: ...
