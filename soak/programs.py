"""The programs under load: `enroll serve` and `broker serve` with their logs in files, and what they take of memory."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from fleet.layout import AdminHome

_END_SECONDS = 30
_BAD = re.compile(r"Traceback|^\S+ (ERROR|CRITICAL) |Task exception was never retrieved|never awaited", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Running:
    """A program that has said that it is ready."""

    name: str
    process: psutil.Process
    port: int
    log: Path

    @property
    def rss_bytes(self) -> int:
        """What it holds of memory now."""
        return int(self.process.memory_info().rss)

    @property
    def cpu_seconds(self) -> float:
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def complaints(self) -> list[str]:
        """What in its log must not be there."""
        lines = self.log.read_text(encoding="utf-8", errors="backslashreplace").splitlines()
        return [f"{self.name}.log line {at + 1}: {line}" for at, line in enumerate(lines) if _BAD.search(line)]


@contextmanager
def serving(name: str, home: AdminHome) -> Iterator[Running]:
    """`NAME serve` on a free port. Raises: RuntimeError where it does not come up, or does not end well."""
    log = home.path.parent / f"{name}.log"
    script = Path(sys.executable).with_name(name)
    command = [str(script), "--home", str(home.path), "serve", "--listen", "127.0.0.1:0"]
    # In a session of its own: Ctrl-C is for the soak, which ends it.
    with (
        log.open("wb") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True) as process,
    ):
        assert process.stdout is not None
        try:
            ready = process.stdout.readline().split()
            if ready[:2] != [f"{name}:", "ready"]:
                raise RuntimeError(f"{name} serve did not come up: {log.read_text()}")
            yield Running(name, psutil.Process(process.pid), urlsplit(ready[2]).port or 0, log)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                status = process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                raise RuntimeError(f"{name} serve did not end on SIGTERM") from None
        if status:
            raise RuntimeError(f"{name} serve ended with status {status}")
