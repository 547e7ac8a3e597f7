"""Holes 1 to 5 of amqtt as it ships (DESIGN section 6): who a client is, and what it leaves behind or finds.

Each attack succeeds against amqtt 0.12.1 with its own TLS listener and plug-ins, and against no engine of ours.
"""

from __future__ import annotations

import socket
import ssl

import pytest

from tests import mqtt
from tests.certificates import client_context
from tests.contract.attacks import Target, asks, attack, enter, hears, hello, is_admitted, is_alive
from tests.deadlines import within
from tests.mqtt import Peer

VALVES_STATUS = "devices/valve-1/up/status"
VALVES_DOWN = "devices/valve-1/down/state"


def leave_session(target: Target, **fields: object) -> None:
    """The victim was here, with a subscription, and is gone for now."""
    with enter(target, target.device("valve-1"), clean=False, **fields) as victim:
        assert mqtt.suback(1) == victim.ask(mqtt.subscribe(("devices/valve-1/down/#", 1)))
        victim.send(mqtt.DISCONNECT)
        assert victim.is_closed()


@attack()
def test_hole_01_another_certificate_takes_over_a_session_and_speaks_as_its_owner(target: Target) -> bool:
    """Certificate A with client id B, clean session off, is checked against B's certificate."""
    leave_session(target)
    with enter(target, target.admin()) as reader, target.peer(target.device("pump-07")) as attacker:
        reader.ask(mqtt.subscribe(("devices/+/up/#", 0)))
        if asks(attacker, hello("valve-1", clean=False)) != mqtt.ACCEPTED_PRESENT:
            return False
        attacker.send(mqtt.publish(VALVES_STATUS, b"forged"))
        return hears(target, reader, b"forged")


@attack()
def test_hole_01_another_certificate_reads_the_owners_queue(target: Target) -> bool:
    """What waits for B is delivered to A."""
    leave_session(target)
    with enter(target, target.admin()) as sender, target.peer(target.device("pump-07")) as attacker:
        assert mqtt.puback(1) == sender.ask(mqtt.publish(VALVES_DOWN, b"secret", 1))
        if asks(attacker, hello("valve-1", clean=False)) != mqtt.ACCEPTED_PRESENT:
            return False
        return hears(target, attacker, b"secret")


@attack()
def test_hole_01_another_certificate_kicks_the_owner(target: Target) -> bool:
    """B is cut off by whoever claims its client id."""
    with enter(target, target.device("valve-1"), clean=False) as owner:
        with target.peer(target.device("pump-07")) as attacker:
            asks(attacker, hello("valve-1", clean=False))
        return not is_alive(owner)


@attack()
def test_hole_02_a_refused_connect_deletes_the_owners_subscriptions(target: Target) -> bool:
    """With clean session on, B's session is deleted before A is refused."""
    leave_session(target)
    assert not is_admitted(target, target.device("pump-07"), hello("valve-1", clean=True))
    with target.peer(target.device("valve-1")) as owner, enter(target, target.admin()) as sender:
        owner.send(hello("valve-1", clean=False))
        is_session_present = owner.receive() == mqtt.ACCEPTED_PRESENT
        sender.send(mqtt.publish(VALVES_DOWN, b"command"))
        sender.sync()
        return not is_session_present and not hears(target, owner, b"command")


@attack()
def test_hole_02_a_connect_with_a_foreign_id_replaces_the_owners_will(target: Target) -> bool:
    """B's will is overwritten before anything is checked (and by hole 1 it is not even refused)."""
    with enter(target, target.admin()) as reader:
        reader.ask(mqtt.subscribe(("devices/+/up/#", 0)))
        with enter(target, target.device("valve-1"), clean=False, will=(VALVES_STATUS, b"lost", 0, False)):
            forged = hello("valve-1", clean=False, will=(VALVES_STATUS, b"all is well", 0, False))
            is_admitted(target, target.device("pump-07"), forged)
        return hears(target, reader, b"all is well")


@attack()
def test_hole_02_a_refused_connect_leaks_a_session(target: Target) -> bool:
    """Every refusal costs the broker a session that nothing ever removes (345 KB each)."""
    attacker = target.device("pump-07")
    for n in range(5):
        assert not is_admitted(target, attacker, hello(f"nobody-{n}"))
    return target.session_count() >= 5


@attack()
@pytest.mark.parametrize(
    "topic",
    [VALVES_STATUS, "devices/valve-1/down/commands/reboot/1", "$SYS/broker/version"],
    ids=["up", "down", "$SYS"],
)
def test_hole_03_a_will_speaks_where_its_owner_may_not(target: Target, topic: str) -> bool:
    """Nobody asks whether a client may publish its will."""
    attacker = target.device("pump-07")
    with enter(target, target.admin()) as reader:
        reader.ask(mqtt.subscribe((topic, 0)))
        is_admitted(target, attacker, hello(attacker.id, will=(topic, b"forged", 0, False)))
        return hears(target, reader, b"forged")


