"""Brokers side by side over mutual TLS: ours, interpreted and compiled, Mosquitto, aedes and amqtt as shipped.

One load generator for all. Each broker has CPU 0 to itself, everything else has CPU 1; the brokers take turns in each
scenario, and that is repeated. CPU is what the kernel accounted to the broker's process. Results go to
benchmarks/results/.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from benchmarks import _fleet
from benchmarks.brokers import report
from benchmarks.brokers.connections import Accept, Memory, Storm
from benchmarks.brokers.contenders import COMPILED, LOAD_CPU, NAMES, OURS, Contender, Fleet, all_of, pinned
from benchmarks.brokers.frames import Refused
from benchmarks.brokers.messages import FanOut, OneOf, Saturated50, Size, Steady
from benchmarks.brokers.outcomes import Bar, Outcome, lines


class Scenario(Protocol):
    """What can be asked of every broker; None where it makes no sense for one."""

    def run(self, fleet: Fleet, broker: Contender, size: Size, /) -> Outcome | None: ...


SCENARIOS: Mapping[str, Scenario] = {
    "saturated-0": Saturated50(0),
    "saturated-1": Saturated50(1),
    "fan-out": FanOut(),
    "one-of-100": OneOf(100, 0, Bar(0.5)),
    "paced-2k-0": Steady(2_000, 50, 0),
    "paced-2k-1": Steady(2_000, 50, 1),
    "paced-10k-0": Steady(10_000, 200, 0),
    "paced-10k-1": Steady(10_000, 200, 1),
    "churn": Steady(2_000, 50, 0, has_churn=True),
    "kept": Steady(2_000, 50, 1, is_kept=True),
    "commands-100": OneOf(100, 1, None),
    "commands-1k": OneOf(1_000, 1, None),
    "commands-5k": OneOf(5_000, 1, None),
    "commands-10k": OneOf(10_000, 1, None),
    "accept": Accept(500),
    "memory": Memory(1_000),
    "storm": Storm(2_000),
}
DEVICES: Mapping[str, int] = {
    "commands-1k": 1_000, "commands-5k": 5_000, "commands-10k": 10_000, "accept": 500, "memory": 1_000, "storm": 2_001
}  # fmt: skip
FEWEST_DEVICES = 202
_ONCE = ("commands-5k", "commands-10k", "memory", "storm")  # thousands of handshakes each: not repeated
# amqtt as shipped: up to a thousand clients, and no more than it can carry.
_NOT_AS_SHIPPED = ("commands-5k", "commands-10k", "paced-10k-0", "paced-10k-1")


def main(arguments: Sequence[str]) -> int:
    """Measure, print and write; 1 if a bar is missed."""
    options = _parser().parse_args(arguments)
    chosen = {name: SCENARIOS[name] for name in options.only or SCENARIOS}
    size = Size(options.messages // 5, 3.0) if options.quick else Size(options.messages, options.seconds)
    repeats = 1 if options.quick else options.repeats
    with tempfile.TemporaryDirectory() as folder, pinned(LOAD_CPU):
        home = _fleet.new_home(Path(folder) / "fleet")
        if options.not_durable:
            _fleet.forget_all(home)
        _fleet.lift_rates(home)
        fleet = Fleet.of(home, max(DEVICES.get(name, FEWEST_DEVICES) for name in chosen))
        outcomes: list[Outcome] = []
        for outcome in measured(fleet, chosen, options.brokers, size, repeats):
            outcomes.append(outcome)
            print(report.one_line(outcome), flush=True)
            if not options.only or options.write:
                report.write(outcomes, lines(outcomes), options.into)  # what is there counts, if this is cut short
    found = lines(outcomes)
    print(report.table(found))
    return 1 if any(line.is_met is False for line in found) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench broker", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, help="some scenarios; nothing is written to results")
    parser.add_argument("--brokers", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--quick", action="store_true", help="a fifth of the messages, once: wrong by some percent")
    parser.add_argument("--messages", type=int, default=100_000, help="of a saturated run (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of a paced run (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="of everything, medians count (default: %(default)s)")
    parser.add_argument("--not-durable", action="store_true", help="ours with [broker] durable = false")
    parser.add_argument("--write", action="store_true", help="write results of some scenarios too")
    parser.add_argument("--into", type=Path, default=report.RESULTS, help="where results are written")
    return parser


def measured(
    fleet: Fleet, scenarios: Mapping[str, Scenario], brokers: Sequence[str], size: Size, repeats: int
) -> Iterator[Outcome]:
    """Every outcome, when it is there; brokers take turns."""
    with _fleet.running("enroll", fleet.home), all_of(brokers, fleet) as contenders:
        for name, scenario in scenarios.items():
            for _ in range(1 if name in _ONCE else repeats):
                for broker in _able(name, contenders):
                    try:
                        outcome = scenario.run(fleet, broker, size)
                    except (Refused, TimeoutError, RuntimeError) as error:
                        if broker.name in (OURS, COMPILED):
                            raise
                        print(f"{name}: {broker.name}: {error}", file=sys.stderr)
                    else:
                        if outcome is not None:
                            yield outcome


def _able(name: str, contenders: Mapping[str, Contender]) -> list[Contender]:
    return [c for c in contenders.values() if c.name != "amqtt" or name not in _NOT_AS_SHIPPED]
