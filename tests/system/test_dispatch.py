"""Dispatch inside the real service, over the real broker, with devices that are raw sockets."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from enroll import commands
from enroll.greetings import INTERVAL_SECONDS
from enroll.registry import Registry, messaging, overview
from enroll.registry.records import CommandRecord, CommandState, PresenceRecord
from fleet.identity import DeviceId, Server
from fleet.layout import AdminHome, IdentityFiles, RunFile
from fleet.messages import Envelope, HelloMessage, Presence, ResultMessage, ResultState, StatusMessage
from fleet.topics import Hello, Result, Status
from tests import mqtt
from tests.fleets import new_home
from tests.mqtt import Peer
from tests.processes import Program, run
from tests.system.brokers import enrol, peer, start_broker, start_service, wait_ready

PUMP, VALVE = DeviceId("pump-07"), DeviceId("valve-1")


@pytest.fixture
def home(tmp_path: Path) -> AdminHome:
    return new_home(tmp_path / "fleet")


@pytest.fixture
def service(home: AdminHome) -> Iterator[Program]:
    with start_service(home) as program:
        wait_ready(program)
        yield program


@pytest.fixture
def broker(home: AdminHome, service: Program) -> Iterator[Program]:
    """A broker that dispatch has connected to."""
    with start_broker(home) as program:
        wait_ready(program)
        service.wait_for_line("dispatch.online", stream="stderr")
        yield program


@dataclass
class Pump:
    """A device on a raw connection."""

    id: DeviceId
    peer: Peer
    seq: int = 0
    _came: list[bytes] = field(default_factory=list)  # while something else was waited for

    def _publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        self.seq += 1
        self.peer.send(mqtt.publish(topic, payload, 1, self.seq, retain=retain))
        while (frame := self.peer.receive()) != mqtt.puback(self.seq):
            self._came.append(frame)

    def _envelope(self) -> Envelope:
        return Envelope(self.id, datetime.now(UTC), "boot", self.seq)

    def is_online(self) -> None:
        status = StatusMessage(self._envelope(), Presence.ONLINE, agent_version="test")
        self._publish(Status(self.id).format(), status.encode(), retain=True)

    def is_offline(self, reason: str) -> None:
        self._publish(
            Status(self.id).format(), StatusMessage(self._envelope(), Presence.OFFLINE, reason).encode(), retain=True
        )

    def says_hello(self) -> None:
        self._publish(Hello(self.id).format(), HelloMessage(self._envelope(), "test").encode())

    def answers(self, command_id: str, state: ResultState, output: object = None) -> None:
        message = ResultMessage(self._envelope(), state, output)
        self._publish(Result(self.id, command_id).format(), message.encode())

    def says(self, topic: str, payload: bytes) -> None:
        self._publish(topic, payload)

    def is_told(self) -> tuple[str, dict[str, object]]:
        """The next command: its topic and message."""
        frame = self._came.pop(0) if self._came else self.peer.receive()
        assert 0x32 == frame[0] & 0xF6, frame
        at = 2 if frame[1] < 0x80 else 3
        end = at + 2 + int.from_bytes(frame[at : at + 2], "big")
        self.peer.send(mqtt.puback(int.from_bytes(frame[end : end + 2], "big")))
        return frame[at + 2 : end].decode(), json.loads(frame[end + 2 :])


@contextmanager
def connected(home: AdminHome, broker: Program, device: DeviceId, files: IdentityFiles) -> Iterator[Pump]:
    with peer(home, files, wait_ready(broker)) as connection:
        assert mqtt.ACCEPTED == connection.ask(mqtt.connect(device))
        assert mqtt.suback(1) == connection.ask(mqtt.subscribe((f"devices/{device}/down/#", 1)))
        yield Pump(device, connection)


def send(home: AdminHome, name: str = "echo", timeout: str = "60s") -> str:
    """Send a command to the pump from the command line; its id."""
    return (
        run("enroll", "send", PUMP, name, '{"a": 1}', "--timeout", timeout, "--home", home.path).check().stdout.strip()
    )


def command(home: AdminHome, id: str) -> CommandRecord:
    with Registry.open(home.registry) as registry:
        return commands.find(registry, id)


def presence(home: AdminHome, device: DeviceId = PUMP) -> PresenceRecord | None:
    with Registry.open(home.registry) as registry, registry.read() as transaction:
        return messaging.find_presence(transaction, device)


def heard(service: Program, line: str, after: int = 0) -> int:
    """Wait until the service has logged `line`; how many lines it has logged then."""
    service.wait_for_line(line, stream="stderr", after=after)
    return service.line_count("stderr")


def test_a_status_becomes_presence(home: AdminHome, service: Program, broker: Program) -> None:
    """An admin would not see who is online."""
    with connected(home, broker, PUMP, enrol(home, PUMP)) as pump:
        pump.is_online()
        heard(service, "device.online device=pump-07")
        heard(service, "device.agent device=pump-07 version=test")
        found = presence(home)
        assert found is not None
        assert (True, "test") == (found.is_online, found.agent_version)
        with Registry.open(home.registry) as registry, registry.read() as transaction:
            assert [PUMP] == [
                s.record.id
                for s in overview.page(transaction, overview.EVERYBODY, None, 100)
                if s.presence and s.presence.is_online
            ]


def test_a_command_waits_for_hello_and_its_result_is_kept(home: AdminHome, service: Program, broker: Program) -> None:
    """A device that was away would never hear of it, or the admin never of its answer."""
    files = enrol(home, PUMP)
    given = send(home)
    assert CommandState.QUEUED is command(home, given).state
    with connected(home, broker, PUMP, files) as pump:
        pump.says_hello()
        topic, message = pump.is_told()
        assert f"devices/pump-07/down/commands/echo/{given}" == topic
        assert {"a": 1} == message["args"]
        pump.answers(given, ResultState.RUNNING)
        pump.answers(given, ResultState.DONE, {"b": [2]})
        heard(service, f"command.done device=pump-07 command={given}")
    found = command(home, given)
    assert (CommandState.DONE, '{"b":[2]}') == (found.state, found.output)


def test_an_online_device_is_told_at_once(home: AdminHome, service: Program, broker: Program) -> None:
    """A command given by another process would wait for the next hello."""
    with connected(home, broker, PUMP, enrol(home, PUMP)) as pump:
        pump.is_online()
        heard(service, "device.online device=pump-07")
        given = send(home)
        assert f"devices/pump-07/down/commands/echo/{given}" == pump.is_told()[0]


def test_hello_brings_again_what_is_unfinished_and_nothing_else(
    home: AdminHome, service: Program, broker: Program
) -> None:
    """A command lost with a device's memory would stay open, or a finished one come back."""
    with connected(home, broker, PUMP, enrol(home, PUMP)) as pump:
        pump.is_online()
        done, lost = send(home), send(home)
        assert {done, lost} == {pump.is_told()[0].rpartition("/")[2] for _ in range(2)}
        pump.answers(done, ResultState.DONE)
        pump.answers(lost, ResultState.ACCEPTED)
        heard(service, f"command.accepted device=pump-07 command={lost}")
        pump.says_hello()
        assert lost == pump.is_told()[0].rpartition("/")[2]
        last = send(home)
        assert last == pump.is_told()[0].rpartition("/")[2]


