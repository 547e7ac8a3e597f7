"""A certificate's renewal by real processes over real TLS: the agent, the service, the broker."""

from __future__ import annotations

import errno
import json
import random
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from device_agent.store import PosixDisk
from device_agent.succession import Succession
from fleet.join import parse_join_code
from fleet.layout import AgentHome
from tests.faults.cutting import Traced
from tests.faults.losing import losing
from tests.faults.power_cut import Cuts, cut_renewals
from tests.faults.renewals import joined, lives, renew_under_telemetry, until_renewed
from tests.processes import Finished, Program, run
from tests.system.agents import Agent, Application, LiveFleet, Operator, join, live_fleet, serial_of, status_of
from tests.unit.device_agent.servers import http_answer, read_request, tls_server


@pytest.fixture(scope="module", name="fleet")
def _fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveFleet]:
    with live_fleet(tmp_path_factory.mktemp("renewal"), with_broker=True, toml=lives(45)) as fleet:
        yield fleet


def states(fleet: LiveFleet, device: str) -> list[str]:
    """The state of each certificate, oldest first."""
    shown = json.loads(fleet.enroll("device", "show", device, "-o", "json").stdout)
    return [str(each["state"]) for each in shown["certificates"]]


def generations(home: AgentHome) -> list[str]:
    return sorted(path.name for path in home.path.glob("gen-*"))


def renew(home: AgentHome) -> Finished:
    return run("device-agent", "renew", "--home", home.path)


def ask_at(home: AgentHome, url: str) -> str:
    """The agent finds its service at `url` from now on; where it did before."""
    fields = json.loads(home.meta.read_bytes())
    home.meta.write_text(json.dumps(fields | {"enroll_url": url}))
    return str(fields["enroll_url"])


def service_address(fleet: LiveFleet) -> tuple[str, int]:
    parts = urlsplit(fleet.url)
    return str(parts.hostname), int(parts.port or 0)


def test_renew_gives_a_running_agent_a_new_key_with_one_reconnect(fleet: LiveFleet) -> None:
    """A renewal would interrupt a device for long, or leave it with the old key."""
    home = fleet.joined("pump-01")
    first, key = serial_of(home), home.identity.key.read_bytes()
    with Operator(fleet) as operator, Agent(home).wait_ready() as agent:
        renewed = renew(home).check()
        second = serial_of(home)
        assert second in renewed.stdout
        assert second != first
        assert key != home.identity.key.read_bytes()
        agent.wait_for_line("renewal.confirmed", stream="stderr")
        assert 2 == agent.stderr.count("connection.ready")
        assert "connection.failed" not in agent.stderr
        assert "renewed" == operator.next("devices/pump-01/up/events/renewal")["data"]["state"]
        said = status_of(home)
        assert ("online", second) == (said["state"], said["serial"])
        assert (1, 0, None) == tuple(said["renewal"][name] for name in ("renewed_count", "failed_count", "code"))
        assert "cryptography" not in Path(f"/proc/{agent.pid}/maps").read_text()
    assert "offline" not in [fields["status"] for topic, fields in operator.heard if topic.endswith("/status")]
    assert ["confirmed", "confirmed"] == states(fleet, "pump-01")
    assert ["gen-2"] == generations(home)


def test_certificates_renew_by_themselves_under_telemetry(fleet: LiveFleet) -> None:
    """Each renewal would cost messages; `./dev soak renewals` goes through twenty."""

    def once_by_itself_then_twice_when_asked(agent: Agent) -> None:
        until_renewed(1, 60)(agent)
        for _ in range(2):
            renew(agent.home).check()

    outcome = renew_under_telemetry(fleet, "pump-02", once_by_itself_then_twice_when_asked)
    outcome.check()
    assert 3 == outcome.renewals
    fleet.service.wait_for_line("certificate.superseded device=pump-02", stream="stderr")


@pytest.mark.parametrize("role", ["device", "operator", "service"])
def test_whoever_has_no_running_agent_renews(fleet: LiveFleet, role: str) -> None:
    """A device whose agent is stopped, and an operator who has none, could not renew."""
    made = fleet.enroll("token", "create", "--device", f"a-{role}", "--role", role, "-o", "json")
    home = fleet.new_agent_home()
    join(home, parse_join_code(json.loads(made.stdout)["code"]), f"a-{role}").check()
    first = serial_of(home)
    renew(home).check()
    assert first != serial_of(home)
    assert ["confirmed", "confirmed"] == states(fleet, f"a-{role}")
    assert ["gen-2"] == generations(home)


