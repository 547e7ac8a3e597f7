"""What the program around an engine relies on: readiness, new trust, disconnecting, events, clients, counters."""

from __future__ import annotations

import select
import ssl

import pytest

from broker.engine import Connected, Denied, Disconnected, Reason, Refused
from broker.trust import ClientTrust, load_client_trust
from fleet.errors import FleetError, Unreachable
from fleet.identity import Role, Server
from fleet.policy import Action
from tests import mqtt
from tests.certificates import Identity, TestFleet, client_context
from tests.contract.engines import RunningEngine, now
from tests.deadlines import within
from tests.mqtt import Peer

UP = "devices/pump-07/up/x"


def canary(fleet: TestFleet, identity: Identity) -> ClientTrust:
    """What the broker connects to itself with."""
    return load_client_trust(fleet.trust_file, identity.files, Server.BROKER, now(), checks_host=False)


@pytest.fixture
def own(broker: RunningEngine) -> Identity:
    """The broker's own identity, listed."""
    return broker.admit(broker.fleet.client("broker", Role.BROKER))


@pytest.fixture
def revoked(broker: RunningEngine) -> Identity:
    """Another of the broker's own, that the directory does not list."""
    return broker.fleet.client("broker", Role.BROKER)


def wait_ready(broker: RunningEngine, good: ClientTrust, bad: ClientTrust | None) -> None:
    broker.await_(broker.engine.wait_ready(good, bad))


def test_it_is_ready_when_the_good_one_gets_in_and_the_revoked_one_does_not(
    broker: RunningEngine, own: Identity, revoked: Identity
) -> None:
    """Readiness would be said of a listener that nobody has tried."""
    wait_ready(broker, canary(broker.fleet, own), canary(broker.fleet, revoked))
    assert own.serial == broker.wait_event(Connected).client.serial
    refused = broker.wait_event(Refused)
    assert (Reason.NOT_ADMITTED, "broker") == (refused.reason, refused.name)
    broker.wait_event(Disconnected)
    assert () == broker.clients()


def test_it_is_ready_without_an_identity_that_is_revoked(broker: RunningEngine, own: Identity) -> None:
    """A home made by an earlier version could not be served."""
    wait_ready(broker, canary(broker.fleet, own), None)


def test_it_is_not_ready_while_the_good_one_is_kept_out(broker: RunningEngine, revoked: Identity) -> None:
    """A broker that admits nobody would be said to be ready."""
    with pytest.raises(FleetError, match="does not admit its own client broker: return code 5"):
        wait_ready(broker, canary(broker.fleet, revoked), None)


def test_it_is_not_ready_while_a_revoked_one_gets_in(broker: RunningEngine, own: Identity, revoked: Identity) -> None:
    """A broker that keeps nobody out would be said to be ready."""
    entry = broker.entry(own)
    broker.apply(type(entry)(entry.seq, entry.principal, entry.state, 1, frozenset({own.serial, revoked.serial})))
    with pytest.raises(FleetError, match="admits a client of its own that is revoked"):
        wait_ready(broker, canary(broker.fleet, own), canary(broker.fleet, revoked))


def test_it_is_not_ready_where_the_canary_fails_in_tls(
    broker: RunningEngine, own: Identity, other_fleet: TestFleet
) -> None:
    """That nothing was proved would be taken for proof: of the good one, and of the revoked one."""
    foreign = canary(other_fleet, other_fleet.client("broker", Role.BROKER))
    with pytest.raises(Unreachable):
        wait_ready(broker, foreign, None)
    with pytest.raises(Unreachable):
        wait_ready(broker, canary(broker.fleet, own), foreign)


def test_new_trust_holds_for_the_next_connection_and_can_be_taken_back(
    broker: RunningEngine, pump: Identity, other_fleet: TestFleet
) -> None:
    """A reload whose canary fails could not be undone, or would cost connections."""
    with broker.join(pump) as before:
        broker.await_(broker.engine.replace_trust(broker.new_trust(other_fleet)))
        with pytest.raises(ssl.SSLError), broker.peer(pump):
            pass  # it shows the other fleet's server certificate
        broker.await_(broker.engine.replace_trust(broker.trust))
        before.sync()
        with broker.join(broker.device("valve-1")) as after:
            after.sync()