def test_a_device_answers_for_its_own_commands_alone(home: AdminHome, service: Program, broker: Program) -> None:
    """One device could close another's command."""
    enrol(home, PUMP)
    given = send(home)
    with connected(home, broker, VALVE, enrol(home, VALVE)) as valve:
        valve.answers(given, ResultState.DONE)
        heard(service, r"message.set_aside .*valve-1 has no command")
    assert CommandState.QUEUED is command(home, given).state


@pytest.mark.parametrize(
    ("topic", "payload"),
    [
        ("status", b"not JSON"),
        ("status", b'{"v": 1, "id": "valve-1"}'),
        ("hello", b"[" * 10_000),
        ("results/a", b'{"v": 1, "id": "pump-07", "ts": "now", "boot": "b", "seq": 1, "state": "done"}'),
    ],
    ids=("text", "another's", "deep", "no-time"),
)
def test_what_cannot_be_handled_is_set_aside(
    home: AdminHome, service: Program, broker: Program, topic: str, payload: bytes
) -> None:
    """One bad message would come again for ever, and hold up all behind it."""
    with connected(home, broker, PUMP, enrol(home, PUMP)) as pump:
        pump.says(f"devices/pump-07/up/{topic}", payload)
        heard(service, "message.set_aside")
        pump.is_online()
        heard(service, "device.online device=pump-07")


