"""`device-agent run` against a real broker, over real mutual TLS."""

from __future__ import annotations

import json
import shutil
import signal
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet.layout import AgentHome
from tests.processes import run
from tests.system.agents import Agent, Application, LiveFleet, Operator, live_fleet, status_of
from tests.unit.device_agent.servers import tls_server


@pytest.fixture(scope="module", name="fleet")
def _fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveFleet]:
    with live_fleet(tmp_path_factory.mktemp("run"), with_broker=True) as fleet:
        yield fleet


def test_a_command_reaches_the_firmware_and_its_answer_the_operator(fleet: LiveFleet) -> None:
    """The main job of the whole project would not be done."""
    home = fleet.joined("pump-01")
    with Operator(fleet) as operator, Agent(home).wait_ready(), Application(home, ("echo",)) as app:
        operator.next("devices/pump-01/up/status", status="online")
        operator.next("devices/pump-01/up/hello")
        app.say(type="telemetry", stream="load", data={"l1": 0.5}, qos=1)
        assert {"l1": 0.5} == operator.next("devices/pump-01/up/telemetry/load")["data"]
        operator.send("pump-01", "echo", "c1", text="hi")
        command = app.next("command")
        assert ("c1", "echo", {"text": "hi"}) == (command["command_id"], command["name"], command["args"])
        operator.result("pump-01", "c1", "accepted")
        app.say(type="result", command_id="c1", state="done", output={"said": "hi"})
        assert {"said": "hi"} == operator.result("pump-01", "c1", "done")["output"]


def test_sigterm_says_goodbye_and_ends_with_0(fleet: LiveFleet) -> None:
    """A service manager would call it a failure, and the fleet would believe that the device is online."""
    home = fleet.joined("pump-02")
    with Operator(fleet) as operator, Agent(home).wait_ready() as agent:
        operator.next("devices/pump-02/up/status", status="online")
        assert 0 == agent.stop()
        operator.next("devices/pump-02/up/status", status="offline", reason="stopped")
    assert "agent.stopped" in agent.stderr
    assert "not-running" == status_of(home)["state"]


def test_a_killed_agent_is_offline_by_its_will(fleet: LiveFleet) -> None:
    """A device without power would look online for ever."""
    home = fleet.joined("pump-03")
    with Operator(fleet) as operator, Agent(home).wait_ready() as agent:
        operator.next("devices/pump-03/up/status", status="online")
        agent.kill()
        operator.next("devices/pump-03/up/status", status="offline", reason="connection lost")


def test_a_command_begun_before_kill_9_is_not_begun_again(fleet: LiveFleet) -> None:
    """A valve would open twice, or nobody would learn that it may have opened."""
    home = fleet.joined("pump-04")
    with Operator(fleet) as operator:
        with Agent(home).wait_ready() as agent, Application(home, ("open-valve",)) as app:
            operator.send("pump-04", "open-valve", "v1")
            app.next("command")
            agent.kill()
        with Agent(home).wait_ready(), Application(home, ("open-valve",)) as app:
            assert "restarted" in operator.result("pump-04", "v1", "failed")["error"]
            operator.send("pump-04", "open-valve", "v1")  # as dispatch would
            operator.send("pump-04", "open-valve", "v2")
            assert "v2" == app.next("command")["command_id"]


def test_the_agent_finds_a_broker_that_comes_back_elsewhere(fleet: LiveFleet) -> None:
    """A fleet whose broker got another port would be lost."""
    home = fleet.joined("pump-05")
    with Agent(home).wait_ready() as agent:
        assert fleet.broker is not None
        fleet.broker.stop()
        agent.wait_for_line("connection.failed", stream="stderr")
        mark = agent.line_count("stderr")
        fleet.start_broker()
        agent.wait_for_line(f"connection.ready .*:{fleet.broker_address[1]}", stream="stderr", after=mark, seconds=60)
        assert "online" == status_of(home)["state"]


def test_an_impostor_with_a_certificate_of_our_fleet_never_gets_a_connect(fleet: LiveFleet, tmp_path: Path) -> None:
    """Whoever steals another server's certificate would get every device's messages: here, the enrollment service's."""
    home, heard = fleet.joined("pump-06"), list[bytes]()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(fleet.home.enroll_server.certificate, fleet.home.enroll_server.key)

    def listen(connection: ssl.SSLSocket) -> None:
        while data := connection.recv(4096):
            heard.append(data)

    with tls_server(context, listen) as impostor:
        brokers = {"v": 1, "brokers": [f"mqtts://127.0.0.1:{impostor.port}"]}
        (home.path / "config.json").write_text(json.dumps(brokers))
        with Agent(home) as agent:
            agent.wait_for_line("connection.failed .*cause=impostor", stream="stderr")
            agent.wait_ready()  # the service names the real one
        assert 1 == impostor.accepted
    assert [] == heard


def test_known_brokers_are_enough_with_the_service_away(tmp_path: Path) -> None:
    """After a power cut no device would come back before the enrollment service."""
    with live_fleet(tmp_path, with_broker=True) as fleet:
        home = fleet.joined("pump-07")
        with Agent(home).wait_ready():
            pass
        fleet.service.stop()
        with Agent(home).wait_ready() as agent:
            assert "config.fetched" not in agent.stderr


