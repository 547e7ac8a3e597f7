"""Our real programs as processes: started, waited for by the lines they print, and always reaped.

with Program("enroll", "serve", "--home", home, "--listen", "127.0.0.1:0") as service:
    url = service.wait_for_line(r"enroll: ready (\\S+)").group(1)
# here it has been sent SIGTERM, has ended, and its exit status is service.returncode
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Literal, Self

from tests.deadlines import within

_OURS: Final = ("FLEET_HOME", "FLEET_CA_PASSPHRASE", "DEVICE_AGENT_HOME", "XDG_DATA_HOME")

Stream = Literal["stdout", "stderr"]


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process' environment without what our programs read from it, unbuffered and without colour, and `extra`."""
    kept = {name: value for name, value in os.environ.items() if name not in _OURS}
    return kept | {"PYTHONUNBUFFERED": "1", "NO_COLOR": "1", "COLUMNS": "120"} | dict(extra or {})


def command_line(program: str, *args: object) -> list[str]:
    """How to run one of this environment's console scripts, or any program that PATH has."""
    script = Path(sys.executable).parent / program  # an absolute program stays what it is
    return [str(script) if script.exists() else program, *map(str, args)]


@dataclass(frozen=True, slots=True)
class Finished:
    """What a program that ended left behind."""

    returncode: int
    stdout: str
    stderr: str

    def check(self) -> Finished:
        """This, if the exit status was 0. Raises: AssertionError with all that was printed."""
        assert self.returncode == 0, f"exit status {self.returncode}\n{self.stdout}\n{self.stderr}"
        return self


def run(
    program: str, *args: object, stdin: str = "", env: Mapping[str, str] | None = None, seconds: float = 30
) -> Finished:
    """Run a program to its end, within `seconds` (stretched for this machine)."""
    done = subprocess.run(
        command_line(program, *args),
        input=stdin,
        env=environment(env),
        capture_output=True,
        text=True,
        timeout=within(seconds),
        start_new_session=True,  # no terminal: what would prompt reads stdin
    )
    return Finished(done.returncode, done.stdout, done.stderr)


class Program:
    """One running program. Leaving the context sends SIGTERM, waits, kills if it must, and reaps.

    A mosquitto_sub is killed at once: its signal handler calls into libmosquitto, and waits for itself for ever if the
    signal came while the program was in there. One that is to disconnect in order is given -E or -C.
    """

    def __init__(
        self,
        program: str,
        *args: object,
        env: Mapping[str, str] | None = None,
        cwd: Path | str | None = None,
        takes_input: bool = False,
    ) -> None:
        self.name = program
        self._ended_by = signal.SIGKILL if "mosquitto_sub" in " ".join(map(str, args)) else signal.SIGTERM
        self._lines: dict[Stream, list[str]] = {"stdout": [], "stderr": []}
        self._changed = threading.Condition()
        self._process = subprocess.Popen(
            command_line(program, *args),
            stdin=subprocess.PIPE if takes_input else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(env),
            cwd=cwd,
            text=True,
            errors="backslashreplace",
            start_new_session=True,
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._readers = [self._read("stdout", self._process.stdout), self._read("stderr", self._process.stderr)]

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status; None while it runs."""
        return self._process.poll()

    @property
    def stdout(self) -> str:
        """All that it has printed so far."""
        return self._text("stdout")

    @property
    def stderr(self) -> str:
        return self._text("stderr")

    def wait_for_line(
        self, pattern: str, *, stream: Stream = "stdout", seconds: float = 20, after: int = 0
    ) -> re.Match[str]:
        """The match of `pattern` in the first line, from line number `after`, that it is found in.

        Raises: AssertionError, with all that was printed, at the deadline or when the program ended without it.
        """
        wanted, deadline, seen = re.compile(pattern), time.monotonic() + within(seconds), after
        with self._changed:
            while True:
                lines = self._lines[stream]
                for line in lines[seen:]:
                    if found := wanted.search(line):
                        return found
                seen = max(seen, len(lines))
                left = deadline - time.monotonic()
                if left <= 0 or not any(reader.is_alive() for reader in self._readers):
                    break
                self._changed.wait(min(left, 0.5))  # a reader's end cannot notify: look again
        raise AssertionError(f"no line with {pattern!r} on {stream}\n{self.describe()}")

    def line_count(self, stream: Stream = "stdout") -> int:
        """How many lines it has printed: a mark for `wait_for_line(after=...)`."""
        with self._changed:
            return len(self._lines[stream])

    def write_line(self, line: str) -> None:
        """Write a line on its standard input; for one that was started with `takes_input`."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens if it has ended."""
        self._process.send_signal(number)

    def terminate(self) -> None:
        """Send SIGTERM, and do not wait."""
        self._process.terminate()

    def kill(self) -> int:
        """Send SIGKILL and reap."""
        self._process.kill()
        return self.wait()

    def wait(self, seconds: float = 20) -> int:
        """Its exit status, once all that it printed was read. Raises: AssertionError if it does not end in time."""
        try:
            status = self._process.wait(within(seconds))
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it did not end\n{self.describe()}") from None
        for reader in self._readers:
            reader.join(within(5))
        if self._process.stdin is not None:
            self._process.stdin.close()
        return status

    def stop(self) -> int:
        """End it with its signal, with SIGKILL if that does not help, and give its exit status."""
        if self._process.poll() is None:
            self.send_signal(self._ended_by)
        try:
            return self.wait()
        except AssertionError:
            self.kill()
            raise

    def describe(self) -> str:
        """All that a failed test's reader wants to know."""
        return (
            f"{self.name} (pid {self.pid}, exit status {self.returncode})\n"
            f"--- stdout\n{self.stdout}--- stderr\n{self.stderr}"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _read(self, stream: Stream, source: IO[str]) -> threading.Thread:
        reader = threading.Thread(target=self._follow, args=(stream, source), name=f"{self.name}-{stream}", daemon=True)
        reader.start()
        return reader

    def _follow(self, stream: Stream, source: IO[str]) -> None:
        with source:
            for line in source:
                with self._changed:
                    self._lines[stream].append(line)
                    self._changed.notify_all()

    def _text(self, stream: Stream) -> str:
        with self._changed:
            return "".join(self._lines[stream])
