"""How long it takes from `enroll device revoke` to the end of that device's live session.

Both programs as processes, every session live over mutual TLS, dispatch connected as ever. First devices are revoked
one by one, then in groups that share a commit, as `enroll token revoke --devices` does it: through the registry, as the
command line does. The clock runs from before the transaction until the device sees its connection end.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

from benchmarks import _fleet
from benchmarks._sessions import Door, Sessions, allow_descriptors
from enroll import service
from enroll.registry import Registry
from enroll.service.revocation import REVOKED_AT_ONCE
from fleet.identity import DeviceId

BAR_SECONDS = 1.0  # DESIGN section 10, for 10,000 sessions
_GROUP = REVOKED_AT_ONCE


def main(arguments: Sequence[str]) -> int:
    """Measure and print; 1 if a 99th percentile is over the bar."""
    parser = argparse.ArgumentParser(prog="bench revoke", description=__doc__)
    parser.add_argument("--sessions", type=int, default=2000, help="live sessions (default: %(default)s)")
    parser.add_argument(
        "--revoke", type=int, default=500, help="how many of them are revoked singly, and as many again in groups"
    )
    options = parser.parse_args(arguments)
    allow_descriptors()
    with tempfile.TemporaryDirectory() as folder:
        home = _fleet.new_home(Path(folder) / "fleet")
        devices = _fleet.add_clients(home, [f"bench-{number}" for number in range(options.sessions)])
        chosen = random.Random(6).sample(list(devices), min(2 * options.revoke, len(devices)))
        half = len(chosen) // 2
        with _fleet.running("enroll", home), _fleet.running("broker", home) as broker:
            began = time.perf_counter()
            with Sessions(Door(home, broker.port), devices) as sessions, Registry.open(home.registry) as registry:
                print_sessions(broker, len(sessions), time.perf_counter() - began)
                singly = [revoke(registry, sessions, [device]) for device in chosen[:half]]
                groups = [chosen[at : at + _GROUP] for at in range(half, len(chosen), _GROUP)]
                together = [revoke(registry, sessions, group) for group in groups]
    are_met = [report("one after the other", singly), report(f"{_GROUP} in a commit", together)]
    return 0 if all(are_met) else 1


@dataclass(frozen=True, slots=True)
class Cut:
    """Devices that were revoked in one transaction: how long it took, and each session's end, from its beginning on."""

    transaction: float
    ends: list[float]


def revoke(registry: Registry, sessions: Sessions, devices: Sequence[DeviceId]) -> Cut:
    """Revoke in one transaction; the seconds until each of their sessions ended."""
    began = time.perf_counter()
    with registry.group():
        for device in devices:
            service.revoke(registry, device, by="bench", now=datetime.now(UTC))
    committed = time.perf_counter()
    return Cut(committed - began, [at - began for at in sessions.wait_for_ends(devices).values()])


def print_sessions(broker: _fleet.Server, count: int, seconds: float) -> None:
    """Print what is measured on."""
    of_broker = broker.process.memory_info().rss / (1 << 20)
    of_ours = psutil.Process().memory_info().rss / (1 << 20)
    print(
        f"{count} live sessions in {seconds:.0f} s; memory: broker {of_broker:.0f} MiB, all clients {of_ours:.0f} MiB"
    )


def report(how: str, cuts: Sequence[Cut]) -> bool:
    """Print the distribution; whether the bar is met."""
    seconds = [end for cut in cuts for end in cut.ends]
    percentiles = statistics.quantiles(seconds, n=100, method="inclusive")
    is_met = percentiles[98] < BAR_SECONDS
    p50, p99, longest = (1000 * value for value in (percentiles[49], percentiles[98], max(seconds)))
    print(f"revoke to disconnect, {len(seconds)} {how}: p50 {p50:.1f} ms  p99 {p99:.1f} ms  max {longest:.1f} ms")
    print(f"  of that the transaction: p50 {1000 * statistics.median(cut.transaction for cut in cuts):.1f} ms")
    print(f"  bar: p99 < {BAR_SECONDS:.0f} s: {'met' if is_met else 'MISSED'}  (load average {os.getloadavg()[0]:.1f})")
    return is_met
