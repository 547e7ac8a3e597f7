"""Clients of MQTT 5, which we do not speak (docs/adr/0004): they are told so as 3.1.1 says, and can fall back.

None of these falls back by itself: each tells its user, who sets the version. MQTT.js gives up until then; paho goes on
trying the version that it was given, unless it is told not to reconnect, as here.
"""

from __future__ import annotations

import pytest

from broker.engine import Connected, Reason, Refused
from tests.certificates import Identity
from tests.contract.engines import RunningEngine
from tests.interop.conftest import Join
from tests.interop.mosquitto import publish
from tests.interop.peers import Broker, Connack

TOLD = {"paho": 132, "MQTT.js": 1}
"""What each shows for CONNACK 0x01: paho as MQTT 5's reason code, MQTT.js the number that came."""


@pytest.mark.parametrize("library", TOLD)
@pytest.mark.parametrize("level", [3, 5])
def test_another_version_is_told_so_and_falls_back(
    engine: RunningEngine, new_client: Join, pump: Identity, admin: Identity, library: str, level: int
) -> None:
    """A client that is refused without a word tries for ever; with the word, its user knows what to set."""
    client = new_client(library, pump)
    told = client.connect(level=level)
    assert Connack(TOLD[library]) == told
    refused = engine.wait_event(Refused)
    assert (Reason.WRONG_VERSION, "pump-07") == (refused.reason, refused.name)
    assert str(level) in refused.detail
    assert Connack(0) == new_client(library, admin).connect()  # time enough to try again, if it did
    assert 1 == sum(isinstance(event, Refused) for event in engine.events)
    assert Connack(0) == client.connect(level=4)
    engine.wait_event(Connected, lambda event: event.client.principal == pump.principal)


def test_mosquitto_of_mqtt_5_is_told_so_and_falls_back(engine: RunningEngine, broker: Broker, pump: Identity) -> None:
    """mosquitto_pub -V mqttv5 says what to type instead."""
    refused = publish(broker, pump, "devices/pump-07/up/x", "-V", "mqttv5", "-q", 1, "-m", "x")
    assert 0 != refused.returncode
    assert "Unsupported Protocol Version" in refused.stderr
    assert "use MQTT v3.x mode" in refused.stderr
    assert Reason.WRONG_VERSION is engine.wait_event(Refused).reason
    publish(broker, pump, "devices/pump-07/up/x", "-V", "mqttv311", "-q", 1, "-m", "x").check()
