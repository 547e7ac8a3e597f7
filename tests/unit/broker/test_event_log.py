"""What stands in the broker's log, and that nobody can fill the disk with it."""

from __future__ import annotations

import logging

import pytest

from broker.engine import Client, Connected, Disconnected, Event, Reason, Refused, Slowed
from broker.event_log import EventLog
from fleet.identity import DeviceId, Principal, Role, Serial

PUMP = Client("pump-07", Principal(Role.DEVICE, DeviceId("pump-07")), Serial("aa"), "192.0.2.7:1")
VALVE = Client("valve-1", Principal(Role.DEVICE, DeviceId("valve-1")), Serial("bb"), "192.0.2.7:2")


@pytest.mark.parametrize(
    "repeated",
    [
        Connected(PUMP, session_present=False),
        Disconnected(PUMP, Reason.TAKEN_OVER),
        Refused("192.0.2.7:1", Reason.HANDSHAKE),
        Slowed(PUMP),
    ],
)
def test_what_one_repeats_is_told_sparsely(repeated: Event, caplog: pytest.LogCaptureFixture) -> None:
    """A device that connects twice a second for ever would fill the disk."""
    caplog.set_level(logging.INFO)
    now = [0.0]
    log = EventLog(lambda: now[0])
    for _ in range(1000):
        log.tell(repeated)
    assert 16 == len(caplog.messages)  # ten, then the 16th, 32nd, 64th, 128th, 256th, 512th
    log.tell(Connected(VALVE, session_present=False))
    assert 17 == len(caplog.messages)
    now[0] = 61.0
    log.tell(repeated)
    assert 18 == len(caplog.messages)
