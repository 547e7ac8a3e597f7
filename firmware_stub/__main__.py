"""`firmware-stub`: the loop. Everything else is sensors.py and commands.py."""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from firmware_stub.commands import COMMANDS, MAX_INTERVAL_SECONDS, MIN_INTERVAL_SECONDS, Settings, answer
from firmware_stub.sensors import read_machine, read_simulated

RETRY_SECONDS = 1.0
MAX_LINE_BYTES = 65_536


class AgentGone(Exception):
    """The agent closed the socket, or is not there."""


class AgentSocket:
    """Lines of JSON to and from the agent. Raises: AgentGone from every method."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._pending = b""
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise AgentGone(f"{path}: {error.strerror or error}") from error

    def close(self) -> None:
        self._socket.close()

    def send(self, line: dict[str, object]) -> None:
        try:
            self._socket.settimeout(10)
            self._socket.sendall(json.dumps(line).encode() + b"\n")
        except OSError as error:
            raise AgentGone(str(error)) from error

    def lines_until(self, deadline: float) -> Iterator[dict[str, object]]:
        """Every object that the agent sends before `deadline` (time.monotonic)."""
        while (left := deadline - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                data = self._socket.recv(MAX_LINE_BYTES)
            except TimeoutError:
                return
            except OSError as error:
                raise AgentGone(str(error)) from error
            if not data:
                raise AgentGone("the agent closed the socket")
            *whole, self._pending = (self._pending + data).split(b"\n")
            yield from (json.loads(line) for line in whole)


def serve(agent: AgentSocket, settings: Settings) -> None:
    """Measure and obey until the agent goes. Raises: AgentGone."""
    started = time.monotonic()
    agent.send({"type": "register", "app": "firmware-stub", "commands": list(COMMANDS)})
    while True:
        agent.send({"type": "telemetry", "stream": "machine", "data": read_machine()})
        agent.send({"type": "telemetry", "stream": "pressure", "data": read_simulated(time.monotonic() - started)})
        for line in agent.lines_until(time.monotonic() + settings.interval_seconds):
            if line.get("type") == "command":
                agent.send(answer(line, settings))


def run(path: Path, settings: Settings) -> None:
    """Serve for ever: the agent may come and go."""
    while True:
        try:
            agent = AgentSocket(path)
            print(f"firmware-stub: ready {path}", flush=True)
            try:
                serve(agent, settings)
            finally:
                agent.close()
        except AgentGone as error:
            print(f"firmware-stub: waiting for the agent: {error}", file=sys.stderr, flush=True)
            time.sleep(RETRY_SECONDS)


def _interval(text: str) -> float:
    seconds = float(text)
    if not MIN_INTERVAL_SECONDS <= seconds <= MAX_INTERVAL_SECONDS:
        raise argparse.ArgumentTypeError(f"{text} is not from {MIN_INTERVAL_SECONDS} to {MAX_INTERVAL_SECONDS} seconds")
    return seconds


def _stop(_signal: int, _frame: object) -> None:
    raise SystemExit(0)


def main() -> int:
    """The command line."""
    home = os.environ.get("DEVICE_AGENT_HOME", "/var/lib/device-agent")
    parser = argparse.ArgumentParser(
        prog="firmware-stub", description="A reference firmware for the application socket."
    )
    parser.add_argument("--socket", type=Path, default=Path(home) / "run" / "app.sock", help="the agent's socket")
    parser.add_argument("--interval", type=_interval, default=5.0, metavar="SECONDS", help="between two measurements")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _stop)
    try:
        run(arguments.socket, Settings(arguments.interval))
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
