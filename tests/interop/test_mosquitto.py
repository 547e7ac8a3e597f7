"""The scenarios as the mosquitto programs can play them: mosquitto_pub, mosquitto_sub, mosquitto_rr."""

from __future__ import annotations

import signal

from broker.engine import Connected, Disconnected, Reason, Refused
from tests.certificates import Identity
from tests.contract.engines import RunningEngine
from tests.interop.mosquitto import arguments, publish, subscriber
from tests.interop.peers import Broker, Message
from tests.processes import run

UP = "devices/pump-07/up"
DOWN = "devices/pump-07/down"
ALL_UP, ALL_DOWN = "devices/+/up/#", "devices/pump-07/down/#"


def test_basic(broker: Broker, pump: Identity, admin: Identity) -> None:
    """Each QoS in both directions, at the lower of both sides; the exchange of QoS 2 is complete."""
    with (device := subscriber(broker, pump, "-q", 1, "-t", ALL_DOWN)).program:
        assert [1] == device.granted()
        for qos in range(3):
            publish(broker, admin, f"{DOWN}/x", "-q", qos, "-m", f"hello {qos}").check()
            assert Message(f"{DOWN}/x", f"hello {qos}", min(qos, 1)) == device.receive()
    with (operator := subscriber(broker, admin, "-q", 2, "-t", ALL_UP)).program:
        operator.granted()
        said = publish(broker, pump, f"{UP}/x", "-q", 2, "-m", "whole").check().stdout
        assert Message(f"{UP}/x", "whole", 2) == operator.receive()
    assert "received PUBCOMP (Mid: 1, RC:0)" in said


def test_retained_messages(broker: Broker, pump: Identity, admin: Identity) -> None:
    """What was retained last is what a new subscriber gets, until it is deleted."""
    for topic, payload in (("a", "old"), ("a", "new"), ("b", "gone")):
        publish(broker, pump, f"{UP}/{topic}", "-r", "-q", 1, "-m", payload).check()
    publish(broker, pump, f"{UP}/b", "-r", "-q", 1, "-n").check()
    with (operator := subscriber(broker, admin, "-q", 2, "-t", ALL_UP)).program:
        assert Message(f"{UP}/a", "new", 1, retain=True) == operator.receive()
        publish(broker, pump, f"{UP}/a", "-r", "-m", "live").check()
        assert Message(f"{UP}/a", "live") == operator.receive()


def test_offline_message_queueing(engine: RunningEngine, broker: Broker, pump: Identity, admin: Identity) -> None:
    """A session that is kept (-c) receives what came meanwhile, in order."""
    persistent = ("-c", "-q", 2, "-t", ALL_DOWN)
    with subscriber(broker, pump, *persistent, "-E").program as once:
        once.wait()
    assert Reason.DISCONNECTED is engine.wait_event(Disconnected).reason
    lines = "".join(f"{number}\n" for number in range(50))
    publish(broker, admin, f"{DOWN}/x", "-q", 1, "-l", stdin=lines).check()
    with (device := subscriber(broker, pump, *persistent)).program:
        assert [Message(f"{DOWN}/x", f"{n}", 1) for n in range(50)] == [device.receive() for _ in range(50)]
    engine.wait_event(Connected, lambda event: event.session_present)


def test_will_message(broker: Broker, pump: Identity, admin: Identity) -> None:
    """A killed client leaves its will, once; one that ends in order does not."""
    will = ("-t", ALL_DOWN, "--will-topic", f"{UP}/status", "--will-payload", "lost", "--will-qos", 1)
    with (operator := subscriber(broker, admin, "-q", 2, "-t", ALL_UP)).program:
        operator.granted()
        with subscriber(broker, pump, *will, "-E").program as ended:
            ended.wait()
        with (device := subscriber(broker, pump, *will)).program:
            device.granted()
            device.program.kill()
        assert Message(f"{UP}/status", "lost", 1) == operator.receive()
        publish(broker, pump, f"{UP}/end", "-m", "end").check()
        assert Message(f"{UP}/end", "end") == operator.receive()


def test_overlapping_subscriptions(broker: Broker, pump: Identity, admin: Identity) -> None:
    """Three filters that match, one message."""
    with (operator := subscriber(broker, admin, "-q", 1, "-t", ALL_UP, "-t", f"{UP}/x", "-t", "#")).program:
        assert [1, 1, 1] == operator.granted()
        for payload in ("once", "end"):
            publish(broker, pump, f"{UP}/x", "-q", 2, "-m", payload).check()
        assert [Message(f"{UP}/x", payload, 1) for payload in ("once", "end")] == [
            operator.receive(),
            operator.receive(),
        ]


