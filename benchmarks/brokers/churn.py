"""A directory that changes: a device of a registry is suspended or resumed every so many milliseconds, until killed.

`python -m benchmarks.brokers.churn HOME DEVICE MILLISECONDS`: a program of its own, so that it costs the load nothing.
"""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from enroll import service
from enroll.registry import Registry
from fleet.identity import DeviceId
from fleet.layout import AdminHome


def main(home: AdminHome, device: DeviceId, period_seconds: float) -> None:
    """Change it, each time when that is due."""
    changes, due = (service.suspend, service.resume), time.monotonic()
    with Registry.open(home.registry) as registry:
        print("ready", flush=True)
        while True:
            for change in changes:
                time.sleep(max(0.0, due - time.monotonic()))
                due += period_seconds
                change(registry, device, by="bench", now=datetime.now(UTC))


if __name__ == "__main__":
    path, name, milliseconds = sys.argv[1:]
    main(AdminHome(Path(path)), DeviceId(name), int(milliseconds) / 1000)
