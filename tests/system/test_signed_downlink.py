"""What a device takes from its broker: real processes, and an operator that commands by hand, as a broker could."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from enroll import authority
from enroll.own_identities import Maker, number_in_use, signing_identity, use
from enroll.registry import Registry
from fleet.config import load
from fleet.identity import DeviceId
from fleet.messages import CommandMessage
from tests import mqtt
from tests.fleets import CRL_URL, DOMAIN
from tests.system.agents import Agent, Application, LiveFleet, Operator, live_fleet, serial_of, status_of
from tests.system.brokers import peer

PUMP = DeviceId("pump-07")


@pytest.fixture(scope="module", name="fleet")
def _fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveFleet]:
    with live_fleet(tmp_path_factory.mktemp("signed"), with_broker=True) as fleet:
        yield fleet


def rotate(fleet: LiveFleet) -> None:
    """The next signing key, in the home of a service that runs: as its renewal makes it."""
    own, config = signing_identity(fleet.home), load(fleet.home.config.read_text())
    number = number_in_use(own) + 1
    with Registry.open(fleet.home.registry) as registry, registry.write() as transaction:
        cas = authority.load(fleet.home, DOMAIN, CRL_URL)
        Maker(transaction, cas, config, "", datetime.now(UTC), secrets.token_bytes).make(own, number)
    use(own, number)


def obeys(fleet: LiveFleet, app: Application, say: str) -> bool:
    """Whether a command of the fleet's reaches the firmware, and its answer the fleet."""
    given = fleet.enroll("send", "pump-07", "echo", f'{{"say":"{say}"}}').stdout.strip()
    order = app.next("command")
    app.say(type="result", command_id=order["command_id"], state="done", output=say)
    return (given, {"say": say}) == (order["command_id"], order["args"])


def test_a_device_obeys_its_fleet_and_nobody_else(fleet: LiveFleet) -> None:
    """Whoever takes a broker over, or an operator's key, commands every device; or a new key needs a restart of all."""
    home, now = fleet.joined("pump-07"), datetime.now(UTC)
    invented = CommandMessage(PUMP, now, now + timedelta(days=365), {"say": "invented"}).encode()
    topic = "devices/pump-07/down/commands/echo/"
    with Agent(home).wait_ready() as agent, Application(home, ("echo",)) as app, Operator(fleet) as operator:
        assert obeys(fleet, app, "first")
        operator.publish(f"{topic}c1", invented)
        agent.wait_for_line("message.refused .*/echo/c1 code=unsigned", stream="stderr")
        signed = operator.signed(f"{topic}c2", invented, now)
        operator.publish(f"{topic}c3", signed)
        agent.wait_for_line("message.refused .*/echo/c3 code=bad-signature", stream="stderr")
        fields = status_of(home)["downlink"]
        assert ("signed", 2, "bad-signature") == (fields["trust"], fields["refused_count"], fields["refused"]["code"])
        rotate(fleet)
        assert obeys(fleet, app, "by the next key")
        assert 2 == status_of(home)["downlink"]["refused_count"]
    with Agent(home).wait_ready() as agent, Operator(fleet) as operator:
        operator.publish(f"{topic}c4", invented)
        agent.wait_for_line("message.refused .*/echo/c4 code=unsigned", stream="stderr")


def test_a_device_renews_and_is_paced_when_its_fleet_asks(fleet: LiveFleet) -> None:
    """A key that may have been read stays in use for weeks, or somebody has to travel to the device."""
    home = fleet.joined("pump-08")
    before = serial_of(home)
    with Agent(home).wait_ready() as agent:
        answer = json.loads(fleet.enroll("device", "renew", "pump-08", "--wait").stdout)
        assert before != serial_of(home) == answer["serial"]
        agent.wait_for_line("renewal.confirmed", stream="stderr")
        paced = fleet.enroll("device", "pace", "--where", "id=pump-08", "--reconnect", "10m", "--wait", "-o", "json")
        assert ["done"] == [each["state"] for each in json.loads(paced.stdout)]


def test_the_signing_key_gets_nobody_into_the_broker(fleet: LiveFleet) -> None:
    """Whoever reads it could connect as somebody, too."""
    with (
        pytest.raises(OSError, match=r"(?i)certificate|reset|closed|pipe"),
        peer(fleet.home, fleet.home.dispatch_signing, fleet.broker_address[1]) as found,
    ):
        found.ask(mqtt.connect("dispatch-signing"))
