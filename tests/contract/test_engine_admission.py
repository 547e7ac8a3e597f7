"""Who gets in: a certificate of the devices CA, valid now, whose serial the directory lists for its common name."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from datetime import timedelta

import pytest

from broker.engine import Connected, Disconnected, Reason, Refused
from fleet import pki
from fleet.identity import Role, Server, State
from fleet.limits import Limits
from tests import mqtt
from tests.certificates import Identity, TestFleet, client_context
from tests.contract.engines import RunningEngine
from tests.deadlines import within
from tests.mqtt import Peer

NOT_AUTHORIZED = b"\x20\x02\x00\x05"
ID_REJECTED = b"\x20\x02\x00\x02"
UNAVAILABLE = b"\x20\x02\x00\x03"


def is_refused_by_tls(broker: RunningEngine, context: ssl.SSLContext, id: str = "pump-07") -> bool:
    """Whether no MQTT answer comes: under TLS 1.3 a client learns of its refusal only when it reads."""
    try:
        with Peer(broker.address, context) as peer:
            peer.send(mqtt.connect(id))
            peer.receive()
    except (ConnectionError, ssl.SSLError):
        return True
    return False


def test_an_active_device_gets_in(broker: RunningEngine, pump: Identity) -> None:
    """Nobody would."""
    with broker.join(pump):
        event = broker.wait_event(Connected)
        assert ("pump-07", pump.principal, pump.serial) == (
            event.client.client_id,
            event.client.principal,
            event.client.serial,
        )


def test_without_a_certificate_there_is_no_connection(broker: RunningEngine, pump: Identity) -> None:
    """Anonymous clients would reach MQTT."""
    assert is_refused_by_tls(broker, client_context(broker.fleet.root_file, None))
    assert Reason.HANDSHAKE is broker.wait_event(Refused).reason


def test_a_certificate_of_another_fleet_is_refused(
    broker: RunningEngine, pump: Identity, other_fleet: TestFleet
) -> None:
    """A CA of the same names would be as good as ours."""
    foreign = other_fleet.client(pump.id)
    assert is_refused_by_tls(broker, client_context(broker.fleet.root_file, foreign))
    assert "signature" in (detail := broker.wait_event(Refused).detail) or "issuer" in detail or "self-signed" in detail


@pytest.mark.parametrize(
    ("issued", "words"),
    [(timedelta(hours=-3), "certificate has expired"), (timedelta(hours=3), "certificate is not yet valid")],
)
def test_a_certificate_out_of_its_time_is_refused(broker: RunningEngine, issued: timedelta, words: str) -> None:
    """A certificate would be valid for ever, or before its time."""
    early_or_late = broker.admit(
        broker.fleet.client("pump-07", issued=issued, life=timedelta(hours=1), profile=pki.TEST_CLIENT)
    )
    assert is_refused_by_tls(broker, client_context(broker.fleet.root_file, early_or_late))
    assert words == broker.wait_event(Refused).detail


def test_a_server_certificate_is_no_client(broker: RunningEngine, pump: Identity) -> None:
    """Whoever runs a server could act as a device."""
    server = broker.fleet.server(Server.ENROLL)
    assert is_refused_by_tls(broker, client_context(broker.fleet.root_file, server))
    assert Reason.HANDSHAKE is broker.wait_event(Refused).reason


def test_the_certificate_of_the_ca_is_no_client(broker: RunningEngine) -> None:
    """The CA's key would open every door by itself."""
    authority = broker.admit(broker.fleet.authority_itself())
    assert is_refused_by_tls(broker, client_context(broker.fleet.root_file, authority), "devices")
    broker.wait_event(Refused)


def test_another_ca_under_the_same_root_is_no_issuer_of_clients(broker: RunningEngine) -> None:
    """Whatever the root has signed, for a manufacturer or by mistake, would let devices in."""
    stranger = broker.admit(broker.fleet.client_of_another_ca("pump-07"))
    assert is_refused_by_tls(broker, client_context(broker.fleet.root_file, stranger))
    assert Reason.WRONG_ISSUER is broker.wait_event(Refused).reason


def test_a_device_is_no_ca(broker: RunningEngine, pump: Identity) -> None:
    """One device could make certificates for all others."""
    forged = broker.admit(broker.fleet.signed_by_a_device("valve-1", pump))
    assert is_refused_by_tls(broker, client_context(broker.fleet.root_file, forged), "valve-1")
    assert "invalid CA certificate" == broker.wait_event(Refused).detail


