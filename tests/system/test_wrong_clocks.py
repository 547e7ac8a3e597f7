"""Clocks that are wrong, under real processes: whoever is legitimate ends connected, and nobody else ever does."""

from __future__ import annotations

import json
import secrets
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from enroll import authority, keys
from enroll.issuer import client_names, serial_number, server_names
from fleet import pki
from fleet.clock import encode_seen, format_http_date
from fleet.identity import DeviceId, Principal, Role, Server
from fleet.layout import AdminHome, AgentHome, IdentityFiles
from tests.deadlines import within
from tests.fleets import CRL_URL, DOMAIN, new_home
from tests.processes import Program, run
from tests.system.agents import Application, LiveFleet, Operator, live_fleet
from tests.unit.device_agent.servers import http_answer, read_request, tls_server
from tests.wrong_clocks import EPOCH, FAR_AHEAD, RIGHT, MovedClock, at, shifted

DAY, HOUR, MINUTE = timedelta(days=1), timedelta(hours=1), timedelta(minutes=1)


@pytest.fixture(scope="module", name="fleet")
def _fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveFleet]:
    """A fleet whose clocks are right."""
    with live_fleet(tmp_path_factory.mktemp("clocks"), with_broker=True) as fleet:
        yield fleet


def joined(fleet: LiveFleet, device: str, clock: str) -> AgentHome:
    """The home of a device that enrolled by that clock."""
    home, code = fleet.new_agent_home(), fleet.invite(device)
    run("device-agent", "join", str(code), "--id", device, "--home", home.path, env=at(clock)).check()
    return home


def running(home: AgentHome, clock: str) -> Program:
    return Program("device-agent", "run", "--home", home.path, env=at(clock))


def clock_of(home: AgentHome) -> dict[str, Any]:
    """What the running agent says of its clock."""
    shown = json.loads(run("device-agent", "status", "-o", "json", "--home", home.path).check().stdout)
    found: dict[str, Any] = shown["clock"]
    return found


@pytest.mark.parametrize(
    ("name", "clock", "code"),
    [
        ("epoch", EPOCH, "clock-wrong"),
        ("far", FAR_AHEAD, "clock-wrong"),
        ("ahead", shifted(DAY), "ok"),
        ("behind", shifted(-DAY), "clock-wrong"),
    ],
)
def test_a_device_with_a_wrong_clock_enrols_and_connects(fleet: LiveFleet, name: str, clock: str, code: str) -> None:
    """A Pi without a battery would never come online, or renew what is new, or raise an alarm about it."""
    home = joined(fleet, name, clock)
    with running(home, clock) as agent:
        agent.wait_for_line(rf"^device-agent: ready {name}$")
        assert code == clock_of(home)["code"]
        assert "renewal.begun" not in agent.stderr
        assert "renewal.alarm" not in agent.stderr
    assert ["gen-1"] == [path.name for path in home.path.glob("gen-*")]


def test_a_clock_may_jump_while_an_agent_runs(fleet: LiveFleet, tmp_path: Path) -> None:
    """1970, then NTP; then 2040 for a while: a fleet would renew at once, and drop its commands as expired."""
    home, clock = joined(fleet, "jumper", RIGHT), MovedClock(tmp_path / "clock")
    clock.set(EPOCH)
    with (
        Operator(fleet) as operator,
        Program("device-agent", "run", "--home", home.path, env=clock.environment) as agent,
    ):
        agent.wait_for_line("^device-agent: ready jumper$")
        with Application(home, ("blink",)) as firmware:
            clock.set(RIGHT)
            assert "system" == clock_of(home)["basis"]
            agent.wait_for_line("clock.believed", stream="stderr")
            clock.set(FAR_AHEAD)
            assert "steady" == clock_of(home)["basis"]
            operator.send("jumper", "blink", "c1")
            assert "blink" == firmware.next("command")["name"]
            firmware.say(type="result", command_id="c1", state="done")
            assert "done" == operator.final_result("jumper", "c1")["state"]
        mark = agent.line_count("stderr")
        fleet.enroll("device", "suspend", "jumper")
        agent.wait_for_line(r"connection.failed", stream="stderr", after=mark)
        fleet.enroll("device", "resume", "jumper")
        agent.wait_for_line("connection.ready", stream="stderr", after=mark)  # made anew, in 2040
        assert "server" == clock_of(home)["basis"]
        clock.set(RIGHT)
        assert "system" == clock_of(home)["basis"]
        assert "renewal.begun" not in agent.stderr
        assert "renewal.alarm" not in agent.stderr
        assert agent.returncode is None


@contextmanager
def gateway(folder: Path, environment: Mapping[str, str]) -> Iterator[LiveFleet]:
    """A fleet whose service and broker have that clock; it knew the time when it ran last."""
    home = new_home(folder / "fleet")
    home.clock.write_bytes(encode_seen(datetime.now(UTC)))
    with ExitStack() as stack:
        served = ("--home", home.path, "--listen", "127.0.0.1:0")
        service = stack.enter_context(Program("enroll", "serve", *served, env=environment))
        url = service.wait_for_line(r"^enroll: ready (\S+)$")[1]
        broker = stack.enter_context(Program("broker", "serve", *served, env=environment))
        broker_url = broker.wait_for_line(r"^broker: ready (\S+)$")[1]
        yield LiveFleet(home, folder / "agents", stack, service, url, broker, broker_url)