def test_keepalive(engine: RunningEngine, broker: Broker, pump: Identity) -> None:
    """A process that stands still is cut after one and a half keepalives (5 seconds is the least it takes)."""
    with (device := subscriber(broker, pump, "-k", 5, "-t", ALL_DOWN)).program:
        device.granted()
        device.program.send_signal(signal.SIGSTOP)
        assert Reason.KEEPALIVE is engine.wait_event(Disconnected).reason
        device.program.kill()


def test_redelivery_on_reconnect(engine: RunningEngine, broker: Broker, pump: Identity, admin: Identity) -> None:
    """What a killed client had not acknowledged comes again, marked, in its order, before what is new."""
    persistent = ("-c", "-q", 1, "-t", ALL_DOWN)
    with (device := subscriber(broker, pump, *persistent)).program:
        device.granted()
        device.program.send_signal(signal.SIGSTOP)
        publish(broker, admin, f"{DOWN}/x", "-q", 1, "-l", stdin="0\n1\n2\n").check()
        device.program.kill()
    engine.wait_event(Disconnected, lambda event: event.client.principal == pump.principal)
    publish(broker, admin, f"{DOWN}/x", "-q", 1, "-m", "new").check()
    with (device := subscriber(broker, pump, *persistent)).program:
        assert ["0", "1", "2", "new"] == [device.receive().payload for _ in range(4)]
    said = device.program.stdout
    assert (3, 1) == (said.count("received PUBLISH (d1, q1, r0"), said.count("received PUBLISH (d0, q1, r0"))


def test_zero_length_client_id(broker: Broker, pump: Identity, admin: Identity) -> None:
    """Two that are typed without -i do not end each other."""
    unnamed = [subscriber(broker, admin, "-t", ALL_UP, client_id="") for _ in range(2)]
    with unnamed[0].program, unnamed[1].program:
        for one in unnamed:
            assert [0] == one.granted()
        publish(broker, pump, f"{UP}/x", "-m", "hello").check()
        for one in unnamed:
            assert Message(f"{UP}/x", "hello") == one.receive()


def test_dollar_topics(broker: Broker, pump: Identity, admin: Identity) -> None:
    """# does not match a topic that begins with $."""
    with (operator := subscriber(broker, admin, "-t", "#", client_id="admin:reader")).program:
        operator.granted()
        publish(broker, admin, "$test/x", "-m", "unseen").check()
        publish(broker, pump, f"{UP}/x", "-m", "seen").check()
        assert Message(f"{UP}/x", "seen") == operator.receive()


def test_unsubscribe(broker: Broker, pump: Identity, admin: Identity) -> None:
    """What -U names comes no more, though the session that is kept had it."""
    with (first := subscriber(broker, admin, "-c", "-q", 1, "-t", f"{UP}/a", "-t", f"{UP}/b")).program:
        assert [1, 1] == first.granted()
    with (second := subscriber(broker, admin, "-c", "-q", 1, "-t", f"{UP}/b", "-U", f"{UP}/a")).program:
        second.program.wait_for_line("received UNSUBACK")
        for name in "ab":
            publish(broker, pump, f"{UP}/{name}", "-q", 1, "-m", name).check()
        assert Message(f"{UP}/b", "b", 1) == second.receive()


def test_subscribe_failure(broker: Broker, pump: Identity) -> None:
    """A denied filter is answered with 0x80; where all are, mosquitto_sub says so and ends."""
    with (device := subscriber(broker, pump, "-t", ALL_DOWN, "-t", ALL_UP, "-t", "$share/g/x")).program:
        assert [0, 128, 128] == device.granted()
    with (device := subscriber(broker, pump, "-t", "#")).program:
        device.program.wait_for_line("All subscription requests were denied", stream="stderr")


def test_a_command_is_answered(broker: Broker, pump: Identity, admin: Identity) -> None:
    """What mosquitto_rr does under 3.1.1: the answer to a command, on a topic that both know."""
    command, result = f"{DOWN}/commands/ping/1", f"{UP}/results/1"
    with (device := subscriber(broker, pump, "-t", command, "-C", 1)).program:
        device.granted()
        asking = subscriber(broker, admin, "-q", 1, "-t", result, client_id="admin:asking")
        with asking.program:
            asking.granted()
            publish(broker, admin, command, "-q", 1, "-m", "ping").check()
            assert "ping" == device.receive().payload
            device.program.wait()
            publish(broker, pump, result, "-q", 1, "-m", "pong").check()
            assert Message(result, "pong", 1) == asking.receive()


def test_mosquitto_rr_speaks_mqtt_5_only(engine: RunningEngine, broker: Broker, admin: Identity) -> None:
    """It is told the version, and says what it needs: no silence, no half of a request."""
    known = (*arguments(broker, admin), "-t", f"{DOWN}/x", "-e", f"{UP}/x", "-m", "ping", "-W", 5)
    ended = run("mosquitto_rr", *known, seconds=10)
    assert "mosquitto_rr only supports connecting to an MQTT v5 broker" in ended.stderr
    assert Reason.WRONG_VERSION is engine.wait_event(Refused).reason
