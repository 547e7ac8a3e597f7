"""A device through many renewals under telemetry: `./dev soak renewals` is the long form."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fleet.join import parse_join_code
from fleet.layout import AgentHome
from tests.deadlines import within
from tests.system.agents import Agent, Application, LiveFleet, Operator, join, live_fleet

INTERVAL_SECONDS = 0.05


def lives(seconds: int) -> str:
    """What fleet.toml says of the test profile's life."""
    return f'\n[enroll.life]\ntest = "{seconds}s"\n'


def joined(fleet: LiveFleet, device: str) -> AgentHome:
    """A device of the test profile."""
    made = fleet.enroll("token", "create", "--device", device, "--profile", "test", "-o", "json")
    home = fleet.new_agent_home()
    join(home, parse_join_code(json.loads(made.stdout)["code"]), device).check()
    return home


@dataclass
class Telemetry:
    """A firmware that measures 20 times a second; `count` is how many it has handed over."""

    home: AgentHome
    count: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        with Application(self.home) as app:
            while not self._stop.wait(INTERVAL_SECONDS):
                app.say(type="telemetry", stream="load", data={"n": self.count}, qos=1)
                self.count += 1
            app.say(type="status")
            app.next("status")  # all that was said before is accepted

    @contextmanager
    def measuring(self) -> Iterator[None]:
        thread = threading.Thread(target=self.run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join(within(20))


@dataclass(frozen=True)
class Outcome:
    """What was seen: the numbers of telemetry as they came, how often the agent connected, and the longest silence."""

    sent: int
    heard: list[int]
    connections: int
    renewals: int
    problems: int
    offline: int

    def check(self) -> None:
        assert set(range(self.sent)) == set(self.heard), "a message is lost"
        assert self.renewals + 1 == self.connections, "more than one reconnect for a renewal"
        assert 0 == self.problems
        assert 0 == self.offline, "the fleet was told that the device is offline"

    def __str__(self) -> str:
        twice = len(self.heard) - len(set(self.heard))
        return (
            f"{self.renewals} renewals, {self.connections - 1} reconnects, {self.sent} messages, "
            f"0 lost, {twice} sent twice, {self.problems} failed attempts"
        )


def renew_under_telemetry(fleet: LiveFleet, device: str, wait: Callable[[Agent], None]) -> Outcome:
    """Run an agent with short certificates until `wait` returns; what came of it."""
    home = joined(fleet, device)
    telemetry = Telemetry(home)
    topic = f"devices/{device}/up/telemetry/load"
    with Operator(fleet) as operator, Agent(home).wait_ready() as agent:
        with telemetry.measuring():
            wait(agent)
        operator.until(_Numbers(topic, telemetry.count))
        log = agent.stderr
    states = [fields["status"] for name, fields in operator.heard if name == f"devices/{device}/up/status"]
    return Outcome(
        telemetry.count,
        _numbers(operator.heard, topic),
        log.count("connection.ready"),
        log.count("renewal.done"),
        log.count("renewal.failed") + log.count("connection.failed"),
        states.count("offline"),
    )


@dataclass
class _Numbers:
    """Whether all numbers below `count` were heard: each message is looked at once, however many there are."""

    topic: str
    count: int
    _seen: int = 0
    _found: set[int] = field(default_factory=set)

    def __call__(self, heard: list[tuple[str, dict[str, Any]]]) -> bool:
        self._found |= set(_numbers(heard[self._seen :], self.topic))
        self._seen = len(heard)
        return len(self._found) >= self.count


def _numbers(heard: list[tuple[str, dict[str, Any]]], topic: str) -> list[int]:
    return [fields["data"]["n"] for name, fields in heard if name == topic]


def until_renewed(count: int, seconds: float) -> Callable[[Agent], None]:
    """Wait for so many renewals, each within `seconds`, all of the agent's own accord."""

    def wait(agent: Agent) -> None:
        mark = 0
        for _ in range(count):
            agent.wait_for_line("renewal.confirmed", stream="stderr", seconds=seconds, after=mark)
            mark = agent.line_count("stderr")

    return wait


def main(arguments: Sequence[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="dev soak renewals", description=__doc__)
    parser.add_argument("--renewals", type=int, default=20)
    parser.add_argument("--life", type=int, default=60, help="seconds that a certificate lives (default: %(default)s)")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as folder,
        live_fleet(Path(folder), with_broker=True, toml=lives(options.life)) as fleet,
    ):
        outcome = renew_under_telemetry(fleet, "pump-01", until_renewed(options.renewals, options.life))
    outcome.check()
    print(f"{outcome} in {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