def test_what_was_said_while_the_service_was_killed_is_not_lost(home: AdminHome) -> None:
    """A result that the broker has acknowledged would be gone."""
    files = enrol(home, PUMP)
    with start_service(home) as service, start_broker(home) as broker:
        wait_ready(broker)
        heard(service, "dispatch.online")
        given = send(home)
        with connected(home, broker, PUMP, files) as pump:
            pump.says_hello()
            pump.is_told()
            service.kill()
            pump.answers(given, ResultState.DONE)
        with start_service(home) as again:
            heard(again, f"command.done device=pump-07 command={given}")
    assert CommandState.DONE is command(home, given).state


def test_a_broker_that_comes_back_elsewhere_is_found(home: AdminHome, service: Program) -> None:
    """After the broker's restart no command would go out until the service's."""
    with start_broker(home) as first:
        wait_ready(first)
        heard(service, "dispatch.online")
    mark = heard(service, "dispatch.offline .*ended")
    with start_broker(home) as second:
        port = wait_ready(second)
        service.wait_for_line(f"dispatch.online broker=.*:{port}", stream="stderr", after=mark)


def test_only_a_broker_is_taken_for_the_broker(home: AdminHome, service: Program) -> None:
    """Any server of the fleet could give orders to dispatch, and read what devices say."""
    home.run_file(Server.BROKER).write_bytes(RunFile(f"mqtts://localhost:{wait_ready(service)}").encode())
    heard(service, "dispatch.offline .*not our broker: the certificate is not a broker's")


def test_revocation_shows_as_offline(home: AdminHome, service: Program, broker: Program) -> None:
    """A device that was cut off would look alive for ever, because its will is not fired."""
    with connected(home, broker, PUMP, enrol(home, PUMP)) as pump:
        pump.is_online()
        mark = heard(service, "device.online device=pump-07")
        run("enroll", "device", "revoke", PUMP, "--yes", "--home", home.path).check()
        heard(service, "device.offline device=pump-07 reason=revoked", mark)
        assert pump.peer.is_closed()


def test_a_command_that_nobody_took_in_time_is_given_up(home: AdminHome, service: Program, broker: Program) -> None:
    """A device that comes back would do what is long over."""
    files = enrol(home, PUMP)
    given = send(home, timeout="1s")
    heard(service, f"command.expired command={given}")
    assert CommandState.EXPIRED is command(home, given).state
    last = send(home)
    with connected(home, broker, PUMP, files) as pump:
        pump.says_hello()
        assert last == pump.is_told()[0].rpartition("/")[2]


