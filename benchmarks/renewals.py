"""What a renewal costs the service in CPU: all requests of an agent, each over TLS of its own, as fast as they come.

Beside it, in the same run, as many requests over mutual TLS that ask for nothing but the pacing. What the service used
is what the kernel accounted to its process.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks import _fleet
from benchmarks._renewals import Renewer
from benchmarks.enrol import Load, measured

_WARM = 30
_REQUESTS = 5  # the certificate, the CA's, the proof, the confirmation; and the pacing before them


def main(arguments: Sequence[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="bench renewals", description=__doc__)
    parser.add_argument("--count", type=int, default=500, help="renewals (default: %(default)s)")
    parser.add_argument("--parallel", type=int, default=4, help="devices at a time (default: %(default)s)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        home = _fleet.new_home(Path(folder) / "fleet")
        clients = _fleet.add_clients(home, [f"bench-{number}" for number in range(options.count + _WARM)])
        with _fleet.running("enroll", home) as service:
            devices = [Renewer(home, service.port, device, files) for device, files in clients.items()]

            def load(each: Callable[[Renewer], object], chosen: Sequence[Renewer]) -> Load:
                return measured(service.process, lambda: _all(each, chosen, options.parallel), len(chosen))

            _all(_whole, devices[:_WARM], options.parallel)
            asked = load(Renewer.wait_seconds, devices[_WARM:])
            renewed = load(_whole, devices[_WARM:])
    report(asked, renewed)
    return 0


def _whole(device: Renewer) -> None:
    device.wait_seconds()
    device.renew()


def _all(each: Callable[[Renewer], object], devices: Sequence[Renewer], parallel: int) -> None:
    with ThreadPoolExecutor(parallel) as pool:
        for _ in pool.map(each, devices):
            pass


def report(asked: Load, renewed: Load) -> None:
    """Print both."""
    print(f"{'':44}{'CPU ms each':>12}{'per second':>12}")
    for name, load in (
        ("mutual TLS + GET /v1/renewal-info", asked),
        (f"a renewal, {_REQUESTS} requests, durable", renewed),
    ):
        print(f"{name:44}{load.cpu_ms:12.2f}{load.count / load.wall_seconds:12.0f}")
    share = _REQUESTS * asked.cpu_ms / renewed.cpu_ms
    print(f"  of that TLS and HTTP: {share:.0%}  ({renewed.count} renewals, load average {os.getloadavg()[0]:.1f})")