@pytest.mark.parametrize("name", ["Pump-07", "pump/07", "pump 07", "#", "+", "pump-07\n", "ü", "pump_"])
def test_a_common_name_outside_the_grammar_is_refused(broker: RunningEngine, name: str) -> None:
    """A name would end up inside a topic filter (CVE-2017-7650)."""
    named = broker.fleet.named(name)
    assert is_refused_by_tls(broker, client_context(broker.fleet.root_file, named), name)
    assert Reason.BAD_NAME is broker.wait_event(Refused).reason


def test_an_unknown_serial_is_refused_and_asked_for_once(broker: RunningEngine, pump: Identity) -> None:
    """A certificate that the registry does not know (a stolen CA key) would be good."""
    forged = broker.fleet.client(pump.id)
    with broker.peer(forged) as peer:
        assert NOT_AUTHORIZED == peer.ask(mqtt.connect(pump.id))
        assert peer.is_closed()
    assert [forged.serial] == broker.service.asked
    assert Reason.NOT_ADMITTED is broker.wait_event(Refused).reason


def test_a_certificate_issued_a_moment_ago_gets_in(broker: RunningEngine) -> None:
    """A device would have to wait for the feed."""
    young = broker.fleet.client("pump-08")
    broker.service.entries[young.serial] = broker.entry(young)
    with broker.join(young) as peer:
        peer.sync()


def test_a_look_up_that_found_nothing_is_not_remembered(broker: RunningEngine) -> None:
    """A device that was a moment too early, or came while the service was away, would stay out."""
    young = broker.fleet.client("pump-08")
    with broker.peer(young) as early:
        assert NOT_AUTHORIZED == early.ask(mqtt.connect(young.id))
    broker.service.entries[young.serial] = broker.entry(young)
    with broker.join(young) as peer:
        peer.sync()


def test_what_comes_during_a_look_up_is_handled_after_it(broker: RunningEngine) -> None:
    """A client that does not wait for CONNACK (3.1.4) would lose its first packets."""
    young = broker.fleet.client("pump-08")
    broker.service.entries[young.serial] = broker.entry(young)
    broker.call(broker.service.gate.clear)
    with broker.peer(young) as peer:
        peer.send(mqtt.connect(young.id), mqtt.PINGREQ)
        broker.wait_asked(young.serial)
        peer.send(mqtt.publish("devices/pump-08/up/x", b"1", 1, 7))
        broker.call(broker.service.gate.set)
        assert [mqtt.ACCEPTED, mqtt.PINGRESP, mqtt.puback(7)] == [peer.receive() for _ in range(3)]


def test_revoked_during_the_look_up_is_refused(broker: RunningEngine) -> None:
    """Whoever is revoked between question and answer would slip in."""
    young = broker.fleet.client("pump-08")
    broker.service.entries[young.serial] = broker.entry(young)
    broker.call(broker.service.gate.clear)
    with broker.peer(young) as peer:
        peer.send(mqtt.connect(young.id))
        broker.wait_asked(young.serial)
        broker.apply(broker.entry(young, State.REVOKED))
        broker.call(broker.service.gate.set)
        assert NOT_AUTHORIZED == peer.receive()


def test_a_client_that_leaves_during_the_look_up_leaves_nothing(broker: RunningEngine) -> None:
    """A session would live on without a connection."""
    young = broker.fleet.client("pump-08")
    broker.service.entries[young.serial] = broker.entry(young)
    broker.call(broker.service.gate.clear)
    with broker.peer(young) as peer:
        peer.send(mqtt.connect(young.id))
        broker.wait_asked(young.serial)
    broker.call(broker.service.gate.set)
    broker.wait_event(Disconnected)
    assert 0 == broker.call(broker.engine.stats).sessions


@pytest.mark.parametrize("state", [State.SUSPENDED, State.REVOKED, State.REMOVED])
def test_who_is_not_active_stays_out(broker: RunningEngine, pump: Identity, state: State) -> None:
    """A revocation would hold only for live connections."""
    broker.set_state(pump, state)
    with broker.peer(pump) as peer:
        assert NOT_AUTHORIZED == peer.ask(mqtt.connect(pump.id))
        assert peer.is_closed()


def test_a_superseded_serial_stays_out(broker: RunningEngine, pump: Identity) -> None:
    """An old certificate would be good until it expires."""
    broker.admit(broker.fleet.client(pump.id))
    with broker.peer(pump) as peer:
        assert NOT_AUTHORIZED == peer.ask(mqtt.connect(pump.id))


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize(
    "client_id", ["valve-1", "pump-07:x", "pump-0", "pump-077", "PUMP-07", "pump-07 ", "valve-1:x"]
)
def test_a_client_id_that_is_not_the_common_name_is_refused(
    broker: RunningEngine, pump: Identity, valve: Identity, client_id: str, clean: bool
) -> None:
    """A device would take another's session, its queue, and kick it out (hole 1)."""
    with broker.join(valve, mqtt.connect(valve.id, clean=False)) as victim:
        victim.ask(mqtt.subscribe(("devices/valve-1/down/#", 1)))
        with broker.peer(pump) as peer:
            assert ID_REJECTED == peer.ask(mqtt.connect(client_id, clean=clean))
            assert peer.is_closed()
        victim.sync()
        assert 1 == broker.call(broker.engine.stats).subscriptions
    assert Reason.FOREIGN_CLIENT_ID is broker.wait_event(Refused).reason