@pytest.fixture(scope="module", name="gateway_in_1970")
def _gateway_in_1970(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveFleet]:
    with gateway(tmp_path_factory.mktemp("gateway"), at(EPOCH)) as fleet:
        yield fleet


@pytest.mark.parametrize(("name", "clock"), [("right", RIGHT), ("epoch", EPOCH), ("far", FAR_AHEAD)])
def test_a_gateway_in_1970_lets_its_devices_in(gateway_in_1970: LiveFleet, name: str, clock: str) -> None:
    """After a power cut on a site without a network nobody would get in, or with a certificate dated 1970."""
    fleet = gateway_in_1970
    home = joined(fleet, name, clock)
    with running(home, clock) as agent:
        agent.wait_for_line(rf"^device-agent: ready {name}$")
    leaf = x509.load_pem_x509_certificate(home.identity.certificate.read_bytes())
    assert abs(leaf.not_valid_before_utc - datetime.now(UTC)) < DAY
    assert abs(leaf.not_valid_after_utc - datetime.now(UTC) - 90 * DAY) < DAY


def test_a_gateway_in_1970_says_so(gateway_in_1970: LiveFleet) -> None:
    """Somebody has to set that clock: until then what expired since the last time is not noticed."""
    fleet = gateway_in_1970
    assert fleet.broker is not None
    for program in (fleet.service, fleet.broker):
        said = program.wait_for_line("clock.wrong (.*)", stream="stderr")[1]
        assert "the clock is at 1970-01-01" in said
    shown = json.loads(run("enroll", "status", "-o", "json", "--home", fleet.home.path, env=at(EPOCH)).check().stdout)
    assert ("clock-wrong", True) == (shown["clock"]["code"], "chrony" in shown["clock"]["hint"])


def expired_client(home: AdminHome, folder: Path, ended: timedelta) -> IdentityFiles:
    """A device's certificate by this very fleet that ended so long ago, and its key: stolen, say."""
    issuer = authority.load(home, DOMAIN, CRL_URL).devices
    key, principal = keys.new_key(), Principal(Role.DEVICE, DeviceId("stolen"))
    number, life = serial_number(secrets.token_bytes(20)), 2 * HOUR
    leaf = issuer.issue(
        pki.CLIENT,
        key.public_key(),
        client_names(DOMAIN, principal),
        serial=number,
        shard=1,
        now=datetime.now(UTC) - ended - life,
        life=life,
    )
    return IdentityFiles(*write_identity(folder, leaf, issuer.certificate, key))


def write_identity(
    folder: Path, leaf: x509.Certificate, issuer: x509.Certificate, key: ec.EllipticCurvePrivateKey
) -> tuple[Path, Path]:
    """Certificate, with its issuer's, and key in files."""
    folder.mkdir()
    keys.write_private(folder / "key.pem", keys.encode_key(key))
    (folder / "cert.pem").write_bytes(b"".join(each.public_bytes(Encoding.PEM) for each in (leaf, issuer)))
    return folder / "cert.pem", folder / "key.pem"


@dataclass
class StolenServers:
    """A service and a broker with certificates of this very fleet that ended ten minutes ago; what they heard."""

    fleet: LiveFleet
    folder: Path
    date: datetime
    asked: list[str] = field(default_factory=list)
    heard: list[bytes] = field(default_factory=list)

    def _context(self, server: Server) -> ssl.SSLContext:
        issuer, key = authority.load(self.fleet.home, DOMAIN, CRL_URL).servers, keys.new_key()
        now, number = datetime.now(UTC) - 70 * MINUTE, serial_number(secrets.token_bytes(20))
        names = server_names(DOMAIN, server, ("127.0.0.1",))
        leaf = issuer.issue(pki.SERVER, key.public_key(), names, serial=number, shard=1, now=now, life=HOUR)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*write_identity(self.folder / server.value, leaf, issuer.certificate, key))
        return context

    def _serve(self, connection: ssl.SSLSocket) -> None:
        if request := read_request(connection):
            self.asked.append(request.split(b" ")[1].decode())
            connection.sendall(http_answer("200 OK", b"", f"Date: {format_http_date(self.date)}\r\n"))

    def _broke(self, connection: ssl.SSLSocket) -> None:
        if heard := connection.recv(4096):
            self.heard.append(heard)

    @contextmanager
    def in_the_way_of(self, home: AgentHome) -> Iterator[None]:
        """The device looks for its service and broker here, as long as this lasts."""
        broker_file, found = home.path / "config.json", json.loads(home.meta.read_bytes())
        with (
            tls_server(self._context(Server.ENROLL), self._serve) as service,
            tls_server(self._context(Server.BROKER), self._broke) as broker,
        ):
            broker_file.write_text(json.dumps({"v": 1, "brokers": [f"mqtts://127.0.0.1:{broker.port}"]}))
            home.meta.write_text(json.dumps(found | {"enroll_url": service.url}))
            yield
        broker_file.unlink()
        home.meta.write_text(json.dumps(found))


