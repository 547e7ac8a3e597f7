"""Where dispatch connects to, and when again."""

from __future__ import annotations

import pytest

from enroll.mqtt_client import Endpoint, endpoints
from fleet.errors import InvalidInput


def test_loopback_leads_to_the_broker_but_the_name_is_the_advertised_one() -> None:
    """A gateway that cannot resolve its own name could not reach its own broker, or would not know it from another."""
    assert (
        Endpoint("127.0.0.1", 8883, "gateway.local"),
        Endpoint("::1", 8883, "gateway.local"),
        Endpoint("gateway.local", 8883, "gateway.local"),
    ) == endpoints("mqtts://gateway.local:8883")
    assert [Endpoint("127.0.0.1", 1, "127.0.0.1"), Endpoint("::1", 1, "127.0.0.1")] == list(
        endpoints("mqtts://127.0.0.1:1")
    )


@pytest.mark.parametrize("url", ["mqtt://a:1", "mqtts://a", "mqtts://:1", "mqtts://a:x", "mqtts://[a:1", ""])
def test_a_damaged_address_is_said_to_be_one(url: str) -> None:
    """Dispatch would end with a traceback."""
    with pytest.raises(InvalidInput):
        endpoints(url)