@pytest.mark.parametrize(("role", "id"), [(Role.OPERATOR, "admin"), (Role.SERVICE, "historian")])
def test_operators_and_services_may_have_several_connections(broker: RunningEngine, role: Role, id: str) -> None:
    """A person with a second window would end the first."""
    identity = broker.admit(broker.fleet.client(id, role))
    with broker.join(identity) as first, broker.join(identity, mqtt.connect(f"{id}:window-2")) as second:
        first.sync()
        second.sync()


@pytest.mark.parametrize("client_id", ["admin:", "admin:" + "x" * 128])
def test_a_suffix_is_neither_empty_nor_endless(broker: RunningEngine, operator: Identity, client_id: str) -> None:
    """A client id would be a place to keep things."""
    with broker.peer(operator) as peer:
        assert ID_REJECTED == peer.ask(mqtt.connect(client_id))


def test_with_a_stale_directory_devices_go_on_and_operators_do_not(
    broker: RunningEngine, pump: Identity, operator: Identity
) -> None:
    """Whoever cuts the broker off from the service could use a stolen operator in peace."""
    broker.is_fresh = False
    with broker.join(pump) as device, broker.peer(operator) as admin:
        assert UNAVAILABLE == admin.ask(mqtt.connect("admin"))
        device.sync()
    assert Reason.STALE_DIRECTORY is broker.wait_event(Refused).reason


def test_a_principal_has_a_bounded_number_of_connections(
    limited: Callable[[Limits], RunningEngine], fleet: TestFleet
) -> None:
    """One stolen operator identity would use up the broker."""
    broker = limited(Limits(sessions_per_principal=2))
    admin = broker.admit(fleet.client("admin", Role.OPERATOR))
    with broker.join(admin, mqtt.connect("admin:1")) as first, broker.join(admin, mqtt.connect("admin:2")):
        with broker.peer(admin) as third:
            assert UNAVAILABLE == third.ask(mqtt.connect("admin:3"))
        first.sync()
        with broker.join(admin, mqtt.connect("admin:1")) as again:
            again.sync()


def test_an_empty_client_id_is_given_the_common_name(broker: RunningEngine, pump: Identity) -> None:
    """3.1.3.1 lets a server name a clean session; any other name would not be the device's."""
    with broker.join(pump, mqtt.connect("")):
        assert "pump-07" == broker.wait_event(Connected).client.client_id


def test_an_empty_client_id_needs_a_clean_session(broker: RunningEngine, pump: Identity) -> None:
    """MQTT-3.1.3-8: return code 2, and the connection is closed."""
    with broker.peer(pump) as peer:
        assert ID_REJECTED == peer.ask(mqtt.connect("", clean=False))
        assert peer.is_closed()


def test_a_refused_connect_leaves_the_victims_state_alone(
    broker: RunningEngine, pump: Identity, valve: Identity
) -> None:
    """A refused CONNECT would delete subscriptions or replace the will (hole 2)."""
    will = ("devices/valve-1/up/status", b"gone", 1, True)
    with broker.join(valve, mqtt.connect(valve.id, clean=False, will=will)) as victim:
        victim.ask(mqtt.subscribe(("devices/valve-1/down/#", 1)))
    broker.wait_event(Disconnected)
    forged = broker.fleet.client(valve.id)
    for intruder, refusal in ((pump, ID_REJECTED), (forged, NOT_AUTHORIZED)):
        with broker.peer(intruder) as peer:
            assert refusal == peer.ask(mqtt.connect(valve.id, clean=True))
    with broker.peer(valve) as peer:
        assert mqtt.ACCEPTED_PRESENT == peer.ask(mqtt.connect(valve.id, clean=False))
    assert 1 == broker.call(broker.engine.stats).sessions


@pytest.mark.parametrize("clean", [True, False])
def test_a_clone_that_is_not_listed_does_not_end_the_owners_connection(
    broker: RunningEngine, pump: Identity, clean: bool
) -> None:
    """Whoever has an old or forged certificate of a device could keep it offline."""
    with broker.join(pump, mqtt.connect(pump.id, clean=False)) as owner:
        owner.ask(mqtt.subscribe(("devices/pump-07/down/#", 1)))
        with broker.peer(broker.fleet.client(pump.id)) as clone:
            assert NOT_AUTHORIZED == clone.ask(mqtt.connect(pump.id, clean=clean))
        owner.sync()
        assert 1 == broker.call(broker.engine.stats).subscriptions


