"""The broker with the real service, and with clients that share no code with it: mosquitto and paho."""

from __future__ import annotations

import queue
import signal
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from fleet.layout import AdminHome, IdentityFiles
from tests import mqtt
from tests.deadlines import within
from tests.fleets import new_home
from tests.processes import Program
from tests.system.brokers import (
    enrol,
    mosquitto,
    operator,
    peer,
    revoke,
    start_broker,
    start_service,
    wait_ready,
)

NOT_AUTHORIZED = b"\x20\x02\x00\x05"


@pytest.fixture
def home(tmp_path: Path) -> AdminHome:
    return new_home(tmp_path / "fleet")


@pytest.fixture
def service(home: AdminHome) -> Iterator[Program]:
    """`enroll serve`, ready."""
    with start_service(home) as program:
        wait_ready(program)
        yield program


@pytest.fixture
def broker(home: AdminHome, service: Program) -> Iterator[Program]:
    """`broker serve`, ready."""
    with start_broker(home) as program:
        wait_ready(program)
        yield program


def test_mosquitto_clients_talk_with_an_enrolled_identity(home: AdminHome, broker: Program) -> None:
    """The one client that everybody has would not work."""
    port, pump = wait_ready(broker), enrol(home, "pump-07")
    topic = "devices/pump-07/up/telemetry"
    for qos in (0, 1, 2):
        message = ("-t", f"{topic}/{qos}", "-m", f"at {qos}", "-q", qos, "-r")
        mosquitto("mosquitto_pub", home, pump, port, "pump-07", *message).check()
    wanted = ("-t", "devices/+/up/telemetry/#", "-q", 2, "-v", "-C", 3, "-W", 20)
    read = mosquitto("mosquitto_sub", home, operator(home), port, "admin", *wanted).check()
    assert [f"{topic}/{qos} at {qos}" for qos in (0, 1, 2)] == sorted(read.stdout.splitlines())


@pytest.mark.parametrize(
    ("client_id", "topic"),
    [("pump-07", "devices/valve-1/up/x"), ("pump-07", "$SYS/x"), ("valve-1", "devices/valve-1/up/x")],
)
def test_mosquitto_clients_are_refused_elsewhere(home: AdminHome, broker: Program, client_id: str, topic: str) -> None:
    """A device would speak as another."""
    port, pump = wait_ready(broker), enrol(home, "pump-07")
    sent = mosquitto("mosquitto_pub", home, pump, port, client_id, "-t", topic, "-m", "x", "-q", "1")
    assert 0 != sent.returncode


def test_mosquitto_without_a_certificate_is_refused(home: AdminHome, broker: Program) -> None:
    """Anyone could talk."""
    port = wait_ready(broker)
    root = ("--cafile", home.root.certificate)
    with Program("mosquitto_pub", *root, "-h", "127.0.0.1", "-p", port, "-t", "x", "-m", "x") as sender:
        assert 0 != sender.wait()
    broker.wait_for_line(r"connection\.refused reason=handshake .*peer did not return a certificate", stream="stderr")


def test_paho_exchanges_qos_2_and_keeps_its_session(home: AdminHome, broker: Program) -> None:
    """The agent's own library would not work."""
    port, pump, admin = wait_ready(broker), enrol(home, "pump-07"), operator(home)
    topic = "devices/pump-07/down/commands/echo"
    with Paho(home, admin, "admin", port, clean=True) as sender:
        with Paho(home, pump, "pump-07", port, clean=False) as device:
            device.client.subscribe("devices/pump-07/down/#", 2)
            device.subscribed.get(timeout=within(10))
            for n in range(20):
                sender.publish(f"{topic}/1", b"%d" % n, 2)
            assert [(f"{topic}/1", b"%d" % n, 2) for n in range(20)] == [device.receive() for _ in range(20)]
        broker.wait_for_line(r"connection\.ended client=pump-07", stream="stderr")
        sender.publish(f"{topic}/2", b"later", 1)
        with Paho(home, pump, "pump-07", port, clean=False) as device:
            assert (f"{topic}/2", b"later", 1) == device.receive()


class Paho:
    """A paho client on its own thread."""

    def __init__(self, home: AdminHome, files: IdentityFiles, id: str, port: int, *, clean: bool) -> None:
        self.inbox: queue.Queue[tuple[str, bytes, int]] = queue.Queue()
        self.subscribed: queue.Queue[None] = queue.Queue()
        self.client = paho.Client(CallbackAPIVersion.VERSION2, client_id=id, clean_session=clean)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(home.root.certificate)
        context.load_cert_chain(files.certificate, files.key)
        self.client.tls_set_context(context)
        self.client.on_message = self._take
        self.client.on_subscribe = lambda *_: self.subscribed.put(None)
        self._port = port

    def _take(self, _client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        self.inbox.put((message.topic, bytes(message.payload), message.qos))

    def publish(self, topic: str, payload: bytes, qos: int) -> None:
        self.client.publish(topic, payload, qos).wait_for_publish(within(10))

    def receive(self) -> tuple[str, bytes, int]:
        return self.inbox.get(timeout=within(10))

    def __enter__(self) -> Self:
        self.client.connect("localhost", self._port)
        self.client.loop_start()
        return self

    def __exit__(self, *_: object) -> None:
        self.client.disconnect()
        self.client.loop_stop()


def test_a_device_enrolled_a_moment_ago_gets_in(home: AdminHome, broker: Program) -> None:
    """It would have to wait for the feed."""
    port = wait_ready(broker)
    for number in range(5):
        files = enrol(home, f"pump-{number}")
        with peer(home, files, port) as device:
            assert mqtt.ACCEPTED == device.ask(mqtt.connect(f"pump-{number}"))


@pytest.mark.parametrize("attempt", range(4))
def test_a_revocation_cuts_and_outlives_a_kill_at_that_moment(home: AdminHome, attempt: int) -> None:
    """A thief would cut the power when he is cut off, and be let in by the broker alone."""
    pump = enrol(home, "pump-07")
    with start_service(home) as service, start_broker(home) as broker:
        wait_ready(service)
        with peer(home, pump, wait_ready(broker)) as device:
            assert mqtt.ACCEPTED == device.ask(mqtt.connect("pump-07"))
            revoke(home, "pump-07")
            assert device.is_closed()
            broker.kill()  # nothing is left to a clean shutdown
        service.kill()
    with start_broker(home) as broker, peer(home, pump, wait_ready(broker)) as device:
        assert NOT_AUTHORIZED == device.ask(mqtt.connect("pump-07"))


def test_a_revocation_while_the_broker_is_cut_off_takes_hold_when_the_service_is_back(home: AdminHome) -> None:
    """The broker would follow an address of yesterday, or miss what happened meanwhile."""
    pump = enrol(home, "pump-07")
    with start_service(home) as first, start_broker(home) as broker:
        wait_ready(first)
        with peer(home, pump, wait_ready(broker)) as device:
            assert mqtt.ACCEPTED == device.ask(mqtt.connect("pump-07"))
            first.kill()
            broker.wait_for_line("directory.not_followed", stream="stderr")
            revoke(home, "pump-07")
            device.sync()
            with start_service(home) as second:  # on another port
                wait_ready(second)
                assert device.is_closed()
    assert "Traceback" not in broker.stderr


def test_killed_and_restarted_it_is_ready_again(home: AdminHome, broker: Program) -> None:
    """kill -9 would leave files that the next start cannot read."""
    broker.send_signal(signal.SIGKILL)
    broker.wait()
    with start_broker(home) as again:
        wait_ready(again)