@attack()
def test_hole_03_a_will_retains_where_its_owner_may_not(target: Target) -> bool:
    """A forged last word stays for whoever comes later."""
    attacker = target.device("pump-07")
    with enter(target, target.admin()) as reader:
        reader.ask(mqtt.subscribe((VALVES_STATUS, 0)))
        is_admitted(target, attacker, hello(attacker.id, will=(VALVES_STATUS, b"forged", 1, True)))
        if not hears(target, reader, b"forged"):
            return False
    with enter(target, target.admin()) as later:
        later.ask(mqtt.subscribe((VALVES_STATUS, 0)))
        return hears(target, later, b"forged")


@attack()
def test_hole_03_a_will_with_a_wildcard_is_taken(target: Target) -> bool:
    """`#` is no topic that a will could be published to, but CONNECT is accepted with it."""
    attacker = target.device("pump-07")
    return is_admitted(target, attacker, hello(attacker.id, will=("#", b"forged", 0, False)))


@attack()
def test_hole_04_retained_messages_go_to_whoever_connects(target: Target) -> bool:
    """What anybody's filter matches is sent to a client that subscribed to nothing."""
    with enter(target, target.admin()) as reader, enter(target, target.device("valve-1")) as victim:
        reader.ask(mqtt.subscribe(("devices/+/up/#", 1)))
        assert mqtt.puback(1) == victim.ask(mqtt.publish(VALVES_STATUS, b"secret", 1, retain=True))
        assert hears(target, reader, b"secret")
        with enter(target, target.device("pump-07")) as attacker:
            return hears(target, attacker, b"secret")


@attack()
def test_hole_05_tls_needs_no_certificate(target: Target) -> bool:
    """CERT_OPTIONAL: anybody reaches the MQTT parser, and is answered."""
    try:
        with target.peer(None) as attacker:
            return asks(attacker, hello("pump-07")) != b""
    except (ConnectionError, ssl.SSLError):
        return False


@attack()
def test_hole_05_without_a_certificate_a_client_takes_over_a_session(target: Target) -> bool:
    """With hole 1, no certificate at all is enough to be any device that has a session."""
    leave_session(target)
    try:
        return is_admitted(target, None, hello("valve-1", clean=False))
    except (ConnectionError, ssl.SSLError):
        return False


@attack(fails_as_shipped=True)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated:DeprecationWarning")
def test_hole_05_tls_1_1_is_spoken(target: Target) -> bool:
    """amqtt sets no minimum version; since Python 3.10 the default is TLS 1.2, so this one is closed by its host."""
    context = client_context(target.fleet.root_file, target.device("pump-07"))
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    try:
        with Peer(target.address, context) as attacker:
            return asks(attacker, hello("pump-07")) == mqtt.ACCEPTED
    except (ConnectionError, ssl.SSLError):
        return False


@attack()
def test_hole_05_whoever_is_revoked_comes_back(target: Target) -> bool:
    """amqtt asks nobody whether a certificate is still good."""
    attacker = target.device("pump-07")
    with enter(target, attacker) as peer:
        peer.send(mqtt.DISCONNECT)
    target.revoke(attacker)
    return is_admitted(target, attacker, hello(attacker.id))


@attack()
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["TLS 1.2", "TLS 1.3"])
@pytest.mark.parametrize("is_revoked", [False, True], ids=["active", "revoked"])
def test_hole_05_a_resumed_tls_session_shows_no_certificate(
    target: Target, version: ssl.TLSVersion, is_revoked: bool
) -> bool:
    """Resumption skips the check of the certificate, so no fresh CRL and no new CA keeps anybody out."""
    attacker = target.device("pump-07")
    context = client_context(target.fleet.root_file, attacker)
    context.minimum_version = context.maximum_version = version
    with Peer(target.address, context) as first:
        assert mqtt.ACCEPTED == first.ask(hello(attacker.id))
        session = first.socket.session  # under TLS 1.3 a ticket has come by now, if one is given
    if is_revoked:
        target.revoke(attacker)
    return is_resumed(target, context, session, hello(attacker.id))


def is_resumed(target: Target, context: ssl.SSLContext, session: ssl.SSLSession | None, frame: bytes) -> bool:
    """Whether a client gets in with what it kept of an earlier TLS session, and nothing else."""
    raw = socket.create_connection(target.address, timeout=within(10))
    try:
        with context.wrap_socket(raw, server_hostname=target.address[0], session=session) as again:
            again.sendall(frame)
            return bool(again.session_reused) and again.recv(4) == mqtt.ACCEPTED
    except (ConnectionError, ssl.SSLError):
        raw.close()
        return False