def test_the_first_operator_renews_and_goes_on(fleet: LiveFleet) -> None:
    """Its generations are made by the service, without a note of a request: they must not look like rubbish."""
    home = fleet.home.operator
    first = serial_of(home)
    ask_at(home, fleet.url)
    renew(home).check()
    assert first != serial_of(home)
    with Operator(fleet):
        pass


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_lost_answer_makes_no_second_certificate(fleet: LiveFleet, number: int) -> None:
    """Each lost answer would leave a key that connects, and use up the device's right to renew: 1 the certificate,
    2 the CA's, 3 the proof, 4 the confirmation.
    """
    home = fleet.joined(f"pump-1{number}")
    with losing(service_address(fleet), number) as (relay, loss):
        real = ask_at(home, relay.url)
        lost = renew(home)
        assert loss.count >= number
        again = renew(home) if lost.returncode else lost
    again.check()
    assert (0 if number == 4 else 5) == lost.returncode, lost.stderr
    assert 2 == len(states(fleet, f"pump-1{number}"))
    ask_at(home, real)
    with Agent(home).wait_ready() as agent:
        if number == 4:  # the answer alone was lost, and so the agent tells it again
            agent.wait_for_line("renewal.confirmed", stream="stderr")
    assert ["gen-2"] == generations(home)


def test_a_lost_word_of_the_pacing_costs_nothing(fleet: LiveFleet) -> None:
    """A device would ask for a certificate out of its turn, or never again."""
    home = fleet.joined("pump-15")
    child = (sys.executable, "-m", "device_agent.renewal_child", "--home", home.path)
    with losing(service_address(fleet), 1) as (relay, loss):
        ask_at(home, relay.url)
        lost = json.loads(run(*child).check().stdout)
        assert loss.count >= 1
        assert 1 == len(states(fleet, "pump-15")), "it went on without an answer"
        again = json.loads(run(*child).check().stdout)
    assert ("failed", "ready") == (lost["outcome"], again["outcome"])
    assert 2 == len(states(fleet, "pump-15"))


def test_a_proxy_that_answers_502_is_told_and_changes_nothing(fleet: LiveFleet, tmp_path: Path) -> None:
    """A device would go offline because of its renewal, or nobody would know why it fails."""
    home = fleet.joined("pump-20")
    first = serial_of(home)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(fleet.home.enroll_server.certificate, fleet.home.enroll_server.key)

    def refuse(connection: ssl.SSLSocket) -> None:
        read_request(connection)
        connection.sendall(http_answer("502 Bad Gateway", b"no upstream\n", "Connection: close\r\n"))

    with Agent(home).wait_ready():  # it knows its brokers now
        pass
    with tls_server(context, refuse) as proxy, Operator(fleet) as operator:
        real = ask_at(home, proxy.url)
        with Agent(home).wait_ready() as agent:
            refused = renew(home)
            assert 5 == refused.returncode
            assert "service-error" in refused.stderr
            assert "HTTP 502" in refused.stderr
            said = status_of(home)
            assert ("online", "service-error", 1) == (
                said["state"],
                said["renewal"]["code"],
                said["renewal"]["failures"],
            )
            looked = json.loads(run("device-agent", "doctor", "-o", "json", "--home", home.path).stdout)
            assert "renewal-fails" in {each["code"] for each in looked}
            told = operator.next("devices/pump-20/up/events/renewal")["data"]
            assert ("failed", "service-error") == (told["state"], told["code"])
            assert 1 == agent.stderr.count("connection.ready")
            assert "failed once (service-error)" in run("device-agent", "status", "--home", home.path).stdout
    assert first == serial_of(home)
    ask_at(home, real)
    renew(home).check()


