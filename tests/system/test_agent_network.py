"""A device on a bad network: real processes, real TLS, a relay that stops, a name server that never answers."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from device_agent import signers
from device_agent.store import PosixDisk
from enroll import downlink
from fleet.identity import DeviceId
from fleet.layout import AgentHome
from fleet.messages import ControlMessage
from fleet.topics import Control
from tests.deadlines import within
from tests.faults.relay import Relay
from tests.processes import Program, command_line
from tests.system.agents import Agent, Application, LiveFleet, Operator, live_fleet, status_of
from tests.unit.device_agent.authority import new_authority
from tests.unit.device_agent.servers import server_context, tls_server

_NOWHERE = "https://127.0.0.1:1"


@pytest.fixture(scope="module", name="fleet")
def _fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveFleet]:
    with live_fleet(tmp_path_factory.mktemp("network"), with_broker=True) as fleet:
        yield fleet


def point_to(home: AgentHome, *brokers: str, enroll_url: str | None = None) -> None:
    """Where the agent looks first; and, if given, where it asks."""
    fields = {"v": 1, "brokers": [f"mqtts://{broker}" for broker in brokers]}
    (home.path / "config.json").write_text(json.dumps(fields))
    if enroll_url is not None:
        meta = json.loads(home.meta.read_bytes()) | {"enroll_url": enroll_url}
        home.meta.write_text(json.dumps(meta))


def status_until(home: AgentHome, is_so: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    deadline = time.monotonic() + within(20)
    while not is_so(fields := status_of(home)):
        assert time.monotonic() < deadline, fields
    return fields


def test_a_half_open_connection_is_noticed_and_costs_nothing(fleet: LiveFleet) -> None:
    """A mobile link that dies in silence would keep a device away until somebody restarts it."""
    home = fleet.joined("pump-01")
    with Relay(fleet.broker_address) as relay, Operator(fleet) as operator:
        point_to(home, f"127.0.0.1:{relay.port}", enroll_url=_NOWHERE)
        with Agent(home, "--keepalive", "2").wait_ready() as agent, Application(home) as app:
            relay.freeze()
            for number in range(5):
                app.say(type="telemetry", stream="load", data={"n": number}, qos=1)
            status_until(home, lambda fields: bool(fields["spool"]["messages"] == 5))
            agent.wait_for_line("connection.failed .*cause=(lost|timed-out)", stream="stderr")
            relay.thaw()
            heard = [operator.next("devices/pump-01/up/telemetry/load")["data"]["n"] for _ in range(5)]
            assert [0, 1, 2, 3, 4] == heard


def test_a_slow_link_that_breaks_again_and_again_loses_and_repeats_nothing_unmarked(fleet: LiveFleet) -> None:
    """A mobile uplink would lose measurements, mix them up, or make two of one."""
    home = fleet.joined("pump-08")
    with Relay(fleet.broker_address, delay_seconds=0.02) as relay, Operator(fleet) as operator:
        point_to(home, f"127.0.0.1:{relay.port}", enroll_url=_NOWHERE)
        with Agent(home).wait_ready() as agent, Application(home) as app:
            for part in range(4):
                for number in range(60 * part, 60 * part + 60):
                    app.say(type="telemetry", stream="load", data={"n": number}, qos=1)
                operator.next("devices/pump-08/up/telemetry/load", data={"n": 60 * part})
                mark = agent.line_count("stderr")
                relay.cut()
                agent.wait_for_line("connection.ready", stream="stderr", after=mark, seconds=60)
            operator.next("devices/pump-08/up/telemetry/load", data={"n": 239})
    heard = [fields for topic, fields in operator.heard if topic == "devices/pump-08/up/telemetry/load"]
    first = list({(each["boot"], each["seq"]): each["data"]["n"] for each in heard}.values())
    assert list(range(240)) == first


def test_a_name_server_that_never_answers_hangs_nothing_but_the_look_up(fleet: LiveFleet, tmp_path: Path) -> None:
    """Applications, `status` and SIGTERM would wait for a resolver behind a broken router."""
    home = fleet.joined("pump-02")
    point_to(home, "broker.acme.example:8883", enroll_url="https://enroll.acme.example:8443")
    resolver = tmp_path / "resolv.conf"
    resolver.write_text("nameserver 127.0.0.53\noptions timeout:30 attempts:3\n")
    hosts = tmp_path / "nsswitch.conf"
    hosts.write_text("hosts: files dns\n")
    with Program(
        "unshare", "-rmn", sys.executable, "-c", _DEAF_RESOLVER, resolver, hosts, *agent_command(home)
    ) as agent:
        agent.wait_for_line("agent.started", stream="stderr")
        status_until(home, lambda fields: bool(fields["state"] == "connecting"))
        with Application(home) as app:
            app.say(type="telemetry", stream="load", data=1)
            app.say(type="status")
            assert "connecting" == app.next("status")["state"]
        began = time.monotonic()
        assert 0 == agent.stop()
        assert time.monotonic() - began < within(5)


# In a network of its own: an address of a name server that hears everything and says nothing.
_DEAF_RESOLVER = """
import fcntl, os, socket, struct, subprocess, sys
for source, target in zip(sys.argv[1:3], ("/etc/resolv.conf", "/etc/nsswitch.conf")):
    subprocess.run(["mount", "--bind", source, target], check=True)
