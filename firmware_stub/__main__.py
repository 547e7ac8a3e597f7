"""`firmware-stub`: the loop; sensors.py and commands.py are the rest, and agent_client.py serves any firmware."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from functools import partial
from pathlib import Path

from firmware_stub.agent_client import Agent, default_path
from firmware_stub.commands import (
    MAX_INTERVAL_SECONDS,
    MIN_INTERVAL_SECONDS,
    SCHEMAS,
    Settings,
    handlers,
    reported,
    take_desired,
)
from firmware_stub.sensors import read_machine, read_simulated


def run(path: Path, settings: Settings) -> None:
    """Measure and obey for ever: the agent may come and go."""
    started = time.monotonic()
    desired = partial(take_desired, settings=settings)
    agent = Agent("firmware-stub", handlers(settings), path, _report, SCHEMAS, desired)
    said: dict[str, object] = {}
    while True:
        agent.poll(0)
        if reported(settings) != said:  # the last `poll` may have changed it, by a command
            said = reported(settings)
            agent.reported(said)
        if agent.is_connected:
            agent.telemetry("machine", read_machine())
            agent.telemetry("pressure", read_simulated(time.monotonic() - started))
        agent.poll(settings.interval_seconds)


def _report(text: str) -> None:
    stream = sys.stdout if text.startswith("ready") else sys.stderr
    print(f"firmware-stub: {text}", file=stream, flush=True)


def _interval(text: str) -> float:
    seconds = float(text)
    if not MIN_INTERVAL_SECONDS <= seconds <= MAX_INTERVAL_SECONDS:
        raise argparse.ArgumentTypeError(f"{text} is not from {MIN_INTERVAL_SECONDS} to {MAX_INTERVAL_SECONDS} seconds")
    return seconds


def _stop(_signal: int, _frame: object) -> None:
    raise SystemExit(0)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="firmware-stub", description="A reference firmware for the application socket."
    )
    parser.add_argument("--socket", type=Path, default=default_path(), help="the agent's socket")
    parser.add_argument("--interval", type=_interval, default=5.0, metavar="SECONDS", help="between two measurements")
    parser.add_argument("--version", action="store_true", help="say which this is")
    arguments = parser.parse_args()
    if arguments.version:
        from importlib.metadata import version  # as long as all the rest together

        print(f"firmware-stub {version('mqtt-fleet')}")
        return 0
    signal.signal(signal.SIGTERM, _stop)
    try:
        run(arguments.socket, Settings(arguments.interval))
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
