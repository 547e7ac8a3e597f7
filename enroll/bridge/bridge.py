"""From the fleet's broker to the one that Home Assistant uses, until told to stop: what is true now, and no history.

One thread. Where one of the two brokers is away both connections are made anew: what is shown was noted here, and is
published again. What the fleet says meanwhile is not waited for; retained statuses come again.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from enroll.backoff import Backoff
from enroll.bridge.entities import Value, values
from enroll.bridge.house import House, Publication
from enroll.bridge.second import OFFLINE, NotTrusted, Second, SecondConnection
from enroll.export.exporter import Ports
from enroll.export.readings import Reading, read
from enroll.mqtt_client import Connection, Incoming
from enroll.rate_limit import Sparsely
from enroll.registry import RegistryUnavailable
from fleet import messages, topics
from fleet.errors import Denied, FleetError, Unreachable
from fleet.identity import DeviceId
from fleet.logs import event

FILTERS: Final = ("devices/+/up/telemetry/+", "devices/+/up/status")
_TURN_SECONDS: Final = 0.2

_log = logging.getLogger(__name__)


class TakenOver(FleetError):
    """Another bridge has our name: whoever came last keeps it, or the two would end each other's connection for ever.

    MQTT 3.1.1 does not say why a connection ends, so each bridge leaves its mark where the next connection finds it.
    """


class Roster(Protocol):
    """Who is shown, by now."""

    def has(self, id: DeviceId) -> bool:
        """Whether this one is."""

    def gone(self, shown: Sequence[DeviceId], *, is_new: bool = False) -> list[DeviceId]:
        """Those of `shown` who are not any more; looked up when something may have changed, or `shown` is new."""


@dataclass(slots=True)
class Bridge:
    """One bridge, run once."""

    connect: Callable[[Sequence[str]], Connection]
    second: Second
    house: House
    roster: Roster
    ports: Ports
    mark: bytes
    """What no other bridge has, nor this one after a restart."""
    _was_ready: bool = False
    _aside: Sparsely = field(default_factory=lambda: Sparsely(forget_seconds=3600.0))
    _ignored: Sparsely = field(default_factory=lambda: Sparsely(forget_seconds=3600.0))

    def run(self) -> None:
        """Show the fleet until stopped. Raises: Denied, NotTrusted (at the first connection), TakenOver, FleetError."""
        backoff = Backoff(self.ports.random)
        while not self.ports.is_stopping():
            began = self.ports.monotonic()
            self._attempt()
            if not self.ports.is_stopping():
                self.ports.wait(backoff.after(self.ports.monotonic() - began))

    def _attempt(self) -> None:
        """Both connections, until one of them ends."""
        layout = self.house.layout
        try:
            with contextlib.closing(SecondConnection.open(self.second, layout.bridge, self.ports.monotonic)) as second:
                try:
                    with contextlib.closing(self.connect(FILTERS)) as first:
                        self._begin(second)
                        self._live(first, second)
                except TakenOver:  # whose name it is now says itself that it is online
                    raise
                except BaseException:
                    self._say_offline(second)
                    raise
                self._say_offline(second)
        except (Unreachable, Denied, RegistryUnavailable) as error:
            if isinstance(error, Denied | NotTrusted) and not self._was_ready:
                raise
            _log.warning(event("bridge.offline", reason=error.message, hint=error.hint or None))

    def _say_offline(self, second: SecondConnection) -> None:
        """A connection that is closed in order leaves no will."""
        with contextlib.suppress(Unreachable):
            second.publish([Publication(self.house.layout.bridge, OFFLINE)], self.ports.monotonic)
            second.settle(self.ports.monotonic)

    def _begin(self, second: SecondConnection) -> None:
        layout = self.house.layout
        own = Publication(layout.owner, self.mark)
        if not self._was_ready:  # at once: from here on it is the other one that has lost the name
            second.publish([own], self.ports.monotonic)
        for topic, payload in second.recall((layout.owner, layout.configs), self.ports.monotonic):
            if topic != layout.owner:
                self.house.recall(topic, payload)
            elif payload != self.mark:
                words = f"another bridge has begun as {layout.name} at {self.second}, and has its place"
                raise TakenOver(words, hint="stop one of the two, or give each a name: --name NAME")
        second.publish([own], self.ports.monotonic)
        second.publish(self.house.everything(), self.ports.monotonic)
        self._sweep(second, is_new=True)  # the other broker may have kept what was removed as it was lost
        second.settle(self.ports.monotonic)
        _log.info(event("bridge.online", broker=self.second, devices=len(self.house.devices)))
        if not self._was_ready:
            self._was_ready = True
            self.ports.on_ready()

    def _live(self, first: Connection, second: SecondConnection) -> None:
        while not self.ports.is_stopping():
            for message in first.turn(_TURN_SECONDS):
                second.publish(self._heard(message), self.ports.monotonic)
                first.ack(message)
            second.turn()
            self._sweep(second)

    def _sweep(self, second: SecondConnection, *, is_new: bool = False) -> None:
        for device in self.roster.gone(self.house.devices, is_new=is_new):
            second.publish(self.house.remove(device), self.ports.monotonic)
            _log.info(event("bridge.removed", device=device))

    def _heard(self, message: Incoming) -> list[Publication]:
        try:
            topic = topics.parse(message.topic)
            match topic:
                case topics.Status(device) if self.roster.has(device):
                    return self.house.presence(device, messages.decode_status(message.payload, device))
                case topics.Telemetry(device, stream) if self.roster.has(device) and not message.retain:
                    reading = read(message.topic, message.payload, self.ports.clock())
                    return [] if reading.payload is not None else self._measured(reading, values(stream, reading.data))
        except RegistryUnavailable:
            raise
        except FleetError as error:
            self._set_aside(message.topic, error)
        return []

    def _measured(self, reading: Reading, found: Iterable[Value]) -> list[Publication]:
        """What is to be shown of it; that there is more than is shown is said."""
        before = self.house.ignored
        shown = self.house.hear(reading, found)
        if self.house.ignored > before and (count := self._ignored.count(reading.device, self.ports.monotonic())):
            _log.warning(event("sensor.ignored", device=reading.device, count=count))
        return shown

    def _set_aside(self, topic: str, error: FleetError) -> None:
        device = [*topic.split("/"), ""][1]
        if count := self._aside.count(device, self.ports.monotonic()):
            _log.warning(event("message.set_aside", topic=topic[:120], reason=error.message[:120], count=count))
