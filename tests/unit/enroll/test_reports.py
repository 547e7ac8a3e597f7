"""What dispatch reads out of one message."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enroll.reports import HelloSeen, ResultSeen, StatusSeen, read_report
from fleet.errors import InvalidInput
from fleet.identity import DeviceId
from fleet.messages import Envelope, HelloMessage, Presence, ResultMessage, ResultState, StatusMessage

PUMP = DeviceId("pump-07")
SENT = Envelope(PUMP, datetime(2026, 11, 21, 8, 0, tzinfo=UTC), "boot", 7)


def test_each_channel_gives_its_report() -> None:
    """A status would be taken for a hello, or a result for another command's."""
    status, result = StatusMessage(SENT, Presence.ONLINE), ResultMessage(SENT, ResultState.DONE, [1])
    hello = HelloMessage(SENT, "1.0", "12ab", "1000")
    read = {
        "status": read_report("devices/pump-07/up/status", status.encode(), is_retained=True),
        "hello": read_report("devices/pump-07/up/hello", hello.encode(), is_retained=False),
        "result": read_report("devices/pump-07/up/results/c1", result.encode(), is_retained=False),
    }
    assert StatusSeen(PUMP, status, True) == read["status"]
    assert HelloSeen(PUMP, "1.0", "boot", 7, "12ab", "1000") == read["hello"]
    assert ResultSeen(PUMP, "c1", result) == read["result"]


def test_who_speaks_is_decided_by_the_topic() -> None:
    """A device could speak as another by writing its id."""
    with pytest.raises(InvalidInput, match="the topic says valve-1"):
        read_report("devices/valve-1/up/hello", HelloMessage(SENT).encode(), is_retained=False)


@pytest.mark.fuzz
@given(topic=st.text(max_size=60) | st.sampled_from(["devices/pump-07/up/status", "fleet/notices/a", ""]), data=...)
def test_anything_else_is_refused_as_the_peers_mistake(topic: str, data: bytes) -> None:
    """A message would end dispatch instead of being set aside."""
    with pytest.raises(InvalidInput):
        read_report(topic, data, is_retained=False)
