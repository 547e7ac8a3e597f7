"""Keepalive with libraries that ping by themselves, and what happens when they no longer do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from broker.engine import Disconnected, Reason
from tests import mqtt
from tests.certificates import Identity
from tests.contract.engines import RunningEngine
from tests.interop.mqttjs import MqttJs, Node
from tests.interop.paho import Paho
from tests.interop.peers import Broker, Client, Message, Will

UP = "devices/pump-07/up"
Own = Callable[[Broker, Identity], Client]


@pytest.fixture(params=["paho", "MQTT.js"])
def own(request: pytest.FixtureRequest) -> Iterator[Own]:
    """Makes a client that can be stopped without stopping another test's."""
    if request.param == "paho":
        yield Paho
        return
    node = Node()
    with node.program:
        yield lambda broker, identity: MqttJs(node, broker, identity)


def test_keepalive(engine: RunningEngine, broker: Broker, pump: Identity, admin: Identity, own: Own) -> None:
    """Pings keep a connection that says nothing else; without them it is cut at 1.5 keepalives, and leaves its will."""
    with closing(Paho(broker, admin)) as operator, closing(own(broker, pump)) as device:
        operator.connect()
        operator.subscribe(("devices/+/up/#", 1))
        device.connect(keep_alive=1, will=Will(f"{UP}/status", "lost", 1))
        with engine.join(engine.device("valve-1"), mqtt.connect("valve-1", keep_alive=1)) as silent:
            assert silent.is_closed()  # one and a half keepalives have passed, and the device had nothing to say
        device.publish(f"{UP}/x", "still here")
        assert Message(f"{UP}/x", "still here") == operator.receive()
        began = time.monotonic()
        device.fall_silent()
        assert Message(f"{UP}/status", "lost", 1) == operator.receive()
        assert 1.4 < time.monotonic() - began
    ended = engine.wait_event(Disconnected, lambda event: event.client.principal == pump.principal)
    assert Reason.KEEPALIVE is ended.reason
