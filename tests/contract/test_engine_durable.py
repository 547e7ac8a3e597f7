"""What outlives a broker, and what does not: an engine that is stopped, or loses its disk, and the next on its file."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import pytest

from broker.engine import Disconnected, SessionsExpired
from fleet.identity import Role, State
from fleet.policy import DEFAULT_POLICY, Action, Policy, Rule
from tests import mqtt
from tests.contract.durable import ALL_UP, DOWN, UP, Site, crash, join, publish, subscribed
from tests.contract.engines import now


def test_what_waits_outlives_a_restart_in_its_order(site: Site) -> None:
    """What was acknowledged would be lost with the broker."""
    with site.running() as broker:
        subscribed(broker, site.admin, (ALL_UP, 2))
        publish(broker, site.pump, UP, b"1", b"2", bytes(5000))
        publish(broker, site.pump, UP, b"3", b"4", qos=2)
    with site.running() as broker:
        assert (5, 1) == (broker.call(broker.engine.stats).queued, broker.session_count())
        with join(broker, site.admin, present=True) as peer:
            frames = [peer.receive() for _ in range(5)]
            sent = [(UP, b"1", 1), (UP, b"2", 1), (UP, bytes(5000), 1), (UP, b"3", 2), (UP, b"4", 2)]
            assert frames == [mqtt.publish(*each, id=number) for number, each in enumerate(sent, 1)]


def test_what_came_after_a_restart_is_behind_what_was_there(site: Site) -> None:
    """A newer command would overtake an older one."""
    with site.running() as broker:
        subscribed(broker, site.pump, (DOWN, 1))
        publish(broker, site.admin, DOWN, b"1", b"2")
    with site.running() as broker:
        publish(broker, site.admin, DOWN, b"3")
        with join(broker, site.pump, present=True) as peer:
            assert [mqtt.publish(DOWN, b"%d" % n, 1, n) for n in (1, 2, 3)] == [peer.receive() for _ in range(3)]


def test_a_message_that_several_wait_for_is_kept_once(site: Site) -> None:
    """A notice to ten thousand devices would fill the disk."""
    notice = "fleet/notices/x"
    with site.running() as broker:
        for who in (site.pump, site.admin):
            subscribed(broker, who, (notice, 1))
        publish(broker, site.admin, notice, bytes(2000))
    assert {"session": 2, "filter": 2, "queue": 2, "body": 1} == site.rows()
    with site.running() as broker:
        for who in (site.pump, site.admin):
            with join(broker, who, present=True) as peer:
                assert mqtt.publish(notice, bytes(2000), 1, 1) == peer.receive()
                peer.send(mqtt.puback(1))
                peer.sync()
    with site.running():
        pass
    assert {"session": 2, "filter": 2} == site.rows()


def test_a_retained_message_outlives_a_restart(site: Site) -> None:
    """Nobody would know who is online after the broker was updated."""
    with site.running() as broker, broker.join(site.pump) as peer:
        assert mqtt.puback(1) == peer.ask(mqtt.publish(UP, b"kept", 1, retain=True))
        assert mqtt.puback(2) == peer.ask(mqtt.publish(UP + "/2", b"gone", 1, 2, retain=True))
        assert mqtt.puback(3) == peer.ask(mqtt.publish(UP + "/2", b"", 1, 3, retain=True))
        crash(site)
    with site.running() as broker, broker.join(site.admin) as peer:
        peer.send(mqtt.subscribe((ALL_UP, 1)))
        assert mqtt.suback(1) == peer.receive()
        assert mqtt.publish(UP, b"kept", 1, 1, retain=True) == peer.receive()
        peer.sync()


def test_what_is_on_its_way_goes_out_again_under_its_id(site: Site) -> None:
    """MQTT-4.4.0-1: a client would take a message of QoS 2 for another, and have it twice."""
    with site.running() as broker, join(broker, site.admin) as peer:
        assert mqtt.suback(2) == peer.ask(mqtt.subscribe((ALL_UP, 2)))
        publish(broker, site.pump, UP, b"1", b"2", qos=2)
        first, second = peer.receive(), peer.receive()
        assert mqtt.pubrel(1) == peer.ask(mqtt.pubrec(1))
        crash(site)
    assert [mqtt.publish(UP, b"1", 2, 1), mqtt.publish(UP, b"2", 2, 2)] == [first, second]
    with site.running() as broker, join(broker, site.admin, present=True) as peer:
        assert mqtt.pubrel(1) == peer.receive()
        assert mqtt.publish(UP, b"2", 2, 2, dup=True) == peer.receive()
        peer.send(mqtt.pubcomp(1))
        publish(broker, site.pump, UP, b"3", qos=2)
        assert mqtt.publish(UP, b"3", 2, 3) == peer.receive()


def test_a_message_of_qos_2_that_comes_again_after_a_crash_is_known(site: Site) -> None:
    """4.3.3: a command would be carried out twice."""
    with site.running() as broker:
        subscribed(broker, site.pump, (DOWN, 2))
        with join(broker, site.admin) as peer:
            assert mqtt.pubrec(7) == peer.ask(mqtt.publish(DOWN, b"once", 2, 7))
            crash(site)
    with site.running() as broker:
        with join(broker, site.admin, present=True) as peer:
            assert mqtt.pubrec(7) == peer.ask(mqtt.publish(DOWN, b"once", 2, 7, dup=True))
            assert mqtt.pubcomp(7) == peer.ask(mqtt.pubrel(7))
            assert mqtt.pubrec(7) == peer.ask(mqtt.publish(DOWN, b"another", 2, 7))
        with join(broker, site.pump, present=True) as peer:
            assert [mqtt.publish(DOWN, b"once", 2, 1), mqtt.publish(DOWN, b"another", 2, 2)] == [
                peer.receive() for _ in range(2)
            ]


def test_an_unsubscribe_outlives_a_restart(site: Site) -> None:
    """MQTT-3.10.4-2: it would be sent again what it does not want."""
    with site.running() as broker, join(broker, site.pump) as peer:
        assert mqtt.suback(1, 1) == peer.ask(mqtt.subscribe((DOWN, 1), (DOWN + "/2", 1)))
        assert mqtt.packet(0xB0, mqtt.number(2)) == peer.ask(mqtt.unsubscribe(DOWN, id=2))
        crash(site)
    with site.running() as broker:
        publish(broker, site.admin, DOWN, b"unwanted")
        publish(broker, site.admin, DOWN + "/2", b"wanted")
        with join(broker, site.pump, present=True) as peer:
            assert mqtt.publish(DOWN + "/2", b"wanted", 1, 1) == peer.receive()


def test_a_clean_session_forgets_what_was_kept(site: Site) -> None:
    """MQTT-3.1.2-6: what it did away with would come back with the next start."""
    with site.running() as broker:
        subscribed(broker, site.pump, (DOWN, 1))
        publish(broker, site.admin, DOWN, b"1")
    with site.running() as broker:
        broker.join(site.pump).socket.close()
        broker.wait_event(Disconnected)
        crash(site)
    assert {} == site.rows()


# Decided again


def test_a_subscription_that_the_rules_no_longer_allow_is_gone(site: Site) -> None:
    """A rule that was taken back would hold for whoever used it while it was there."""
    rules = (*DEFAULT_POLICY.rules, Rule("spy", Role.DEVICE, Action.SUBSCRIBE, "devices/other/up/#", site.pump.id))
    with site.running(Policy(rules)) as broker:
        subscribed(broker, site.pump, (DOWN, 1), ("devices/other/up/#", 1))
    with site.running() as broker:
        assert 1 == broker.call(broker.engine.stats).subscriptions
    assert {"session": 1, "filter": 1} == site.rows()


CHANGES: dict[str, Callable[[Site], None]] = {
    "revoked": lambda site: site.change_pump(state=State.REVOKED),
    "suspended": lambda site: site.change_pump(state=State.SUSPENDED),
    "removed": lambda site: site.entries.remove(site.entries[0]),
    "enrolled anew": lambda site: site.change_pump(epoch=2),
    "without a certificate": lambda site: site.change_pump(serials=frozenset()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_nothing_waits_for_whoever_the_directory_no_longer_admits(site: Site, change: str) -> None:
    """Whoever is enrolled under a name that was used before would be sent what its predecessor was."""
    with site.running() as broker:
        subscribed(broker, site.pump, (DOWN, 2))
        publish(broker, site.admin, DOWN, b"secret")
    CHANGES[change](site)
    with site.running() as broker:
        assert (0, 0) == (broker.session_count(), broker.call(broker.engine.stats).queued)
        crash(site)
    with site.running():
        pass
    assert {} == site.rows()


@pytest.mark.parametrize("change", ["revoked", "removed", "enrolled anew"])
def test_nothing_retained_is_left_of_an_enrolment_that_ended_meanwhile(site: Site, change: str) -> None:
    """A successor would find its predecessor's orders, or speak with its words."""
    with site.running() as broker, broker.join(site.pump) as pump, broker.join(site.admin) as admin:
        assert mqtt.puback(1) == pump.ask(mqtt.publish(UP, b"said", 1, retain=True))
        assert mqtt.puback(1) == admin.ask(mqtt.publish(DOWN, b"told", 1, retain=True))
        assert mqtt.puback(2) == admin.ask(mqtt.publish("fleet/notices/x", b"to all", 1, 2, retain=True))
    CHANGES[change](site)
    with site.running() as broker:
        assert 1 == broker.call(broker.engine.stats).retained
    assert {"retained": 1} == site.rows()


