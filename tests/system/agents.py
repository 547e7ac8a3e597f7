"""A running fleet for the agent's tests: enrollment service and broker as processes, an operator who listens."""

from __future__ import annotations

import json
import queue
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from enroll.downlink import DownlinkSigner
from fleet import pki
from fleet.identity import DeviceId
from fleet.join import JoinCode, parse_join_code
from fleet.layout import AdminHome, AgentHome
from fleet.messages import CommandMessage
from fleet.topics import ALL_UP, Command
from tests.deadlines import within
from tests.fleets import new_home
from tests.processes import Finished, Program, run


@dataclass
class LiveFleet:
    """One fleet on this machine. `agents` holds the homes of its devices."""

    home: AdminHome
    agents: Path
    stack: ExitStack
    service: Program
    url: str
    broker: Program | None = None
    broker_url: str = ""
    host: str = "127.0.0.1"
    _homes: int = field(default=0)

    def enroll(self, *args: object) -> Finished:
        """Run one `enroll` command that should work."""
        return run("enroll", *args, "--home", self.home.path).check()

    def invite(self, device: str) -> JoinCode:
        """A join code for one device; its URL is the service's own."""
        return parse_join_code(
            json.loads(self.enroll("token", "create", "--device", device, "-o", "json").stdout)["code"]
        )

    def new_agent_home(self) -> AgentHome:
        self._homes += 1
        return AgentHome(self.agents / f"agent-{self._homes}")

    def joined(self, device: str) -> AgentHome:
        """The home of a device that has enrolled."""
        home = self.new_agent_home()
        join(home, self.invite(device), device).check()
        return home

    def start_broker(self, port: int = 0) -> None:
        """A broker, on any free port or this one."""
        self.broker = self.stack.enter_context(
            Program("broker", "serve", "--home", self.home.path, "--listen", listen_on(self.host, port))
        )
        self.broker_url = self.broker.wait_for_line(r"^broker: ready (\S+)$")[1]

    @property
    def broker_address(self) -> tuple[str, int]:
        parts = urlsplit(self.broker_url)
        return str(parts.hostname), int(parts.port or 0)


def listen_on(host: str, port: int = 0) -> str:
    """A port of that address, any free one if it is 0."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@contextmanager
def live_fleet(
    folder: Path, *, with_broker: bool, host: str = "127.0.0.1", toml: str = "", since: datetime | None = None
) -> Iterator[LiveFleet]:
    """A fleet whose service, and broker if wanted, run on an address of this machine.

    `toml`: more of its file; `since` when it is there, if it is not new.
    """
    hosts = ("localhost", "127.0.0.1") if host == "127.0.0.1" else (host,)
    home = new_home(folder / "fleet", since, hosts=hosts)
    with home.config.open("a") as file:
        file.write(toml)
    with ExitStack() as stack:
        service = stack.enter_context(Program("enroll", "serve", "--home", home.path, "--listen", listen_on(host)))
        url = service.wait_for_line(r"^enroll: ready (\S+)$")[1]
        fleet = LiveFleet(home, folder / "agents", stack, service, url, host=host)
        if with_broker:
            fleet.start_broker()
        yield fleet


def join(home: AgentHome, code: JoinCode, device: str) -> Finished:
    """`device-agent join`; the caller looks at the outcome."""
    return run("device-agent", "join", str(code), "--id", device, "--home", home.path)


def serial_of(home: AgentHome) -> str:
    return str(json.loads(home.meta.read_bytes())["serial"])


def status_of(home: AgentHome) -> dict[str, Any]:
    """What `device-agent status -o json` says."""
    fields: dict[str, Any] = json.loads(run("device-agent", "status", "-o", "json", "--home", home.path).check().stdout)
    return fields


def pin_of(fleet: LiveFleet) -> bytes:
    from cryptography import x509

    return pki.pin_of(x509.load_pem_x509_certificate(fleet.home.root.certificate.read_bytes()))


class Agent(Program):
    """`device-agent run`, ready."""

    def __init__(self, home: AgentHome, *options: str) -> None:
        super().__init__("device-agent", "run", "--home", home.path, *options)
        self.home = home

    def wait_ready(self) -> Self:
        self.wait_for_line(r"^device-agent: ready \S+$")
        return self


@dataclass
class Application:
    """A firmware: lines of JSON on the agent's socket."""

    home: AgentHome
    commands: tuple[str, ...] = ()
    path: Path | None = None  # where the agent listens, if not in its home
    connection: socket.socket = field(default_factory=lambda: socket.socket(socket.AF_UNIX))

    def __enter__(self) -> Self:
        self.connection.settimeout(within(20))
        self.connection.connect(str(self.path or self.home.path / "run" / "app.sock"))
        self._lines = self.connection.makefile("rb")
        self.welcome = self.next("welcome")
        self.say(type="register", app="test", commands=list(self.commands))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.close()
        self.connection.close()

    def say(self, **line: object) -> None:
        self.connection.sendall(json.dumps(line).encode() + b"\n")

    def next(self, kind: str) -> dict[str, Any]:
        """The next line of that type; what comes before is passed over."""
        for data in self._lines:
            line: dict[str, Any] = json.loads(data)
            if line["type"] == kind:
                return line
        raise AssertionError(f"the agent closed the socket before a line of type {kind}")