def test_new_trust_is_not_got_around_by_an_old_tls_session(
    broker: RunningEngine, pump: Identity, other_fleet: TestFleet
) -> None:
    """A client of the CA that is no longer trusted would resume what it began under the old one."""
    context = client_context(broker.fleet.root_file, pump)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # the attacker does not care who answers
    with Peer(broker.address, context) as peer:
        assert mqtt.ACCEPTED == peer.ask(mqtt.connect(pump.id))
        session = peer.socket.session
    broker.await_(broker.engine.replace_trust(broker.new_trust(other_fleet)))
    with pytest.raises((ConnectionError, ssl.SSLError)), Peer(broker.address, context, session) as again:
        again.ask(mqtt.connect(pump.id))


def test_the_life_of_a_connection_is_told_once_and_in_order(broker: RunningEngine, pump: Identity) -> None:
    """Logs and presence would have gaps, or say things twice."""
    with broker.join(pump) as peer:
        peer.send(mqtt.publish("devices/valve-1/up/x", b"x"))
        peer.ask(mqtt.subscribe(("#", 0)))
        (client,) = broker.clients()
        peer.send(mqtt.DISCONNECT)
        assert peer.is_closed()
    broker.wait_event(Disconnected)
    assert ("pump-07", pump.principal, pump.serial) == (client.client_id, client.principal, client.serial)
    expected = [
        Connected(client, session_present=False),
        Denied(client, Action.PUBLISH, "devices/valve-1/up/x", 1),
        Denied(client, Action.SUBSCRIBE, "#", 2),
        Disconnected(client, Reason.DISCONNECTED),
    ]
    assert expected == broker.events


def test_a_refusal_says_who_where_and_why(broker: RunningEngine, pump: Identity, valve: Identity) -> None:
    """An operator would not know whom to look at."""
    with broker.peer(pump) as peer:
        peer.ask(mqtt.connect(valve.id))
        host, port = peer.socket.getsockname()
    refused = broker.wait_event(Refused)
    assert (f"{host}:{port}", Reason.FOREIGN_CLIENT_ID, "pump-07", "valve-1") == (
        refused.peer,
        refused.reason,
        refused.name,
        refused.detail,
    )


def test_clients_are_those_who_are_connected(broker: RunningEngine, pump: Identity, operator: Identity) -> None:
    """`enroll status` would list the absent, or not the present."""
    with broker.join(pump, mqtt.connect(pump.id, clean=False)):
        with broker.join(operator), broker.join(operator, mqtt.connect("admin:2")):
            found = {(client.client_id, client.principal) for client in broker.clients()}
            assert {
                ("pump-07", pump.principal),
                ("admin", operator.principal),
                ("admin:2", operator.principal),
            } == found
        broker.wait_event(Disconnected, lambda event: event.client.client_id == "admin")
        broker.wait_event(Disconnected, lambda event: event.client.client_id == "admin:2")
        assert ["pump-07"] == [client.client_id for client in broker.clients()]


def test_the_counters_count(broker: RunningEngine, pump: Identity, operator: Identity) -> None:
    """Whoever watches the broker would be misled."""
    with broker.join(operator) as reader:
        reader.ask(mqtt.subscribe(("devices/+/up/#", 0)))
        with broker.join(pump, mqtt.connect(pump.id, clean=False)) as peer:
            peer.ask(mqtt.subscribe(("devices/pump-07/down/#", 1)))
            peer.send(mqtt.publish(UP, b"1"))
            peer.ask(mqtt.publish(UP, b"2", 1, retain=True))
            peer.send(mqtt.publish("devices/valve-1/up/x", b"denied"))
            peer.sync()
            assert [b"1", b"2"] == [reader.receive()[-1:] for _ in range(2)]
            stats = broker.call(broker.engine.stats)
            assert (2, 2, 2, 1) == (stats.connections, stats.sessions, stats.subscriptions, stats.retained)
            assert (3, 2, 0) == (stats.messages_received, stats.messages_sent, stats.messages_dropped)
            assert 1 == stats.denied
        broker.wait_event(Disconnected)
        stats = broker.call(broker.engine.stats)
        assert (1, 2, 2) == (stats.connections, stats.sessions, stats.subscriptions)


def test_a_stale_directory_ends_operators_and_not_devices(
    broker: RunningEngine, pump: Identity, operator: Identity
) -> None:
    """Whoever cut the broker off from the service would keep the operator that was connected already."""
    with broker.join(pump) as device, broker.join(operator, mqtt.connect("admin", keep_alive=2)) as admin:
        broker.is_fresh = False
        select.select([admin.socket], [], [], 1.0)  # a part of its keepalive, on any machine
        admin.socket.settimeout(within(10))
        admin.sync()  # so that it is not for its keepalive that it is ended
        assert admin.is_closed()
        device.sync()
    assert Reason.STALE_DIRECTORY is broker.wait_event(Disconnected).reason
