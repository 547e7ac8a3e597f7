"""The brokers that are measured: each a process of its own on one CPU, with one fleet's certificates and rules."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from benchmarks import _fleet
from fleet.identity import DeviceId, Role
from fleet.layout import AdminHome, IdentityFiles

BROKER_CPU: Final = 0
LOAD_CPU: Final = 1
OPERATOR: Final = DeviceId("bench-operator")
# amqtt's plug-in takes the id of devices only, so who commands has a device's certificate there.
SHIPPED_OPERATOR: Final = DeviceId("bench-shipped-op")
SUSPENDED: Final = DeviceId("bench-suspended")  # and resumed, where the directory is to change
OURS: Final = "ours"
COMPILED: Final = "compiled"  # ours, with the message path as machine code (docs/adr/0010)
MOSQUITTO: Final = "mosquitto"
AEDES: Final = "aedes"
SHIPPED: Final = "amqtt"
NAMES: Final = (OURS, COMPILED, MOSQUITTO, AEDES, SHIPPED)
MAX_CLIENTS: Final = {SHIPPED: 1000}
_COMPILED_CODE: Final = Path(__file__).resolve().parents[2] / ".compiled"


@dataclass(frozen=True, slots=True)
class Contender:
    """A broker that accepts connections, and who may command there."""

    name: str
    pid: int
    port: int
    operator: DeviceId = OPERATOR

    def cpu_seconds(self) -> float:
        """What the kernel accounted to the process so far, in nanoseconds' steps (clock_getcpuclockid(3))."""
        return time.clock_gettime(~self.pid << 3 | 2)

    def resident_bytes(self) -> int:
        """Memory that is its own."""
        return int(psutil.Process(self.pid).memory_full_info().uss)


@dataclass(frozen=True, slots=True)
class Fleet:
    """Devices that exist in the registry, with their files."""

    home: AdminHome
    devices: Mapping[DeviceId, IdentityFiles]
    operators: Mapping[DeviceId, IdentityFiles]

    @classmethod
    def of(cls, home: AdminHome, count: int) -> Fleet:
        """A new fleet; names are of one length, so that frames are."""
        devices = _fleet.add_clients(home, [f"bench-{number:05}" for number in range(count)])
        operators = _fleet.add_clients(home, [OPERATOR], Role.OPERATOR)
        return cls(home, devices, operators | _fleet.add_clients(home, [SHIPPED_OPERATOR, SUSPENDED]))

    def files(self, id: DeviceId) -> IdentityFiles:
        return self.operators.get(id) or self.devices[id]


@contextmanager
def pinned(cpu: int) -> Iterator[None]:
    """Processes that are started in this block stay on that CPU, with all their threads."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(before)[cpu % len(before)]} if len(before) > 1 else before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def start(name: str, fleet: Fleet) -> AbstractContextManager[Contender]:
    """A context in which that broker runs; ours needs the enrollment service beside it."""
    return {OURS: ours, COMPILED: compiled, MOSQUITTO: mosquitto, AEDES: aedes, SHIPPED: shipped}[name](fleet)


@contextmanager
def all_of(names: Sequence[str], fleet: Fleet) -> Iterator[dict[str, Contender]]:
    """Several brokers at once."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(start(name, fleet)) for name in names}


@contextmanager
def ours(fleet: Fleet) -> Iterator[Contender]:
    with _ours(fleet, os.environ) as server:
        yield Contender(OURS, server.process.pid, server.port)


@contextmanager
def compiled(fleet: Fleet) -> Iterator[Contender]:
    """On what ./dev compile has made. Raises: RuntimeError where that is not there."""
    with _ours(fleet, {**os.environ, "PYTHONPATH": str(_COMPILED_CODE)}) as server:
        if not any(str(_COMPILED_CODE) in found.path for found in server.process.memory_maps()):
            raise RuntimeError("there is nothing compiled: ./dev compile")
        yield Contender(COMPILED, server.process.pid, server.port)


@contextmanager
def _ours(fleet: Fleet, environment: Mapping[str, str]) -> Iterator[_fleet.Server]:
    """In a home of its own, for one broker alone may have the file of sessions."""
    with tempfile.TemporaryDirectory(dir=fleet.home.path.parent) as folder, ExitStack() as stack:
        home = AdminHome(Path(folder) / "fleet")
        shutil.copytree(fleet.home.path, home.path, ignore=shutil.ignore_patterns("sessions.db*", "bench"))
        with pinned(BROKER_CPU):
            server = stack.enter_context(_fleet.running("broker", home, environment=environment))
        yield server


@contextmanager
def mosquitto(fleet: Fleet) -> Iterator[Contender]:
    """Mosquitto as Debian has it: the common name is the user name, rules by patterns."""
    port, home = _free_port(), fleet.home
    rules, config = home.path / "mosquitto.acl", home.path / "mosquitto.conf"
    rules.write_text(
        "pattern write devices/%u/up/#\npattern read devices/%u/down/#\npattern read fleet/notices/#\n\n"
        f"user {OPERATOR}\ntopic read devices/+/up/#\ntopic write devices/+/down/#\ntopic readwrite fleet/notices/#\n"
    )
    config.write_text(
        f"user root\nlistener {port} 127.0.0.1\ncafile {home.broker_trust}\ncertfile {home.broker_server.certificate}\n"
        f"keyfile {home.broker_server.key}\nrequire_certificate true\nuse_identity_as_username true\n"
        f"allow_anonymous false\nacl_file {rules}\nmax_queued_messages 0\nmax_inflight_messages 100\n"
        "set_tcp_nodelay true\n"
    )
    with pinned(BROKER_CPU):
        process = subprocess.Popen(["mosquitto", "-c", str(config)], stderr=subprocess.DEVNULL)
    with _ended(process):
        _wait_for(port)
        yield Contender(MOSQUITTO, process.pid, port)


@contextmanager
def aedes(fleet: Fleet) -> Iterator[Contender]:
    script = Path(__file__).with_name("aedes.mjs")
    with _told(["node", str(script)], _server_files(fleet) | {"admin": OPERATOR}) as (pid, port):
        yield Contender(AEDES, pid, port)


@contextmanager
def shipped(fleet: Fleet) -> Iterator[Contender]:
    told = {"admin": SHIPPED_OPERATOR, "domain": _fleet.DOMAIN, "devices": list(fleet.devices)[: MAX_CLIENTS[SHIPPED]]}
    command = [sys.executable, "-m", "benchmarks.brokers.shipped"]
    with _told(command, _server_files(fleet) | told) as (pid, port):
        yield Contender(SHIPPED, pid, port, SHIPPED_OPERATOR)


def _server_files(fleet: Fleet) -> dict[str, object]:
    home = fleet.home
    server = home.broker_server
    return {"ca": str(home.broker_trust), "cert": str(server.certificate), "key": str(server.key)}


@contextmanager
def _told(command: Sequence[str], told: Mapping[str, object]) -> Iterator[tuple[int, int]]:
    """A program that is given JSON and says `ready PORT`; its process id and port."""
    with pinned(BROKER_CPU):
        process = subprocess.Popen([*command, json.dumps(told)], stdout=subprocess.PIPE, text=True)
    with _ended(process):
        assert process.stdout is not None
        match process.stdout.readline().split():
            case ["ready", port]:
                yield process.pid, int(port)
            case said:
                raise RuntimeError(f"{command[-1]} did not come up: {said}")


@contextmanager
def _ended(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> Iterator[None]:
    with process:
        try:
            yield
        finally:
            process.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return
