"""What `enroll export` takes for each sink: a backlog as fast as it goes, then messages at a steady pace.

Service, broker and export are processes of their own; the device is a raw connection that publishes with QoS 1. A
backlog has waited in the broker; clock and CPU are read from the export's ready line to its end.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil

from benchmarks import _fleet
from fleet.identity import DeviceId, Role, Serial
from fleet.layout import AdminHome, AgentHome, Credential, IdentityFiles
from fleet.messages import Envelope

_SINKS = (("sqlite", "out.db"), ("parquet", "out"), ("influx", "out.lp"))
_WINDOW = 50


def main(arguments: Sequence[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="bench export", description=__doc__)
    parser.add_argument("--messages", type=int, default=20_000, help="in the backlog (default: %(default)s)")
    parser.add_argument("--rate", type=int, default=1000, help="messages a second, paced (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=10, help="how long that lasts (default: %(default)s)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        home = _fleet.new_home(Path(name) / "fleet")
        _fleet.lift_rates(home)
        device = _fleet.add_clients(home, ["bench-1"])
        _join(home, _fleet.add_clients(home, ["export"], Role.SERVICE)[DeviceId("export")])
        with _fleet.running("enroll", home), _fleet.running("broker", home) as broker:
            sender = Sender(home, broker.port, device[DeviceId("bench-1")])
            for kind, target in _SINKS:
                found = _measure(home, kind, Path(name) / target, sender, options)
                print(f"{kind:8} " + "   ".join(found), flush=True)
            sender.socket.close()
    return 0


def _join(home: AdminHome, files: IdentityFiles) -> None:
    """Lay the service's files out as `device-agent join` does."""
    agent, now = AgentHome(home.path / "export"), datetime.now(UTC)
    agent.generation(1).mkdir(parents=True)
    agent.current.symlink_to("gen-1")
    shutil.copy(files.certificate, agent.identity.certificate)
    shutil.copy(files.key, agent.identity.key)
    shutil.copy(home.root.certificate, agent.trust)
    credential = Credential(
        DeviceId("export"), Role.SERVICE, Serial("1"), now, now + timedelta(days=1), "https://localhost"
    )
    agent.meta.write_bytes(credential.encode())


class Sender:
    """A device that has the broker's word for each of its messages."""

    def __init__(self, home: AdminHome, port: int, files: IdentityFiles) -> None:
        context: ssl.SSLContext = _fleet.client_context(home, files)
        self.socket = context.wrap_socket(socket.create_connection(("127.0.0.1", port)), server_hostname="127.0.0.1")
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(b"\x10\x13\x00\x04MQTT\x04\x02\x00\x00\x00\x07bench-1")
        self._reader = self.socket.makefile("rb")
        assert b"\x20\x02\x00\x00" == self._reader.read(4)
        self._seq = 0

    def send(self, count: int, rate: int | None = None) -> None:
        """So many, in windows, at that rate a second or as fast as it goes."""
        began, done = time.monotonic(), 0
        while done < count:
            window = min(_WINDOW if rate is None else max(1, rate // 100), count - done)
            self.socket.sendall(b"".join(self._publish() for _ in range(window)))
            self._reader.read(4 * window)
            done += window
            if rate is not None:
                time.sleep(max(0.0, began + done / rate - time.monotonic()))

    def _publish(self) -> bytes:
        self._seq += 1
        envelope = Envelope(DeviceId("bench-1"), datetime.now(UTC), "boot", self._seq)
        data = {"cpu": {"load": 0.42, "celsius": 51.5}, "memory_free_kb": 412_332, "on": True, "mode": "normal"}
        payload = json.dumps(envelope.fields() | {"data": data}).encode()
        topic = b"devices/bench-1/up/telemetry/load"
        body = len(topic).to_bytes(2, "big") + topic + (self._seq % 65_535 + 1).to_bytes(2, "big") + payload
        return bytes((0x32, len(body) % 128 | 0x80, len(body) // 128)) + body


@dataclass(frozen=True, slots=True)
class Used:
    """What an export took from its ready line to its end."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int


def _export(home: AdminHome, kind: str, target: Path, count: int, while_ready: Callable[[], None]) -> Used:
    """Export so many; Parquet's last file is counted in."""
    command = [str(Path(sys.executable).with_name("enroll")), "export", kind, str(target), "--home", str(home.path)]
    with subprocess.Popen(
        [*command, "--count", str(count)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as running:
        assert running.stdout is not None
        if not running.stdout.readline().startswith("export: ready"):
            raise RuntimeError(f"export {kind} did not come up")
        began, before = time.monotonic(), psutil.Process(running.pid).cpu_times()
        while_ready()
        _, _, usage = os.wait4(running.pid, 0)
        running.returncode = 0
    used = usage.ru_utime + usage.ru_stime - before.user - before.system
    return Used(time.monotonic() - began, used, usage.ru_maxrss * 1024)


def _measure(home: AdminHome, kind: str, target: Path, sender: Sender, options: argparse.Namespace) -> list[str]:
    _export(home, kind, target, 1, lambda: sender.send(1))  # from here on the broker keeps what comes
    sender.send(options.messages)
    fast = _export(home, kind, target, options.messages, lambda: None)
    count = options.rate * options.seconds
    paced = _export(home, kind, target, count, lambda: sender.send(count, options.rate))
    return [
        f"backlog {options.messages / fast.seconds:,.0f}/s",
        f"CPU per 100k {fast.cpu_seconds / options.messages * 1e5:.1f} s",
        f"at {options.rate}/s {paced.cpu_seconds / count * 1e5:.1f} s",
        f"peak {max(fast.peak_bytes, paced.peak_bytes) / 1e6:.0f} MB",
    ]