def test_a_successor_that_the_broker_refuses_is_given_back(fleet: LiveFleet) -> None:
    """A device would be lost by its own renewal: here it was promoted, and then revoked, before it ever connected."""
    home = fleet.joined("pump-21")
    first = serial_of(home)
    made = run(sys.executable, "-m", "device_agent.renewal_child", "--home", home.path, "--paced").check()
    assert "ready" == json.loads(made.stdout)["outcome"]
    assert first == serial_of(home)
    second = Succession(home, PosixDisk()).promote_candidate().serial
    fleet.enroll("cert", "revoke", second, "--yes")
    with Agent(home) as agent:
        agent.wait_for_line("renewal.failed .*code=broker-refuses", stream="stderr")
        agent.wait_ready()
        assert first == serial_of(home) == status_of(home)["serial"]
        renew(home).check()
        agent.wait_for_line("renewal.confirmed", stream="stderr")
    assert serial_of(home) not in (first, second)
    assert "confirmed" == states(fleet, "pump-21")[-1]


@pytest.mark.timeout(240)
def test_a_renewal_killed_anywhere_leaves_a_device_that_connects(fleet: LiveFleet, tmp_path: Path) -> None:
    """A power cut in a renewal would cost a journey to the device."""
    cuts = Cuts(fleet, tmp_path, random.Random(11))
    cut_renewals(cuts, step=25)
    assert cuts.count >= 4


def test_an_agent_killed_while_it_renews_comes_back(fleet: LiveFleet) -> None:
    """A watchdog, or the kernel out of memory, would cost the device its identity."""
    home = fleet.joined("pump-22")
    for line in ("renewal.begun", "renewal.trying", "connection.made .*", "renewal.done"):
        with Agent(home).wait_ready() as agent, Application(home) as app:
            mark = agent.line_count("stderr")
            app.say(type="renew")
            agent.wait_for_line(line, stream="stderr", after=mark)
            agent.kill()
    with Agent(home).wait_ready() as agent:
        finished = [renew(home)]
        while "under-way" in finished[-1].stderr:  # a process of the agent that was killed is about to end
            finished.append(renew(home))
        finished[-1].check()
        agent.wait_for_line("renewal.confirmed", stream="stderr")
        assert serial_of(home) == status_of(home)["serial"]
    assert 1 == len(generations(home))
    assert set(states(fleet, "pump-22")) <= {"confirmed", "superseded"}


@pytest.mark.timeout(240)
def test_a_service_that_is_away_when_it_is_due_is_waited_for(fleet: LiveFleet) -> None:
    """A device would run out of its certificate because of an outage that was over in time, or go offline at once."""
    with Agent(joined(fleet, "pump-23")).wait_ready() as agent:
        port = service_address(fleet)[1]
        fleet.service.stop()
        agent.wait_for_line("renewal.failed .*code=unreachable", stream="stderr", seconds=60)
        assert "online" == status_of(agent.home)["state"]
        fleet.service = fleet.stack.enter_context(
            Program("enroll", "serve", "--home", fleet.home.path, "--listen", f"127.0.0.1:{port}")
        )
        agent.wait_for_line("renewal.confirmed", stream="stderr", seconds=60)
        assert 2 == agent.stderr.count("connection.ready")
        assert "connection.failed" not in agent.stderr


@pytest.mark.parametrize("call", ["write", "mkdir", "rename", "symlink"])
def test_a_full_disk_keeps_the_certificate_in_use(fleet: LiveFleet, tmp_path: Path, call: str) -> None:
    """A card that other programs have filled would take the identity with it."""
    home = fleet.joined(f"pump-3-{call}")
    first = serial_of(home)
    folder = home.path / "gen-2"
    names = ["key.pem", "request.json.new", "request.json", "cert.pem.new", "cert.pem", "meta.json.new", "meta.json"]
    paths = [home.path, folder, home.path / "current.new", home.path / "current", *(folder / name for name in names)]
    full = f"{call}:error={errno.errorcode[errno.ENOSPC]}"
    with Traced(tmp_path / "log", paths, full, "device-agent", "renew", "--home", home.path) as agent:
        assert 1 == agent.wait(), agent.describe()
    assert "No space left on device" in agent.stderr
    assert "Traceback" not in agent.stderr
    assert first == serial_of(home)
    renew(home).check()
    assert first != serial_of(home)
    assert None is Succession(home, PosixDisk()).previous()
