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


def test_a_connect_is_small(broker: RunningEngine, pump: Identity) -> None:
    """Whoever has any certificate, a revoked one too, would have the broker hold 256 KB for each connection."""
    will = ("devices/pump-07/up/status", bytes(16_000), 1, True)
    with broker.join(pump, mqtt.connect(pump.id, will=will)) as peer:
        assert mqtt.puback(5) == peer.ask(mqtt.publish(UP, bytes(20_000), 1, 5))
    with broker.peer(pump) as peer:
        peer.send(mqtt.connect(pump.id, will=(*will[:1], bytes(17_000), *will[2:]))[:100])
        assert peer.is_closed()
    assert Reason.PROTOCOL is broker.wait_event(Refused).reason


def test_what_follows_a_connect_in_one_segment_may_be_larger(broker: RunningEngine, pump: Identity) -> None:
    """A client that does not wait for CONNACK would lose its first message."""
    with broker.peer(pump) as peer:
        peer.send(mqtt.connect(pump.id), mqtt.publish(UP, bytes(30_000), 1, 5))
        assert [mqtt.ACCEPTED, mqtt.puback(5)] == [peer.receive(), peer.receive()]


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


def test_renegotiation_is_refused(limited: Callable[[Limits], RunningEngine]) -> None:
    """TLS 1.2's renegotiation costs the server far more than the client."""
    broker = limited(Limits(connect_seconds=1))  # which is when s_client ends
    files = broker.device("pump-07").files
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