def test_a_copy_of_an_identity_takes_over_and_the_fight_slows_down(fleet: LiveFleet) -> None:
    """Two machines with one identity would exchange the connection a hundred times a second."""
    home = fleet.joined("pump-08")
    copy = fleet.new_agent_home()
    shutil.copytree(home.path, copy.path, symlinks=True)
    with Agent(home).wait_ready() as first, Agent(copy).wait_ready() as second:
        first.wait_for_line("connection.failed .*cause=lost", stream="stderr")
        for agent in (second, first):
            agent.wait_for_line("connection.failed .*cause=short-lived", stream="stderr", seconds=60)
        assert first.stderr.count("connection.ready") + second.stderr.count("connection.ready") < 20
        assert "copy of this identity" in status_of(home)["hint"] + status_of(copy)["hint"]


def test_a_revoked_device_says_so_and_is_offline(fleet: LiveFleet) -> None:
    """Its owner would look for a network fault."""
    home = fleet.joined("pump-09")
    with Operator(fleet) as operator, Agent(home).wait_ready() as agent:
        operator.next("devices/pump-09/up/status", status="online")
        fleet.enroll("device", "revoke", "pump-09", "--yes")
        agent.wait_for_line("connection.failed .*cause=(refused|closed)", stream="stderr")
        said = status_of(home)
        assert "online" != said["state"]
        assert "enroll device show pump-09" in said["hint"]


def test_a_second_agent_on_one_home_is_refused(fleet: LiveFleet) -> None:
    """Two agents would take each other's connection for ever."""
    home = fleet.joined("pump-10")
    with Agent(home).wait_ready():
        second = run("device-agent", "run", "--home", home.path)
    assert 1 == second.returncode
    assert "another agent uses" in second.stderr


def test_a_key_that_others_can_read_is_refused(fleet: LiveFleet) -> None:
    """The agent would go on with a key that is not its own any more."""
    home = fleet.joined("pump-11")
    home.identity.key.chmod(0o644)
    refused = run("device-agent", "run", "--home", home.path)
    assert 1 == refused.returncode
    assert "hint: chmod 600" in refused.stderr


def test_an_idle_agent_stays_within_30_mb(fleet: LiveFleet) -> None:
    """DESIGN section 10: a Pi Zero has 512 MB for everything."""
    home = fleet.joined("pump-12")
    with Agent(home).wait_ready() as agent, Application(home, ("echo",)):
        status = Path(f"/proc/{agent.pid}/status").read_text()
        kilobytes = int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))
        assert kilobytes * 1024 <= 30_000_000
        assert "libcrypto" in Path(f"/proc/{agent.pid}/maps").read_text()
        assert "cryptography" not in Path(f"/proc/{agent.pid}/maps").read_text()
        assert "unicodedata" not in Path(f"/proc/{agent.pid}/maps").read_text()


def test_explain_shows_both_certificates_and_what_was_agreed(fleet: LiveFleet) -> None:
    """The diagram of mutual TLS that people learn from would be wrong, or hard to read."""
    home = fleet.joined("pump-13")
    told = run("device-agent", "explain", "--home", home.path).check().stdout
    for expected in (
        "ecdsa_secp256r1_sha256",
        "spiffe://acme.example/server/broker",
        "spiffe://acme.example/device/pump-13",
        "connection accepted",
        "devices/pump-13/up/#",
        json.loads(home.meta.read_bytes())["serial"],
    ):
        assert expected in told
    assert [] == [line for line in told.splitlines() if len(line) > 100 and "/" not in line]


def test_explain_leaves_the_running_agent_connected(fleet: LiveFleet) -> None:
    """Looking would change what is looked at: the agent would lose its connection."""
    home = fleet.joined("pump-14")
    with Agent(home).wait_ready() as agent:
        told = run("device-agent", "explain", "--home", home.path).check().stdout
        assert "so none is sent" in told
        assert "online" == status_of(home)["state"]
        assert "connection.failed" not in agent.stderr


def test_explain_of_an_impostor_shows_whom_it_met(fleet: LiveFleet) -> None:
    """Somebody behind a proxy that intercepts TLS would not learn whose certificate that was."""
    from tests.unit.device_agent.authority import new_authority
    from tests.unit.device_agent.servers import server_context

    home: AgentHome = fleet.joined("pump-15")
    folder = home.path / "impostor"
    context = server_context(new_authority("mallory").server("broker"), folder)
    fleet_config = home.path / "config.json"
    with tls_server(context, lambda connection: None) as impostor:
        fleet_config.write_text(json.dumps({"v": 1, "brokers": [f"mqtts://127.0.0.1:{impostor.port}"]}))
        meta = json.loads(home.meta.read_bytes()) | {"enroll_url": "https://127.0.0.1:1"}
        home.meta.write_text(json.dumps(meta))
        told = run("device-agent", "explain", "--home", home.path)
    assert 5 == told.returncode
    assert "CN=mallory servers" in told.stdout
    assert "Nothing of MQTT was sent" in told.stdout
    assert "is not of our fleet" in told.stderr


def test_sigint_ends_it_as_sigterm_does(fleet: LiveFleet) -> None:
    """Ctrl-C would print a traceback."""
    with Agent(fleet.joined("pump-16")).wait_ready() as agent:
        agent.send_signal(signal.SIGINT)
        assert 0 == agent.wait()
    assert "Traceback" not in agent.stderr
