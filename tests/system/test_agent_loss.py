"""A flaky uplink, by the kernel itself: it drops TCP packets of a network namespace at random, or all of them."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from fleet.layout import AdminHome, AgentHome
from tests.fleets import new_home
from tests.processes import Program, run
from tests.system.agents import Application

MESSAGES = 60
STREAMS = ("pressure", "flow")
_TABLE = "fleet_loss"


@dataclass(frozen=True, slots=True)
class Network:
    """A network of one loopback, of its own."""

    name: str

    def command(self, program: str, *args: object) -> tuple[object, ...]:
        """The arguments of `ip` that run one of our programs, or any of PATH, in it."""
        ours = Path(sys.executable).with_name(program)
        return ("netns", "exec", self.name, ours if ours.exists() else program, *args)

    def program(self, program: str, *args: object) -> Program:
        return Program("ip", *self.command(program, *args))

    def lose(self, percent: int) -> None:
        """Drop so many of a hundred TCP packets from now on: both directions of a loopback arrive on it."""
        rule = f"add rule inet {_TABLE} arrivals meta l4proto tcp numgen random mod 100 <= {percent - 1} counter drop\n"
        self._nft(f"flush chain inet {_TABLE} arrivals\n" + (rule if percent else ""))

    def lost(self) -> int:
        """How many packets the rule in force has dropped."""
        listed = run("ip", *self.command("nft", "list", "table", "inet", _TABLE)).check().stdout
        return sum(int(each) for each in re.findall(r"counter packets (\d+)", listed))

    def prepare(self) -> None:
        run("ip", "-n", self.name, "link", "set", "lo", "up").check()
        chain = "{ type filter hook input priority 0; }"
        self._nft(f"add table inet {_TABLE}\nadd chain inet {_TABLE} arrivals {chain}\n")

    def _nft(self, script: str) -> None:
        run("ip", *self.command("nft", "-f", "-"), stdin=script).check()


@contextmanager
def network() -> Iterator[Network]:
    """A new network; it is gone at the end, whatever happens."""
    made = Network(f"fleet-loss-{os.getpid()}")
    done = run("ip", "netns", "add", made.name)
    if done.returncode:
        pytest.fail(f"no network namespace can be made here: run the tests as root, with CAP_SYS_ADMIN\n{done.stderr}")
    try:
        made.prepare()
        yield made
    finally:
        run("ip", "netns", "delete", made.name).check()


@dataclass(frozen=True, slots=True)
class Site:
    """A fleet within a network, one device of it, and the operator's ear."""

    network: Network
    agent: Program
    home: AgentHome
    ear: Program

    def say(self, app: Application, numbers: range) -> None:
        for number in numbers:
            for stream in STREAMS:
                app.say(type="telemetry", stream=stream, data=number, qos=1)

    def hear(self, last: int) -> dict[str, list[int]]:
        """What came of each stream, first arrivals only, once the last has come. Raises: AssertionError."""
        for stream in STREAMS:
            self.ear.wait_for_line(rf'up/telemetry/{stream} .*"data":{last}[,}}]', seconds=40)
        found: dict[str, dict[int, None]] = {stream: {} for stream in STREAMS}
        for line in self.ear.stdout.splitlines():
            topic, _, payload = line.partition(" ")
            if (stream := topic.rpartition("/")[2]) in found:
                found[stream].setdefault(json.loads(payload)["data"])
        return {stream: list(numbers) for stream, numbers in found.items()}


def all_of(numbers: range) -> dict[str, list[int]]:
    return {stream: list(numbers) for stream in STREAMS}


def listening(net: Network, home: AdminHome, broker_url: str) -> Program:
    """Mosquitto's client as the fleet's operator; it prints topic and payload of all that devices publish."""
    host, _, port = broker_url.removeprefix("mqtts://").rpartition(":")
    identity = home.operator.identity
    files = ("--cafile", home.root.certificate, "--cert", identity.certificate, "--key", identity.key)
    where = ("-h", host, "-p", port, "-i", "admin:ear", "-q", "1", "-t", "devices/+/up/#")
    return net.program("stdbuf", "-oL", "mosquitto_sub", *where, *files, "-F", "%t %p", "-d")


@contextmanager
def site(folder: Path, net: Network, percent: int) -> Iterator[Site]:
    """Everything from the join on happens under the loss of so many packets of a hundred."""
    admin, home = new_home(folder / "fleet"), AgentHome(folder / "agent")
    with ExitStack() as stack:
        start = stack.enter_context
        service = start(net.program("enroll", "serve", "--home", admin.path, "--listen", "127.0.0.1:0"))
        service.wait_for_line(r"^enroll: ready (\S+)$")
        broker = start(net.program("broker", "serve", "--home", admin.path, "--listen", "127.0.0.1:0"))
        url = broker.wait_for_line(r"^broker: ready (\S+)$")[1]
        net.lose(percent)
        ear = start(listening(net, admin, url))
        ear.wait_for_line("SUBACK", seconds=40)
        order = ("token", "create", "--device", "pump-01", "-o", "json", "--home", admin.path)
        code = json.loads(run("enroll", *order).check().stdout)["code"]
        run("ip", *net.command("device-agent", "join", code, "--id", "pump-01", "--home", home.path)).check()
        agent = start(net.program("device-agent", "run", "--home", home.path, "--keepalive", "3"))
        agent.wait_for_line(r"^device-agent: ready ", seconds=40)
        yield Site(net, agent, home, ear)


def test_nothing_is_lost_or_disordered_by_a_lossy_uplink(tmp_path: Path) -> None:
    """A device at the edge of its radio's range would have gaps in its measurements."""
    with network() as net, site(tmp_path, net, percent=10) as here, Application(here.home) as app:
        here.say(app, range(MESSAGES))
        assert all_of(range(MESSAGES)) == here.hear(MESSAGES - 1)
        assert net.lost() > 0

        mark = here.agent.line_count("stderr")
        net.lose(100)
        here.say(app, range(MESSAGES, 2 * MESSAGES))
        here.agent.wait_for_line("connection.(lost|failed)", stream="stderr", seconds=40, after=mark)
        assert net.lost() > 0
        net.lose(0)
        assert all_of(range(2 * MESSAGES)) == here.hear(2 * MESSAGES - 1)
