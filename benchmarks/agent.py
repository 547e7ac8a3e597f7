"""What an agent costs its device: start to connected, memory and CPU when idle, memory with a week in its spool.

Real programs over real TLS. What the spool writes to the disk is counted by how many messages share a transaction. Then
a week of one message a second is put into it, and the agent is started with a broker, and without one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from benchmarks import _fleet
from device_agent import status
from device_agent.core.effects import Removal, Row, WriteSpool
from device_agent.core.events import SpoolWritten
from device_agent.outbox import Class, Losses, Outgoing
from device_agent.spool import SpoolFile
from fleet.identity import DeviceId
from fleet.layout import AdminHome, AgentHome

RSS_BAR_MB = 30.0  # DESIGN section 10
CPU_BAR_PERCENT = 0.1
WEEK_MESSAGES = 7 * 24 * 60 * 60
_DEVICE = DeviceId("pump-07")
_TOPIC = f"devices/{_DEVICE}/up/telemetry/pressure"


def main(arguments: Sequence[str]) -> int:
    """Measure and print; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(prog="bench agent", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="how long to look at the idle agent (%(default)s)")
    parser.add_argument("--messages", type=int, default=WEEK_MESSAGES, help="how many wait on disk (%(default)s)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        admin, home = _fleet.new_home(Path(folder) / "fleet"), AgentHome(Path(folder) / "agent")
        with _fleet.running("enroll", admin), _fleet.running("broker", admin):
            enrol(admin, home)
            is_good = measure_idle(home, options.seconds)
            measure_writes(Path(folder))
            fill(home, options.messages)
            measure_return(home, options.messages, options.seconds)
        measure_outage(home)
    return 0 if is_good else 1


def enrol(admin: AdminHome, home: AgentHome) -> None:
    """A device of that fleet."""
    enroll = Path(sys.executable).with_name("enroll")
    order: list[str | Path] = [enroll, "token", "create", "--device", _DEVICE, "-o", "json", "--home", admin.path]
    code = json.loads(subprocess.run(order, check=True, capture_output=True, text=True).stdout)["code"]
    agent = Path(sys.executable).with_name("device-agent")
    subprocess.run([agent, "join", code, "--id", _DEVICE, "--home", home.path], check=True, capture_output=True)


@contextmanager
def running(home: AgentHome, *, until: str = "") -> Iterator[tuple[psutil.Process, float]]:
    """`device-agent run`, and the seconds it took to its ready line, or to `until` in its log."""
    began = time.perf_counter()
    command: list[str | Path] = [Path(sys.executable).with_name("device-agent"), "run", "--home", home.path]
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL if until else subprocess.PIPE,
        stderr=subprocess.PIPE if until else subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            stream = process.stderr if until else process.stdout
            assert stream is not None
            next(line for line in stream if (until or "ready") in line)
            yield psutil.Process(process.pid), time.perf_counter() - began
        finally:
            process.terminate()


def measure_idle(home: AgentHome, seconds: float) -> bool:
    """Start, memory and CPU of an agent that has nothing to do; whether the bars are met."""
    starts = []
    for _ in range(5):
        with running(home) as (_, took):
            starts.append(took)
    with running(home) as (process, _):
        time.sleep(2)  # its hello and status are out
        before = process.cpu_times()
        time.sleep(seconds)
        after, rss_mb = process.cpu_times(), process.memory_info().rss / 1e6
    percent = 100 * (after.user + after.system - before.user - before.system) / seconds
    print(f"start to connected and subscribed: {1000 * statistics.median(starts):.0f} ms (median of {len(starts)})")
    print(
        f"idle: {rss_mb:.1f} MB RSS (bar {RSS_BAR_MB:.0f}), "
        f"{percent:.3f} % CPU over {seconds:.0f} s (bar {CPU_BAR_PERCENT})"
    )
    return rss_mb <= RSS_BAR_MB and percent < CPU_BAR_PERCENT


def rows(first: int, count: int) -> tuple[Row, ...]:
    """Messages as the reference firmware sends them."""
    made = []
    for number in range(first, first + count):
        fields = {"v": 1, "id": _DEVICE, "ts": "2026-11-21T08:00:00.000Z", "boot": "0123456789abcdef", "seq": number}
        payload = json.dumps(
            fields | {"data": {"pressure_bar": 3.2, "simulated": True}}, separators=(",", ":")
        ).encode()
        message = Outgoing(number, Class.TELEMETRY, _TOPIC, payload)
        made.append(Row(Class.TELEMETRY, number, number, number * 209, message))
    return tuple(made)


def measure_writes(folder: Path, count: int = 3_000) -> None:
    """Bytes written to the disk for each message, by how many share a transaction."""
    for group in (1, 2, 10, 50):
        home = AgentHome(folder / f"writes-{group}")
        home.path.mkdir()
        spool = SpoolFile(home, _DEVICE)
        write(spool, 1, 1)
        before, size = written_bytes(), len(_TOPIC) + len(rows(count, 1)[0].message.payload)
        for first in range(2, count, group):
            write(spool, first, group)
        filled = written_bytes()
        for upto in range(50, count, 50):
            perform(spool, WriteSpool((), (Removal(Class.TELEMETRY, upto),), (), Losses()))
        each, removed = (filled - before) / count, (written_bytes() - filled) / count
        spool.close()
        print(
            f"{group:3} a transaction: {each:.0f} bytes written a message of {size} ({each / size:.1f}x), "
            f"{removed:.0f} to remove it"
        )


def written_bytes() -> int:
    """What this process had the kernel write to disks."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("write_bytes")).split()[1])


def write(spool: SpoolFile, first: int, count: int) -> None:
    perform(spool, WriteSpool(rows(first, count), (), (), Losses()))


def perform(spool: SpoolFile, order: WriteSpool) -> None:
    event = spool.perform(order)
    if not isinstance(event, SpoolWritten):
        raise RuntimeError(f"the spool answered {event}")


def fill(home: AgentHome, messages: int) -> None:
    """An outage of so many messages, on disk."""
    spool, before = SpoolFile(home, _DEVICE), written_bytes()
    for first in range(1, messages + 1, 1_000):
        write(spool, first, min(1_000, messages + 1 - first))
    spool.close()
    size = sum(path.stat().st_size for path in home.path.glob("spool.db*"))
    print(f"spool: {messages} messages, {size / 1e6:.0f} MB on disk, {(written_bytes() - before) / 1e6:.0f} MB written")


def measure_return(home: AgentHome, messages: int, seconds: float) -> None:
    """The broker is back: how fast the outage is sent, and in how much memory."""
    with running(home) as (process, took):
        began, peak, waiting = time.perf_counter(), 0, messages
        while time.perf_counter() - began < seconds and waiting:
            time.sleep(0.5)
            peak = max(peak, process.memory_info().rss)
            waiting = int(status.ask_agent(home)["spool"]["messages"])
        rate = (messages - waiting) / (time.perf_counter() - began)
    print(f"back: connected after {1000 * took:.0f} ms, {rate:.0f} messages a second, {peak / 1e6:.1f} MB RSS at most")


def measure_outage(home: AgentHome) -> None:
    """The rest of it, and no broker."""
    with running(home, until="connection.failed") as (process, took):
        time.sleep(2)
        waiting = status.ask_agent(home)["spool"]["messages"]
        print(
            f"offline: {process.memory_info().rss / 1e6:.1f} MB RSS with {waiting} messages in the spool, "
            f"up after {1000 * took:.0f} ms"
        )
