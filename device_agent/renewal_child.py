"""One renewal up to the proof, in a process of its own: what `device-agent run` starts, so that it stays small.

It prints one line of JSON: `{"outcome": "ready", ...}`, `{"outcome": "later", "wait_seconds": N}`, or
`{"outcome": "failed", "code": ..., ...}`. A composition root, as `cli` is: it reads the clock.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from device_agent import timekeeping
from device_agent.hardware import read_hardware
from device_agent.renewal import Code, Problem
from device_agent.renewing import Later, NotRenewed, Order, Renewing
from device_agent.store import PosixDisk, Store, credential_or_none
from fleet.errors import FleetError
from fleet.layout import AgentHome, Credential


def main(arguments: Sequence[str] | None = None) -> int:
    """Always 0 if the line was printed: what it says is the outcome."""
    parser = argparse.ArgumentParser(prog="renewal_child")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--paced", action="store_true")
    parser.add_argument("--fresh", action="store_true")
    options = parser.parse_args(arguments)
    home, disk = AgentHome(options.home), PosixDisk()
    credential = credential_or_none(Store(home, disk))
    clock = timekeeping.timekeeper(_utc_now, time.monotonic, home=home, disk=disk, credential=credential)
    renewing = Renewing(home, disk, clock, read_hardware())
    print(json.dumps(_outcome(renewing, Order(options.paced, options.fresh))), flush=True)
    return 0


def _utc_now() -> datetime:
    return datetime.now(UTC)


def _outcome(renewing: Renewing, order: Order) -> dict[str, Any]:
    try:
        found = renewing.prepare(order)
    except NotRenewed as error:
        return _failed(error.problem)
    except FleetError as error:
        return _failed(Problem(Code.DISK, error.message, error.hint))
    match found:
        case Later(wait_seconds):
            return {"outcome": "later", "wait_seconds": wait_seconds}
        case Credential():
            return {"outcome": "ready", **json.loads(found.encode())}


def _failed(problem: Problem) -> dict[str, Any]:
    return {
        "outcome": "failed",
        "code": str(problem.code),
        "message": problem.message,
        "hint": problem.hint,
        "retry_seconds": problem.retry_seconds,
    }


if __name__ == "__main__":
    sys.exit(main())
