"""Whoever breaks the protocol, is too slow or too large, loses the connection; nobody else notices."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
from collections.abc import Callable

import pytest

from broker.engine import Connected, Disconnected, Reason, Refused
from fleet.limits import Limits
from tests import mqtt
from tests.certificates import Identity, TestFleet
from tests.contract.engines import RunningEngine
from tests.deadlines import within
from tests.mqtt import field, number, packet

UP = "devices/pump-07/up/x"

MALFORMED = {
    "packet type 0": packet(0x00),
    "packet type 15": packet(0xF0),
    "CONNACK from a client": packet(0x20, b"\0\0"),
    "PINGRESP from a client": packet(0xD0),
    "SUBSCRIBE with wrong flags": packet(0x80, number(1), field(UP), b"\0"),
    "UNSUBSCRIBE with wrong flags": packet(0xA0, number(1), field(UP)),
    "PUBREL with wrong flags": packet(0x60, number(1)),
    "PINGREQ with flags": packet(0xC1),
    "PINGREQ with a body": packet(0xC0, b"\0"),
    "DISCONNECT with a body": packet(0xE0, b"\0"),
    "a second CONNECT": mqtt.connect("pump-07"),
    "a length of five bytes": b"\x30\xff\xff\xff\xff\x01",
    "a length with more bytes than it takes": b"\xc0\x80\x00",
    "QoS 3": packet(0x36, field(UP), number(1), b"x"),
    "DUP at QoS 0": packet(0x38, field(UP), b"x"),
    "packet id 0": mqtt.publish(UP, b"x", 1, 0),
    "PUBLISH without a topic": packet(0x30, b"\0"),
    "PUBLISH without a packet id": packet(0x32, field(UP), b"\0"),
    "an empty topic": mqtt.publish("", b"x"),
    "+ in a topic": mqtt.publish("devices/+/up/x", b"x"),
    "# in a topic, and a packet in its payload": mqtt.publish("devices/#", mqtt.publish(UP, b"smuggled")),
    "NUL in a topic": mqtt.publish(UP + "\0", b"x"),
    "a control character in a topic": mqtt.publish(UP + "\x1b[2J", b"x"),
    "a topic that is not UTF-8": mqtt.publish(UP.encode() + b"\xff", b"x"),
    "a surrogate in a topic": mqtt.publish(UP.encode() + b"\xed\xa0\x80", b"x"),
    "an over-long encoding": mqtt.publish(UP.encode() + b"\xc0\xaf", b"x"),
    "a topic longer than its packet": packet(0x30, b"\xff\xff" + UP.encode()),
    "a topic of 40 levels": mqtt.publish(UP + "/x" * 40, b"x"),
    "a topic of 2 KB": mqtt.publish(UP + "x" * 2000, b"x"),
    "SUBSCRIBE without filters": packet(0x82, number(1)),
    "SUBSCRIBE with packet id 0": mqtt.subscribe((UP, 0), id=0),
    "SUBSCRIBE without a QoS": packet(0x82, number(1), field(UP)),
    "SUBSCRIBE with QoS 3": mqtt.subscribe((UP, 3)),
    "SUBSCRIBE with reserved bits": mqtt.subscribe((UP, 0x81)),
    "SUBSCRIBE to nothing": mqtt.subscribe(("", 0)),
    "# that is not last": mqtt.subscribe(("devices/#/x", 0)),
    "# that is not alone": mqtt.subscribe(("devices/x#", 0)),
    "+ that is not alone": mqtt.subscribe(("devices/x+/y", 0)),
    "NUL in a filter": mqtt.subscribe(("devices/\0", 0)),
    "UNSUBSCRIBE without filters": packet(0xA2, number(1)),
    "PUBACK with packet id 0": mqtt.puback(0),
    "PUBACK that is too long": packet(0x40, number(1), b"\0"),
    "PUBACK that is too short": packet(0x40, b"\1"),
}

BAD_CONNECTS = {
    "not CONNECT": mqtt.PINGREQ,
    "PUBLISH first": mqtt.publish(UP, b"x"),
    "HTTP": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "another protocol": packet(0x10, field("AMQP"), b"\4\2", number(60), field("pump-07")),
    "reserved flag": packet(0x10, field("MQTT"), b"\4\3", number(60), field("pump-07")),
    "will QoS without will": packet(0x10, field("MQTT"), b"\4\x0a", number(60), field("pump-07")),
    "will retain without will": packet(0x10, field("MQTT"), b"\4\x22", number(60), field("pump-07")),
    "will QoS 3": packet(0x10, field("MQTT"), b"\4\x1e", number(60), field("pump-07"), field(UP), field("")),
    "password without user": packet(0x10, field("MQTT"), b"\4\x42", number(60), field("pump-07"), field("p")),
    "a wildcard in the will": mqtt.connect("pump-07", will=("devices/pump-07/up/#", b"", 0, False)),
    "an empty will topic": mqtt.connect("pump-07", will=("", b"", 0, False)),
    "a will that is not there": packet(0x10, field("MQTT"), b"\4\6", number(60), field("pump-07")),
    "bytes after the end": packet(0x10, field("MQTT"), b"\4\2", number(60), field("pump-07"), b"\0"),
    "NUL in the client id": mqtt.connect("pump-07\0"),
    "a client id that is not UTF-8": packet(0x10, field("MQTT"), b"\4\2", number(60), field(b"\xff")),
    "flags of the header": b"\x11" + mqtt.connect("pump-07")[1:],
}


@pytest.mark.parametrize("frame", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_packet_ends_the_connection(broker: RunningEngine, pump: Identity, frame: bytes) -> None:
    """MQTT-4.8.0-1; what is read leniently is where smuggling begins (hole 8)."""
    with broker.join(pump) as peer:
        peer.send(frame)
        assert peer.is_closed()
    assert Reason.PROTOCOL is broker.wait_event(Disconnected).reason
    assert 0 == broker.call(broker.engine.stats).messages_received


@pytest.mark.parametrize("frame", BAD_CONNECTS.values(), ids=BAD_CONNECTS.keys())
def test_a_malformed_connect_is_not_answered(broker: RunningEngine, pump: Identity, frame: bytes) -> None:
    """3.1.4: closed without a CONNACK, and without a session (hole 2)."""
    with broker.peer(pump) as peer:
        peer.send(frame)
        assert peer.is_closed()
    assert Reason.PROTOCOL is broker.wait_event(Refused).reason
    assert 0 == broker.call(broker.engine.stats).sessions


@pytest.mark.parametrize("name", ["MQTT", "MQIsdp"])
@pytest.mark.parametrize("level", [3, 5])
def test_another_version_is_told_so(broker: RunningEngine, pump: Identity, name: str, level: int) -> None:
    """MQTT-3.1.2-2: return code 1, so that a client can fall back."""
    with broker.peer(pump) as peer:
        frame = packet(0x10, field(name), bytes((level, 2)), number(60), b"\0" if level == 5 else b"", field("pump-07"))
        assert b"\x20\x02\x00\x01" == peer.ask(frame)
        assert peer.is_closed()


def test_user_name_and_password_change_nothing(broker: RunningEngine, pump: Identity) -> None:
    """A client that is configured with some would not get in; or would get in by them."""
    frame = packet(0x10, field("MQTT"), b"\4\xc2", number(60), field("pump-07"), field("valve-1"), field(b"\xff\0"))
    with broker.join(pump, frame):
        assert pump.principal == broker.wait_event(Connected).client.principal


def test_a_stream_in_single_bytes_is_understood(broker: RunningEngine, pump: Identity) -> None:
    """Packets do not end where segments do."""
    with broker.peer(pump) as peer:
        for byte in mqtt.connect(pump.id) + mqtt.publish(UP, b"x" * 200, 1, 3) + mqtt.PINGREQ:
            peer.send(bytes((byte,)))
        assert [mqtt.ACCEPTED, mqtt.puback(3), mqtt.PINGRESP] == [peer.receive() for _ in range(3)]


def test_many_packets_in_one_segment_are_understood(broker: RunningEngine, pump: Identity) -> None:
    """A batch would lose its end."""
    with broker.peer(pump) as peer:
        peer.send(mqtt.connect(pump.id), *(mqtt.publish(UP, b"x", 1, n) for n in range(1, 1001)), mqtt.PINGREQ)
        assert mqtt.ACCEPTED == peer.receive()
        assert [mqtt.puback(n) for n in range(1, 1001)] == [peer.receive() for _ in range(1000)]
        assert mqtt.PINGRESP == peer.receive()


def test_what_follows_a_disconnect_is_not_read(broker: RunningEngine, pump: Identity, operator: Identity) -> None:
    """MQTT-3.14.4-2: it said that it was gone."""
    with broker.join(operator) as reader, broker.join(pump) as peer:
        reader.ask(mqtt.subscribe(("devices/+/up/#", 0)))
        peer.send(mqtt.DISCONNECT, mqtt.publish(UP, b"late"))
        assert peer.is_closed()
        reader.sync()


def test_a_packet_over_the_limit_is_refused_at_its_header(
    limited: Callable[[Limits], RunningEngine], fleet: TestFleet
) -> None:
    """200 MB would be buffered before anyone looks (hole 7)."""
    broker = limited(Limits(max_packet_bytes=1000))
    with broker.join(broker.device("pump-07")) as peer:
        exact = mqtt.publish(UP, bytes(1000 - 3 - 2 - len(UP) - 2), 1, 5)
        assert 1000 == len(exact)
        assert mqtt.puback(5) == peer.ask(exact)
        peer.send(mqtt.publish(UP, bytes(1000))[:4])
        assert peer.is_closed()


def test_a_message_as_large_as_telemetry_may_be_passes(broker: RunningEngine, pump: Identity) -> None:
    """What /v1/config promises would be refused."""
    with broker.join(pump) as peer:
        assert mqtt.puback(5) == peer.ask(mqtt.publish(UP, bytes(131_072), 1, 5))


def test_too_many_unfinished_messages_of_qos_2_end_the_connection(
    limited: Callable[[Limits], RunningEngine], fleet: TestFleet
) -> None:
    """A client would have the broker remember 65,535 ids."""
    broker = limited(Limits(inflight_per_session=3))
    with broker.join(broker.device("pump-07")) as peer:
        peer.send(*(mqtt.publish(UP, b"x", 2, n) for n in range(1, 5)))
        assert [mqtt.pubrec(n) for n in range(1, 4)] == [peer.receive() for _ in range(3)]
        assert peer.is_closed()


def test_a_silent_client_is_cut_after_one_and_a_half_keepalives(
    broker: RunningEngine, pump: Identity, operator: Identity
) -> None:
    """MQTT-3.1.2-24: a device that lost power would be online for ever (hole 6)."""
    will = ("devices/pump-07/up/status", b"gone", 0, False)
    with broker.join(operator) as reader, broker.join(pump, mqtt.connect(pump.id, keep_alive=1, will=will)) as peer:
        reader.ask(mqtt.subscribe(("devices/+/up/#", 0)))
        assert mqtt.publish(will[0], will[1]) == reader.receive()
        assert peer.is_closed()
    assert Reason.KEEPALIVE is broker.wait_event(Disconnected).reason


def test_half_a_packet_does_not_keep_a_connection(limited: Callable[[Limits], RunningEngine], fleet: TestFleet) -> None:
    """A byte now and then would hold a connection for ever (hole 6)."""
    broker = limited(Limits(packet_seconds=0.3))
    with broker.join(broker.device("pump-07"), mqtt.connect("pump-07", keep_alive=1)) as peer:
        peer.send(mqtt.publish(UP, bytes(100))[:-1])
        assert peer.is_closed()
    assert broker.wait_event(Disconnected).reason in (Reason.TOO_SLOW, Reason.KEEPALIVE)


def test_a_slow_connect_is_cut(limited: Callable[[Limits], RunningEngine], fleet: TestFleet) -> None:
    """A certificate would be enough to hold connections open (hole 6)."""
    broker = limited(Limits(connect_seconds=0.3))
    with broker.peer(broker.device("pump-07")) as peer:
        peer.send(mqtt.connect("pump-07")[:-1])
        assert peer.is_closed()
    assert Reason.TOO_SLOW is broker.wait_event(Refused).reason


@pytest.mark.parametrize("hello", [b"", b"\x16\x03\x01\x02\x00\x01"])
def test_a_slow_handshake_is_cut(limited: Callable[[Limits], RunningEngine], fleet: TestFleet, hello: bytes) -> None:
    """Without a certificate even, connections could be held open (hole 6)."""
    broker = limited(Limits(handshake_seconds=0.3))
    with socket.create_connection(broker.address, timeout=within(10)) as plain:
        plain.sendall(hello)
        assert b"" == plain.recv(1)
    assert Reason.TOO_SLOW is broker.wait_event(Refused).reason


def test_connections_over_the_limit_are_closed_at_once(
    limited: Callable[[Limits], RunningEngine], fleet: TestFleet
) -> None:
    """They would hang, or take the last file descriptor (hole 7)."""
    broker = limited(Limits(max_connections=1))
    pump, valve = broker.device("pump-07"), broker.device("valve-1")
    with broker.join(pump) as peer:
        with pytest.raises((ConnectionError, ssl.SSLError)), broker.peer(valve):
            pass
        peer.sync()
    broker.wait_event(Disconnected)
    assert Reason.TOO_MANY_CONNECTIONS is broker.wait_event(Refused).reason


def test_renegotiation_is_refused(broker: RunningEngine, pump: Identity) -> None:
    """TLS 1.2's renegotiation costs the server far more than the client."""
    files = pump.files
    asked = subprocess.run(
        [
            *("openssl", "s_client", "-connect", f"127.0.0.1:{broker.address[1]}", "-tls1_2"),
            *("-CAfile", broker.fleet.root_file, "-cert", files.certificate, "-key", files.key),
        ],
        input="R\n",  # what asks s_client for a renegotiation
        capture_output=True,
        text=True,
        timeout=within(30),
    )
    assert "Verify return code: 0 (ok)" in asked.stdout
    assert "no renegotiation" in asked.stderr


def test_a_client_that_does_not_read_its_answers_is_not_asked_for_more(
    broker: RunningEngine, pump: Identity, valve: Identity
) -> None:
    """Acknowledgements would pile up without end (hole 7)."""
    with broker.join(pump) as peer, broker.join(valve) as other:
        peer.socket.settimeout(1)
        batch = b"".join(mqtt.publish(UP, b"", 1, n) for n in range(1, 10_001))
        sent = 0
        with contextlib.suppress(TimeoutError):
            for _ in range(400):
                peer.socket.sendall(batch)
                sent += 1
        assert sent < 400
        other.sync()