@pytest.mark.parametrize(("name", "clock"), [("turned-back", shifted(-20 * MINUTE)), ("in-2040", FAR_AHEAD)])
def test_stolen_servers_do_not_get_a_device_whatever_its_clock(
    fleet: LiveFleet, name: str, clock: str, tmp_path: Path
) -> None:
    """By a clock that was turned back, or by the Date that they tell, their certificates would be good."""
    home, date = joined(fleet, name, RIGHT), datetime.now(UTC) - 20 * MINUTE
    servers, files = StolenServers(fleet, tmp_path, date), sorted(home.path.rglob("gen-*/*.pem"))
    with servers.in_the_way_of(home), running(home, clock) as agent:
        failed = agent.wait_for_line(r"connection.failed .*cause=(\S+)", stream="stderr")[1]
        assert "peer-expired" == failed
        if name == "in-2040":
            agent.wait_for_line("clock.date_refused", stream="stderr")
    assert ([], set()) == (servers.heard, set(servers.asked) - {"/.well-known/est/cacerts"})
    assert files == sorted(home.path.rglob("gen-*/*.pem"))
    with running(home, clock) as agent:
        agent.wait_for_line(f"^device-agent: ready {name}$")


def is_let_in(fleet: LiveFleet, address: tuple[str, int], identity: IdentityFiles) -> bool:
    """Whether that server answers anything to `identity`, which says CONNECT, or nothing in HTTP."""
    context = ssl.create_default_context(cafile=fleet.home.root.certificate)
    context.load_cert_chain(identity.certificate, identity.key)
    try:
        with (
            socket.create_connection(address, within(10)) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as secure,
        ):
            secure.sendall(b"\x10\x12\x00\x04MQTT\x04\x02\x00\x0a\x00\x06stolen")
            return bool(secure.recv(4))
    except OSError:
        return False


def test_a_stolen_expired_key_does_not_get_into_a_gateway_in_1970(gateway_in_1970: LiveFleet, tmp_path: Path) -> None:
    """In 1970 nothing has expired: the floor has to know it."""
    fleet = gateway_in_1970
    assert fleet.broker is not None
    stolen = expired_client(fleet.home, tmp_path / "stolen", ended=HOUR)
    mark = fleet.broker.line_count("stderr")
    assert not is_let_in(fleet, fleet.broker_address, stolen)
    said = fleet.broker.wait_for_line("connection.refused (.*)", stream="stderr", after=mark)[1]
    assert "reason=handshake" in said
    assert "expired" in said


def test_an_expired_certificate_is_no_credential_for_a_service_in_1970(
    gateway_in_1970: LiveFleet, tmp_path: Path
) -> None:
    """What has ended would be renewed, as if it had not."""
    fleet = gateway_in_1970
    stolen = expired_client(fleet.home, tmp_path / "stolen", ended=HOUR)
    mark, port = fleet.service.line_count("stderr"), int(fleet.url.rpartition(":")[2])
    assert not is_let_in(fleet, ("127.0.0.1", port), stolen)
    assert "expired" in fleet.service.wait_for_line("handshake.failed (.*)", stream="stderr", after=mark)[1]


def until_noticed(fleet: LiveFleet, word: str) -> None:
    """Service and broker have noticed what became of their clock, and the broker judges dates accordingly."""
    assert fleet.broker is not None
    for program in (fleet.service, fleet.broker):
        program.wait_for_line(word, stream="stderr")
    fleet.broker.wait_for_line("trust.replaced", stream="stderr")


def test_a_gateway_whose_clock_arrives_goes_by_it(tmp_path: Path) -> None:
    """NTP comes a minute after the start: the gateway would count on by itself for ever."""
    clock = MovedClock(tmp_path / "clock")
    clock.set(EPOCH)
    with gateway(tmp_path, clock.environment) as fleet:
        assert fleet.broker is not None
        clock.set(RIGHT)
        until_noticed(fleet, "clock.believed")
        with running(fleet.joined("late"), RIGHT) as agent:
            agent.wait_for_line("^device-agent: ready late$")
        stolen, mark = expired_client(fleet.home, tmp_path / "stolen", ended=HOUR), fleet.broker.line_count("stderr")
        assert not is_let_in(fleet, fleet.broker_address, stolen)
        assert "expired" in fleet.broker.wait_for_line("connection.refused (.*)", stream="stderr", after=mark)[1]


def test_a_gateway_whose_clock_is_lost_while_it_runs_lets_devices_in(tmp_path: Path) -> None:
    """A clock that falls back to 1970 would lock the fleet out until somebody sees why."""
    clock = MovedClock(tmp_path / "clock")
    clock.set(RIGHT)
    with gateway(tmp_path, clock.environment) as fleet:
        clock.set(EPOCH)
        until_noticed(fleet, "clock.wrong")
        with running(fleet.joined("steadfast"), RIGHT) as agent:
            agent.wait_for_line("^device-agent: ready steadfast$")