def test_a_revocation_purges_what_is_on_disk(site: Site) -> None:
    """What waits for a device would be read from the disk after it was revoked."""
    with site.running() as broker:
        subscribed(broker, site.pump, (DOWN, 1))
        publish(broker, site.admin, DOWN, b"secret")
        broker.revoke(site.pump)
    assert {"retained": 1} == site.rows()  # that it is offline


def test_a_session_whose_client_stays_away_expires(site: Site) -> None:
    """Devices that were thrown away would fill the disk."""
    with site.running() as broker:
        subscribed(broker, site.pump, (DOWN, 1))
        subscribed(broker, site.admin, (ALL_UP, 1))
        publish(broker, site.admin, DOWN, b"never read")
        broker.wait_event(Disconnected, lambda e: e.client.client_id == "admin")

    def at(days: float) -> Callable[[], datetime]:
        return lambda: now() + timedelta(days=days)

    with site.running(clock=at(13)) as broker, broker.join(site.admin, mqtt.connect("admin:other")):
        assert 3 == broker.session_count()
    with site.running(clock=at(15)) as broker:
        assert 2 == broker.wait_event(SessionsExpired).count
        assert 0 == broker.session_count()
    assert {} == site.rows()


# Wills


def test_a_will_is_published_after_a_crash(site: Site) -> None:
    """A device that never comes back would seem online for ever."""
    with site.running() as broker:
        subscribed(broker, site.admin, (ALL_UP, 1))
        with join(broker, site.pump, will=b"offline") as peer:
            peer.ask(mqtt.subscribe((DOWN, 1)))
            publish(broker, site.admin, DOWN, b"for a commit that has the will, too")
            crash(site)
    with site.running() as broker, join(broker, site.admin, present=True) as peer:
        assert mqtt.publish(UP, b"offline", 1, 1) == peer.receive()


def test_a_will_that_was_withdrawn_is_not_published_after_a_restart(site: Site) -> None:
    """MQTT-3.1.2-10: a device that left in order would be told to have failed."""
    with site.running() as broker:
        subscribed(broker, site.admin, (ALL_UP, 1))
        with join(broker, site.pump, will=b"offline") as peer:
            peer.send(mqtt.DISCONNECT)
            assert peer.is_closed()
        publish(broker, site.admin, "fleet/notices/x", b"")
    assert {"session": 2, "filter": 1} == site.rows()


def test_the_will_of_a_connection_that_the_broker_ended_with_is_published_at_the_next_start(site: Site) -> None:
    """3.1.2.5: who was connected when the broker was stopped, and does not come back, would seem online."""
    with site.running() as broker:
        subscribed(broker, site.admin, (ALL_UP, 1))
        peer = join(broker, site.pump, will=b"offline")
    peer.socket.close()
    with site.running() as broker, join(broker, site.admin, present=True) as reader:
        assert mqtt.publish(UP, b"offline", 1, 1) == reader.receive()
