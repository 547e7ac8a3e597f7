"""What one session sends."""

from __future__ import annotations

from broker.engine import Reason, Stats
from broker.engines.amqtt.packets import Connect, Publish
from broker.engines.amqtt.routing import Retained
from broker.engines.amqtt.session import FleetSession
from fleet.directory import Entry
from fleet.identity import DeviceId, Principal, Role, Serial, State
from fleet.limits import Limits

PUMP = DeviceId("pump-07")
ENTRY = Entry(1, Principal(Role.DEVICE, PUMP), State.ACTIVE, 1, frozenset({Serial("aa")}))
LIMITS = Limits()


class Recorded:
    """A link without a connection, whose client reads as fast as it is written to."""

    is_congested = False

    def __init__(self) -> None:
        self.frames: list[bytes] = []

    def send(self, frame: bytes) -> None:
        self.frames.append(frame)

    def send_after(self, commit: int, frame: bytes, *, is_door: bool = False) -> None:
        self.send(frame)

    def end(self, reason: Reason, detail: str = "") -> None:
        """Nothing to close."""


def test_an_identifier_in_use_is_not_used_again() -> None:
    """MQTT-2.3.1-4: after 65,535 messages a PUBACK would end another delivery than its own."""
    retained = Retained(LIMITS)
    session = FleetSession(Connect("pump-07", True, 0, None), PUMP, ENTRY, LIMITS, retained, Stats())
    session.link = link = Recorded()
    message = Publish.of("devices/pump-07/down/x", b"", 1, retain=False)
    held, packet_id = 3, 0
    for _ in range(65_540):
        session.deliver(message, 1, PUMP)
        packet_id = int.from_bytes(link.frames.pop()[-2:], "big")
        if packet_id != held:
            session.acknowledged(packet_id)
        assert 0 < packet_id < 65_536
        assert list(session.deliveries) in ([], [held])
    assert {held} == set(session.deliveries)
    assert 6 == packet_id  # 1 to 65,535, and from 1 again without 3: five more