def test_the_owner_takes_over_with_its_new_certificate(broker: RunningEngine, pump: Identity) -> None:
    """A renewal would cost the session, or wait for the old connection to die."""
    renewed = broker.fleet.client(pump.id)
    entry = broker.entry(pump)
    both = frozenset({pump.serial, renewed.serial})
    broker.apply(type(entry)(entry.seq, entry.principal, entry.state, entry.epoch, both))
    with broker.join(pump, mqtt.connect(pump.id, clean=False)) as old, broker.peer(renewed) as new:
        assert mqtt.ACCEPTED_PRESENT == new.ask(mqtt.connect(pump.id, clean=False))
        assert old.is_closed()
        (client,) = broker.clients()
        assert renewed.serial == client.serial
    assert Reason.TAKEN_OVER is broker.wait_event(Disconnected).reason


def test_a_connection_in_the_clear_is_closed(broker: RunningEngine, pump: Identity) -> None:
    """Something would be said without TLS."""
    with socket.create_connection(broker.address, timeout=within(10)) as plain:
        plain.sendall(mqtt.connect(pump.id))
        answer = b"".join(iter(lambda: plain.recv(1024), b""))
    assert not answer or answer[0] == 0x15  # at most a TLS alert
    assert Reason.HANDSHAKE is broker.wait_event(Refused).reason


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated:DeprecationWarning")
def test_tls_1_1_is_refused(broker: RunningEngine, pump: Identity) -> None:
    """A version with known attacks would be good enough."""
    context = client_context(broker.fleet.root_file, pump)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    assert is_refused_by_tls(broker, context)


def test_a_tls_1_3_session_is_not_offered_for_resumption(broker: RunningEngine, pump: Identity) -> None:
    """A ticket would be a way in without showing a certificate (hole 5)."""
    context = client_context(broker.fleet.root_file, pump)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    with Peer(broker.address, context) as peer:
        assert mqtt.ACCEPTED == peer.ask(mqtt.connect(pump.id))
        assert peer.socket.session is None or not peer.socket.session.has_ticket


def test_a_tls_1_2_session_that_is_resumed_is_closed(broker: RunningEngine, pump: Identity) -> None:
    """A resumed session shows no certificate: whoever was revoked would be back (hole 5)."""
    context = client_context(broker.fleet.root_file, pump)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with Peer(broker.address, context) as peer:
        assert mqtt.ACCEPTED == peer.ask(mqtt.connect(pump.id))
        session = peer.socket.session
    assert session is not None
    assert not session.has_ticket
    raw = socket.create_connection(broker.address, timeout=within(10))
    with context.wrap_socket(raw, server_hostname="127.0.0.1", session=session) as again:
        assert again.session_reused
        assert b"" == again.recv(1)
    assert Reason.RESUMED is broker.wait_event(Refused).reason


def test_a_certificate_that_runs_out_ends_its_session(broker: RunningEngine) -> None:
    """A session would outlive its certificate."""
    short = broker.fleet.client(
        "pump-07", issued=timedelta(seconds=-28), life=timedelta(seconds=30), profile=pki.TEST_CLIENT
    )
    with broker.join(broker.admit(short)) as peer:
        assert peer.is_closed()
    assert Reason.EXPIRED is broker.wait_event(Disconnected).reason


def test_trust_is_replaced_without_ending_connections(
    broker: RunningEngine, pump: Identity, other_fleet: TestFleet
) -> None:
    """New certificates would need a restart, or old trust would go on."""
    with broker.join(pump) as before:
        broker.await_(broker.engine.replace_trust(broker.new_trust(other_fleet)))
        before.sync()
        newcomer = broker.admit(other_fleet.client("valve-9"))
        with Peer(broker.address, client_context(other_fleet.root_file, newcomer)) as peer:
            assert mqtt.ACCEPTED == peer.ask(mqtt.connect("valve-9"))
        assert is_refused_by_tls(broker, client_context(other_fleet.root_file, pump))


def test_a_broker_certificate_of_a_foreign_kind_is_not_what_clients_see(broker: RunningEngine, pump: Identity) -> None:
    """A device could not tell its broker from any other server of the fleet."""
    with broker.join(pump) as peer:
        names = (peer.socket.getpeercert() or {}).get("subjectAltName", ())
    assert ("URI", "spiffe://acme.example/server/broker") in names
