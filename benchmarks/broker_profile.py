"""Where a message's time goes, in our broker and in Mosquitto: perf's samples by library, in microseconds that add up.

Each scenario is run as `bench broker` runs it, under `perf record`; the samples of its measured part are shared out by
what was executing, and scaled to the CPU that the kernel accounted to a message. `perf` itself costs some percent.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from benchmarks import _fleet
from benchmarks.broker import DEVICES, FEWEST_DEVICES, SCENARIOS
from benchmarks.brokers.contenders import LOAD_CPU, MOSQUITTO, NAMES, OURS, Contender, Fleet, all_of, pinned
from benchmarks.brokers.messages import Size
from benchmarks.brokers.outcomes import Outcome

_MISSED: Final = (
    *("saturated-0", "saturated-1", "one-of-100", "paced-2k-0", "paced-2k-1", "paced-10k-0", "paced-10k-1"),
    *("churn", "commands-100", "commands-10k"),
)
_HERTZ: Final = 997  # more would cost a paced message half as much again
_PARTS: Final[Mapping[str, str]] = {
    "[kernel": "kernel",
    "[vdso]": "kernel",
    "libcrypto": "OpenSSL",
    "libssl": "OpenSSL",
    "_ssl.": "Python's binding to OpenSSL",
    "libpython": "CPython",
    "python3": "CPython",
    "libc.": "libc",
    "libc-": "libc",
    "libpthread": "libc",
    "loop.cpython": "uvloop",
    "mosquitto": "the broker itself, compiled",
    "broker.": "the broker itself, compiled",
}
"""How the name of what was executing begins, and what it is called here."""


def main(arguments: Sequence[str]) -> int:
    """Measure and print a table for each scenario; 2 if there is no `perf`."""
    parser = argparse.ArgumentParser(prog="bench broker_profile", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=_MISSED)
    parser.add_argument("--brokers", nargs="+", choices=NAMES, default=(OURS, MOSQUITTO))
    parser.add_argument("--messages", type=int, default=100_000, help="of a saturated run (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of a paced run (default: %(default)s)")
    parser.add_argument("--symbols", type=int, default=0, help="so many of the dearest functions too")
    options = parser.parse_args(arguments)
    if not _has_perf():
        print("error: there is no perf\nhint: apt-get install linux-perf", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder, pinned(LOAD_CPU):
        home = _fleet.new_home(Path(folder) / "fleet")
        _fleet.lift_rates(home)
        fleet = Fleet.of(home, max(DEVICES.get(name, FEWEST_DEVICES) for name in options.only))
        with _fleet.running("enroll", home), all_of(options.brokers, fleet) as contenders:
            for name in options.only:
                for broker in contenders.values():
                    profile(name, fleet, broker, Size(options.messages, options.seconds), options.symbols)
    return 0


def profile(name: str, fleet: Fleet, broker: Contender, size: Size, symbols: int) -> None:
    """Run one scenario against one broker, and print what its messages were spent on."""
    samples = Path(fleet.home.path) / "perf.data"
    with recorded(broker.pid, samples):
        outcome = SCENARIOS[name].run(fleet, broker, size)
    assert outcome is not None, name
    print(
        f"\n{outcome.scenario}, {broker.name}: {outcome.value:.1f} us CPU a message (load {outcome.load_average:.1f})"
    )
    print_shares(outcome, by_part(shares(samples, outcome, "dso")))
    if symbols:
        print_shares(outcome, dict(list(shares(samples, outcome, "dso,symbol").items())[:symbols]))


def _has_perf() -> bool:
    try:
        return subprocess.run(["perf", "--version"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@contextmanager
def recorded(pid: int, samples: Path) -> Iterator[None]:
    """While this lasts, `perf` looks what that process executes, stamped with the clock that loads go by."""
    command = ["perf", "record", "-q", "-p", str(pid), "-e", "cpu-clock", "-F", str(_HERTZ), "-k", "CLOCK_MONOTONIC"]
    control = ["--control", "fd:0,1", "-D", "-1", "-o", str(samples)]
    with subprocess.Popen([*command, *control], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for said in ("enable\n", "stop\n"):
            process.stdin.write(said)
            process.stdin.flush()
            process.stdout.readline()  # `ack`
            if said == "enable\n":
                yield
        process.wait()


def shares(samples: Path, outcome: Outcome, by: str) -> dict[str, float]:
    """Per cent of the samples in the outcome's window. `by`: as `perf report --sort`."""
    began, ended = outcome.window
    command = [
        "perf",
        "report",
        "-i",
        str(samples),
        "--stdio",
        "-q",
        "--percentage",
        "relative",
        "-F",
        f"overhead,{by}",
    ]
    window = ["--time", f"{began:.6f},{ended:.6f}", "-w", "0", "-t", "\t"]
    said = subprocess.run([*command, *window], check=True, capture_output=True, text=True).stdout
    found: dict[str, float] = defaultdict(float)
    for line in said.splitlines():
        percent, _, name = line.strip().partition("%")
        if name:
            found[name.strip().replace("\t", " ")] += float(percent)
    return _greatest_first(found)


def by_part(found: Mapping[str, float]) -> dict[str, float]:
    """The same by what a reader knows, the greatest first."""
    parts: dict[str, float] = defaultdict(float)
    for name, percent in found.items():
        part = next((part for begin, part in _PARTS.items() if name.startswith(begin)), name)
        parts[part] += percent
    return _greatest_first(parts)


def _greatest_first(found: Mapping[str, float]) -> dict[str, float]:
    return dict(sorted(found.items(), key=lambda each: -each[1]))


def print_shares(outcome: Outcome, found: Mapping[str, float]) -> None:
    """A line each: microseconds of a message, and their share."""
    for name, percent in found.items():
        print(f"  {name:60}{percent * outcome.value / 100:8.2f} us {percent:6.1f} %", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
