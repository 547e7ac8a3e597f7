"""A whole fleet of simulated devices: commands to all, a job over all, presence after broker and half of them died.

Service and broker as processes; the devices are the agent's core over real mutual TLS, some thousands to a process
(`_agents`). What is done to them is done as an admin does it, by `enroll`; what came of it is what the registry says.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks import _fleet
from benchmarks._agents import COMMAND
from benchmarks._sessions import allow_descriptors
from enroll.registry import Registry, messaging
from fleet.identity import DeviceId
from fleet.layout import AdminHome

_PATIENCE_SECONDS = 1_200.0
_LOOK_SECONDS = 0.2


def main(arguments: Sequence[str]) -> int:
    """Measure and print; 1 if somebody was left out."""
    parser = argparse.ArgumentParser(prog="bench fleet", description=__doc__)
    parser.add_argument("--devices", type=int, default=10_000, help="default: %(default)s")
    parser.add_argument("--processes", type=int, default=2, help="that simulate them (default: %(default)s)")
    options = parser.parse_args(arguments)
    allow_descriptors()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        home = _fleet.new_home(Path(folder) / "fleet")
        devices = list(_fleet.add_clients(home, [f"bench-{number}" for number in range(options.devices)]))
        service = stack.enter_context(_fleet.running("enroll", home))
        registry = stack.enter_context(Registry.open(home.registry))
        with _fleet.running("broker", home) as broker:
            bench = Bench(home, registry, service, len(devices))
            shares = [devices[number :: options.processes] for number in range(options.processes)]
            agents = [stack.enter_context(agents_of(home, broker.port, share)) for share in shares]
            with bench.measured("all are online", broker):
                bench.wait_for_online(len(devices))
            bench.print_memory(broker, agents)
            with bench.measured("a command to each, answered", broker):
                bench.enroll("send", COMMAND, "{}", "--where", "online", "--wait", "--timeout", "20m")
            with bench.measured("a job: 10, then 10 %, 50 %, all", broker):
                bench.enroll("job", "watch", bench.enroll("job", "create", COMMAND, "{}", *_JOB))
            before, port = bench.boots(), broker.port
            broker.process.send_signal(signal.SIGKILL)
            agents[-1].send_signal(signal.SIGKILL)
        with _fleet.running("broker", home, port) as broker, bench.measured("broker killed: half come back", broker):
            bench.wait_for_online(len(devices) - len(shares[-1]), but=before)
    return 0


_JOB = ("--where", "online", "--canary", "10", "--waves", "10,50,100")


@dataclass(frozen=True, slots=True)
class Bench:
    """One fleet."""

    home: AdminHome
    registry: Registry
    service: _fleet.Server
    count: int

    @contextmanager
    def measured(self, what: str, broker: _fleet.Server) -> Iterator[None]:
        """Print how long it took, and what it cost both servers."""
        before, began = (self.service.cpu_seconds, broker.cpu_seconds), time.perf_counter()
        yield
        seconds = time.perf_counter() - began
        cpu = self.service.cpu_seconds - before[0], broker.cpu_seconds - before[1]
        each = [1000 * part / self.count for part in cpu]
        print(
            f"{what:36}{seconds:8.1f} s   CPU: service {cpu[0]:6.1f} s ({each[0]:.2f} ms each), "
            f"broker {cpu[1]:6.1f} s ({each[1]:.2f} ms each)   load average {os.getloadavg()[0]:.1f}",
            flush=True,
        )

    def wait_for_online(self, count: int, *, but: Collection[str] = ()) -> None:
        """Until so many are online, and none on a broker that is gone. Raises: TimeoutError."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while (found := self.boots()).total() != count or found.keys() & set(but):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{found} are online, not {count}")
            time.sleep(_LOOK_SECONDS)

    def boots(self) -> Counter[str]:
        """How many are online on each start of the broker, by the registry."""
        with self.registry.read() as transaction:
            return Counter(boot for boot, _ in messaging.who_is_online(transaction).values())

    def enroll(self, *arguments: str) -> str:
        """What a command prints, as an admin types it. Raises: CalledProcessError."""
        program = Path(sys.executable).with_name("enroll")
        environment = {**os.environ, "FLEET_HOME": str(self.home.path)}
        ended = subprocess.run([program, *arguments], check=True, env=environment, capture_output=True, text=True)
        return ended.stdout.strip()

    def print_memory(self, broker: _fleet.Server, agents: Sequence[psutil.Process]) -> None:
        """Print how large the processes are."""
        parts = {"service": [self.service.process], "broker": [broker.process], "simulated devices": agents}
        sizes = {name: sum(each.memory_info().rss for each in processes) >> 20 for name, processes in parts.items()}
        print("  memory: " + ", ".join(f"{name} {size} MiB" for name, size in sizes.items()), flush=True)


@contextmanager
def agents_of(home: AdminHome, port: int, devices: Sequence[DeviceId]) -> Iterator[psutil.Process]:
    """A process with these devices."""
    command = [sys.executable, "-m", "benchmarks._agents", str(home.path), str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        process.stdin.write("\n".join(devices))
        process.stdin.close()
        try:
            yield psutil.Process(process.pid)
        finally:
            process.kill()
