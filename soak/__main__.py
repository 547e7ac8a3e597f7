"""Long runs under ./dev soak: random load with an account of every message, or one kind of fault at its full length.

    ./dev soak [--minutes N] [--seed N] [...]    random load on a real broker, and an account of every message
    ./dev soak NAME [...]                        one of the faults below

Honest devices, readers and a commander; revocations and suspensions; hostile clients. First for a while to warm up,
then for as long as was asked. After each, everything that was owed must have come, and nothing else; and at the end the
broker's memory must be where it was after the first.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import secrets
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import uvloop

from soak.rounds import Options, soak

FAULTS: Final = {
    "broker-kill": ("soak.broker_kill", "kill -9 of broker serve under load, five hundred times"),
    "jobs": ("tests.faults.jobs_cut", "kill -9 of enroll serve before each write of its registry while a job runs"),
    "kill-service": ("tests.faults.service_cut", "kill -9 of enroll serve before each write of its registry"),
    "power-cut": ("tests.faults.power_cut", "a device's power cut at every system call that touches its files"),
    "renewal-storm": ("tests.faults.renewal_storm", "10,000 devices whose renewals are due in one minute"),
    "renewals": ("tests.faults.renewals", "twenty renewals of certificates that live a minute, under telemetry"),
    "storm": ("tests.faults.storm", "a broker that restarts under a few hundred agents"),
}
"""The long forms of what tests/system runs in short: the module whose `main` it is, and what it does."""


def main(arguments: Sequence[str]) -> int:
    """Run what is named first, or the load; 0 if nothing was wrong, 1 if something was, 130 if it was interrupted."""
    if not arguments or arguments[0].startswith("-"):
        return load(arguments)
    name, *rest = arguments
    if name not in FAULTS:
        print(f"error: no soak {name!r}\nhint: one of {', '.join(FAULTS)}, or none for the load", file=sys.stderr)
        return 2
    try:
        return int(importlib.import_module(FAULTS[name][0]).main(rest))
    except KeyboardInterrupt:
        print("soak: interrupted", file=sys.stderr)
        return 130


def load(arguments: Sequence[str]) -> int:
    """Run the load."""
    parser = argparse.ArgumentParser(prog="dev soak", description=__doc__, epilog=_epilog(), formatter_class=_Lines)
    parser.add_argument("--minutes", type=float, default=15.0, help="of load after the warm-up (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**32), help="of the randomness")
    parser.add_argument("--devices", type=int, default=40, help="honest devices (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=200.0, help="their messages a second (default: %(default)s)")
    chosen = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    options = Options(folder, 60 * chosen.minutes, chosen.seed, chosen.devices, chosen.rate)
    is_good = False
    try:
        is_good = uvloop.run(soak(options))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("soak: interrupted", file=sys.stderr)
        is_good = True
        return 130
    finally:
        if is_good:
            shutil.rmtree(folder)
        else:
            print(f"soak: logs are in {folder}", file=sys.stderr)
    return 0 if is_good else 1


_Lines: Final = argparse.RawDescriptionHelpFormatter


def _epilog() -> str:
    return "\n".join(
        ("faults, each with --help of its own:", *(f"  {name:16}{what}" for name, (_, what) in FAULTS.items()))
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