class Operator:
    """The fleet's first operator, connected: sends commands, and hears all that devices publish."""

    def __init__(self, fleet: LiveFleet) -> None:
        self._messages: queue.Queue[paho.MQTTMessage] = queue.Queue()
        self.heard: list[tuple[str, dict[str, Any]]] = []
        self._signer = DownlinkSigner(fleet.home.dispatch_signing)
        self._ready: queue.Queue[bool] = queue.Queue()
        identity = fleet.home.operator.identity
        context = ssl.create_default_context(cafile=fleet.home.root.certificate)
        context.load_cert_chain(identity.certificate, identity.key)
        self._client = paho.Client(CallbackAPIVersion.VERSION2, f"admin:{time.monotonic_ns()}")
        self._client.tls_set_context(context)
        self._client.on_connect = lambda client, *_: client.subscribe(ALL_UP, 1)
        self._client.on_subscribe = lambda *_: self._ready.put(True)
        self._client.on_message = lambda _client, _data, message: self._messages.put(message)
        self._client.connect(*fleet.broker_address)

    def __enter__(self) -> Self:
        self._client.loop_start()
        self._ready.get(timeout=within(20))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def send(self, device: str, name: str, command_id: str, seconds: float = 60, **args: object) -> None:
        """A command, as dispatch sends it."""
        now = datetime.now(UTC)
        deadline = now + timedelta(seconds=seconds)
        message = CommandMessage(DeviceId(device), now, deadline, args)
        self.publish_signed(Command(DeviceId(device), name, command_id).format(), message.encode(), deadline)

    def publish_signed(self, topic: str, payload: bytes, until: datetime) -> None:
        """Anything, with dispatch's signature."""
        self.publish(topic, self.signed(topic, payload, until))

    def signed(self, topic: str, payload: bytes, until: datetime) -> bytes:
        """As dispatch would send it."""
        return self._signer.sign(topic, payload, until)

    def publish(self, topic: str, payload: bytes) -> None:
        """Anything, until the broker has it."""
        self._client.publish(topic, payload, 1).wait_for_publish(within(20))

    def next(self, topic: str, **wanted: object) -> dict[str, Any]:
        """The next message on that topic whose fields are as wanted; what comes before is passed over."""
        deadline = time.monotonic() + within(20)
        while (left := deadline - time.monotonic()) > 0:
            try:
                message = self._messages.get(timeout=left)
            except queue.Empty:
                break
            fields: dict[str, Any] = json.loads(message.payload)
            self.heard.append((message.topic, fields))
            if message.topic == topic and wanted.items() <= fields.items():
                return fields
        raise AssertionError(f"nothing on {topic} with {wanted}")

    def until(
        self,
        is_enough: Callable[[list[tuple[str, dict[str, Any]]]], bool],
        is_hopeless: Callable[[], bool] = lambda: False,
    ) -> None:
        """Until all that was heard since the beginning is enough."""
        deadline = time.monotonic() + within(20)
        while not is_enough(self.heard):
            if time.monotonic() > deadline or is_hopeless():
                raise AssertionError(f"only {self.heard[-200:]}")
            with suppress(queue.Empty):
                message = self._messages.get(timeout=0.2)
                self.heard.append((message.topic, json.loads(message.payload)))

    def final_result(
        self, device: str, command_id: str, is_hopeless: Callable[[], bool] = lambda: False
    ) -> dict[str, Any]:
        """How the command went."""
        topic, states = f"devices/{device}/up/results/{command_id}", ("done", "failed", "expired")

        def finals() -> list[dict[str, Any]]:
            return [fields for name, fields in self.heard if name == topic and fields["state"] in states]

        self.until(lambda _heard: bool(finals()), is_hopeless)
        return finals()[-1]

    def result(self, device: str, command_id: str, state: str) -> dict[str, Any]:
        return self.next(f"devices/{device}/up/results/{command_id}", state=state)
