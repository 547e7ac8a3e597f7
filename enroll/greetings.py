"""How often a device's hello is answered: at once, but not again within two seconds (pure).

An answer is every unfinished command of the device. One that says hello in a loop would have dispatch read and send all
of them each time, and its fleet wait. What came too early is held back, the last of each device, and answered when its
time has come, so the last hello is always answered. Held back in memory: it is lost if the service is killed within
these two seconds, and so is a hello that the device repeats no more.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from enroll.reports import HelloSeen, Report, StateSeen, StatusSeen
from fleet.identity import DeviceId
from fleet.messages import Presence

INTERVAL_SECONDS: Final = 2.0


@dataclass(slots=True)
class Greetings:
    """The hellos of all devices, or what they say of their state (`kind`), which is held to `interval_seconds` alike.

    Times are monotonic, in seconds; memory holds those of the last interval.
    """

    kind: type[HelloSeen] | type[StateSeen] = HelloSeen
    interval_seconds: float = INTERVAL_SECONDS
    _answered: OrderedDict[DeviceId, float] = field(default_factory=OrderedDict)  # when last, from the oldest on
    _held: dict[DeviceId, HelloSeen | StateSeen] = field(default_factory=dict)

    def timely(self, reports: Sequence[Report], now: float) -> list[Report]:
        """What is to be recorded now: the reports but for early hellos, and the held ones whose time has come."""
        self._forget(now)
        passed = [report for report in reports if not self._holds(report)]
        recent = self._answered, {report.device for report in passed if isinstance(report, self.kind)}
        return passed + [hello for device, hello in self._held.items() if not any(device in each for each in recent)]

    def answered(self, reports: Sequence[Report], now: float) -> None:
        """These were recorded, and their hellos answered."""
        for report in reports:
            if isinstance(report, self.kind):
                self._held.pop(report.device, None)
                self._answered[report.device] = now
                self._answered.move_to_end(report.device)

    def _holds(self, report: Report) -> bool:
        if isinstance(report, StatusSeen) and report.status.presence is Presence.OFFLINE:
            self._held.pop(report.device, None)  # it has gone again, and will say hello when it is back
        if not isinstance(report, self.kind) or report.device not in self._answered:
            return False
        self._held[report.device] = report
        return True

    def _forget(self, now: float) -> None:
        while self._answered and now - next(iter(self._answered.values())) >= self.interval_seconds:
            self._answered.popitem(last=False)