deaf = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
fcntl.ioctl(deaf, 0x8914, struct.pack("16sH14s", b"lo", 0x49, b""))  # SIOCSIFFLAGS: up, loopback, running
deaf.bind(("127.0.0.53", 53))
deaf.set_inheritable(True)
os.execv(sys.argv[3], sys.argv[3:])
"""


def agent_command(home: AgentHome) -> list[str]:
    return command_line("device-agent", "run", "--home", home.path)


def test_a_captive_portal_gets_nothing_and_is_called_by_its_name(fleet: LiveFleet, tmp_path: Path) -> None:
    """A hotel's Wi-Fi would be told who we are, or its owner would look for a broken broker."""
    home, heard = fleet.joined("pump-03"), list[bytes]()
    context = server_context(new_authority("hotel").server("broker", "enroll"), tmp_path / "portal")
    with tls_server(context, lambda connection: heard.append(connection.recv(4096))) as portal:
        point_to(home, f"127.0.0.1:{portal.port}", enroll_url=portal.url)
        with Agent(home) as agent:
            agent.wait_for_line("connection.failed .*cause=not-our-ca", stream="stderr")
            fields = status_until(home, lambda fields: fields["cause"] == "not-our-ca")
    assert "captive portal" in fields["hint"]
    assert [] == [data for data in heard if data]


def test_a_network_that_speaks_ipv6_alone_is_enough(tmp_path: Path) -> None:
    """A site without IPv4 could not use any of this."""
    with live_fleet(tmp_path, with_broker=True, host="::1") as fleet:
        assert "[::1]" in fleet.broker_url
        home = fleet.joined("pump-04")
        with Agent(home).wait_ready():
            assert "[::1]" in status_of(home)["broker"]


def test_the_next_of_several_brokers_is_taken(fleet: LiveFleet) -> None:
    """A second broker would be there for nothing."""
    home = fleet.joined("pump-05")
    host, port = fleet.broker_address
    point_to(home, "127.0.0.1:1", "127.0.0.1:2", f"{host}:{port}", enroll_url=_NOWHERE)
    with Agent(home).wait_ready() as agent:
        assert 2 == agent.stderr.count("cause=unreachable")


def test_with_the_broker_away_and_the_service_there_the_status_says_which(fleet: LiveFleet) -> None:
    """Its owner would look at the wrong machine."""
    home = fleet.joined("pump-06")
    point_to(home, "127.0.0.1:1")
    with Agent(home) as agent:
        agent.wait_for_line("connection.failed .*cause=unreachable peer=127.0.0.1:1", stream="stderr")
        agent.wait_ready()  # the service names the real one


def test_control_spreads_the_return_of_a_device(fleet: LiveFleet) -> None:
    """A broker that restarts would have its whole fleet back within one second."""
    home = fleet.joined("pump-07")
    with Relay(fleet.broker_address) as relay, Operator(fleet) as operator:
        point_to(home, f"127.0.0.1:{relay.port}", enroll_url=_NOWHERE)
        signers.save(PosixDisk(), home, signers.Signers().told(downlink.signers(fleet.home)))
        with Agent(home, "--keepalive", "2").wait_ready() as agent:
            now, pump = datetime.now(UTC), DeviceId("pump-07")
            control = ControlMessage(pump, now, 1e6)
            operator.publish_signed(Control(pump).format(), control.encode(), now + timedelta(minutes=1))
            agent.wait_for_line("control.received .*reconnect_seconds=3600", stream="stderr")
            relay.freeze()
            lost = agent.wait_for_line(r"connection.failed .*retry_seconds=([\d.]+)", stream="stderr")
            assert float(lost[1]) > 0