def test_a_retained_status_does_not_make_a_silent_device_look_seen(home: AdminHome) -> None:
    """`last seen` would jump whenever the service starts."""
    with start_service(home) as service, start_broker(home) as broker:
        wait_ready(broker)
        heard(service, "dispatch.online")
        with connected(home, broker, PUMP, enrol(home, PUMP)) as pump:
            pump.is_online()
            heard(service, "device.online device=pump-07")
        heard(service, "device.offline device=pump-07 reason=connection-lost")
        before = presence(home)
        assert before is not None
        service.stop()
        with start_service(home) as again:
            heard(again, "feed.opened")
            heard(again, "dispatch.online")
            with connected(home, broker, VALVE, enrol(home, VALVE)) as valve:
                valve.is_online()
                heard(again, "device.online device=valve-1")
    after = presence(home)
    assert after is not None
    assert before.last_seen == after.last_seen
    assert after.last_seen - before.changed_at < timedelta(minutes=1)


def test_a_device_that_says_hello_in_a_loop_is_answered_now_and_then_and_at_last(
    home: AdminHome, service: Program, broker: Program
) -> None:
    """One device with many open commands keeps dispatch busy, and the rest of the fleet waiting."""
    files = enrol(home, PUMP)
    with Registry.open(home.registry) as registry:
        for _ in range(50):
            now = datetime.now(UTC)
            order = commands.Order("echo", {}, now + timedelta(minutes=5))
            commands.send(registry, PUMP, order, commands.Giver("test", now, secrets.token_bytes))
    with connected(home, broker, PUMP, files) as pump:
        began = time.monotonic()
        pump.says_hello()
        first = [pump.is_told()[0] for _ in range(50)]
        for _ in range(100):
            pump.peer.send(mqtt.publish(Hello(PUMP).format(), HelloMessage(pump._envelope(), "test").encode(), 0))
        assert first == [pump.is_told()[0] for _ in range(50)]
        assert time.monotonic() - began >= INTERVAL_SECONDS
    assert 100 >= service.stderr.count("command.published")


def test_a_device_that_flaps_with_long_reasons_does_not_fill_the_log(
    home: AdminHome, service: Program, broker: Program
) -> None:
    """One certified device fills the gateway's disk at 200 kB/s, and hides what others do."""
    with connected(home, broker, PUMP, enrol(home, PUMP)) as pump:
        for _ in range(150):
            pump.is_online()
            pump.is_offline("r" * 1000)
        pump.says(f"devices/{PUMP}/up/status", b"{" * 1000)
        heard(service, "message.set_aside device=pump-07")
    lines = [line for line in service.stderr.splitlines() if "device=pump-07" in line]
    assert 20 > len(lines)
    assert 300 > max(map(len, lines))


def test_without_a_key_to_sign_with_devices_are_heard_and_once_it_is_repaired_they_are_told(
    home: AdminHome, service: Program, broker: Program
) -> None:
    """A damaged file makes the whole fleet look offline, and what devices did is lost; or a repair needs a restart."""
    files = enrol(home, PUMP)
    with connected(home, broker, PUMP, files) as pump:
        pump.is_online()
        first = send(home)
        pump.is_told()
        mark = service.line_count("stderr")
        whole = home.dispatch_signing.certificate.read_bytes()
        home.dispatch_signing.certificate.write_bytes(b"damaged")
        service.wait_for_line(r"ERROR downlink.not_signed reason=.*cert.pem.* hint=.restore ", stream="stderr")
        second = send(home)
        pump.answers(first, ResultState.DONE)
        service.wait_for_line(f"command.done device=pump-07 command={first}", stream="stderr")
        assert CommandState.DONE is command(home, first).state
        assert CommandState.QUEUED is command(home, second).state
        shown = run("enroll", "status", "--home", home.path)
        assert 1 == shown.returncode
        assert "\nsigning " in shown.stdout
        assert "error: nothing is sent to devices, for it cannot be signed: " in shown.stderr
        home.dispatch_signing.certificate.write_bytes(whole)
        service.wait_for_line("downlink.signed_again", stream="stderr")
        topic, _ = pump.is_told()
        assert topic.endswith(second)
    assert not [line for line in service.stderr.splitlines()[mark:] if "dispatch.o" in line], "it has left the broker"
