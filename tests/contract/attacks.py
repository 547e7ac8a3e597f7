"""How attacks are written: once, as what the attacker sees, and judged by what they are run against.

@attack()
def test_hole_01_...(target: Target) -> bool:
    \"\"\"What the attacker gains.\"\"\"
    ...
    return whether the attacker gained it

Against every engine of ours it must not succeed; against amqtt as it ships it must, or it tests nothing.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, cast

from fleet.limits import Limits
from tests import mqtt
from tests.certificates import Identity, TestFleet
from tests.deadlines import within
from tests.mqtt import Peer

P = ParamSpec("P")


class Target(Protocol):
    """A broker that accepts connections from a fleet's devices `pump-07`, `valve-1` and `meter-3`, and from `admin`."""

    @property
    def is_as_shipped(self) -> bool: ...
    @property
    def fleet(self) -> TestFleet: ...
    @property
    def address(self) -> tuple[str, int]: ...

    def device(self, id: str) -> Identity:
        """A device that may connect."""

    def admin(self) -> Identity:
        """Who may read what every device says, and command every device."""

    def revoke(self, identity: Identity) -> None:
        """Take back the right to connect."""

    def peer(self, identity: Identity | None) -> Peer:
        """A TLS connection as that identity, no CONNECT yet."""

    def session_count(self) -> int:
        """How many clients the broker remembers."""

    def cpu_seconds(self) -> float:
        """What the broker has computed so far."""


_DEFAULTS = Limits()
_LIMITS: dict[Callable[..., object], Limits] = {}


def limits_of(test: Callable[..., object]) -> Limits:
    """The limits that a test wants its target to have."""
    return _LIMITS.get(test, _DEFAULTS)


def attack(
    limits: Limits = _DEFAULTS, *, fails_as_shipped: bool = False
) -> Callable[[Callable[Concatenate[Target, P], bool]], Callable[Concatenate[Target, P], None]]:
    """Make a test of a function that says whether the attacker succeeded.

    `fails_as_shipped` says that amqtt as it ships withstands this one, contrary to what was once seen.
    """

    def decorate(function: Callable[Concatenate[Target, P], bool]) -> Callable[Concatenate[Target, P], None]:
        @wraps(function)
        def judged(target: Target, *args: P.args, **kwargs: P.kwargs) -> None:
            succeeded = function(target, *args, **kwargs)
            if target.is_as_shipped:
                assert succeeded is not fails_as_shipped, "this attack does not show the hole"
            else:
                assert not succeeded, "the attack succeeded"

        _LIMITS[judged] = limits
        return cast("Callable[Concatenate[Target, P], None]", judged)  # pytest names the target

    return decorate


def hello(id: str, **fields: Any) -> bytes:
    """CONNECT of an honest client: its user name, where that counts, is its common name."""
    return mqtt.connect(id, user=id, **fields)


def enter(target: Target, identity: Identity, **fields: Any) -> Peer:
    """A connection whose CONNECT was accepted, whether or not it found a session."""
    peer = target.peer(identity)
    try:
        answer = peer.ask(hello(identity.id, **fields))
        assert answer in (mqtt.ACCEPTED, mqtt.ACCEPTED_PRESENT), answer
    except BaseException:
        peer.socket.close()
        raise
    return peer


def asks(peer: Peer, frame: bytes) -> bytes:
    """The answer to a frame; nothing if the connection ends instead."""
    try:
        return peer.ask(frame)
    except (ConnectionError, ssl.SSLError):
        return b""


def is_admitted(target: Target, identity: Identity | None, frame: bytes) -> bool:
    """Whether a CONNECT is accepted."""
    try:
        with target.peer(identity) as peer:
            return asks(peer, frame) in (mqtt.ACCEPTED, mqtt.ACCEPTED_PRESENT)
    except (ConnectionError, ssl.SSLError):
        return False


def hears(target: Target, peer: Peer, wanted: bytes) -> bool:
    """Whether a frame with `wanted` in it comes.

    An engine of ours has handled what came before a PINGREQ once it answers that; for amqtt there is only waiting.
    """
    peer.socket.settimeout(within(2))
    with contextlib.suppress(ConnectionError, ssl.SSLError, AssertionError):
        peer.send(mqtt.PINGREQ)
        while (frame := peer.receive()) != mqtt.PINGRESP or target.is_as_shipped:
            if wanted in frame:
                return True
    return False


def is_alive(peer: Peer, seconds: float = 1) -> bool:
    """Whether a PINGREQ is answered within that time, whatever else comes."""
    peer.socket.settimeout(within(seconds))
    try:
        peer.send(mqtt.PINGREQ)
        while peer.receive() != mqtt.PINGRESP:
            pass
    except (OSError, AssertionError):
        return False
    return True


def stays_open(peer: Peer, seconds: float) -> bool:
    """Whether the broker leaves the connection open for that long."""
    peer.socket.settimeout(within(seconds))
    try:
        while True:
            peer.receive()
    except AssertionError:
        return True  # nothing came, not even the end
    except OSError:
        return False
