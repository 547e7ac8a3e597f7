"""What has to be read of the messages of one turn (pure): of what a device says over and over, what is still true.

A device may say a thing 200 times a second, and 64 KB each time. Of its statuses, hellos and states the last of a turn
counts; a result counts once per state, and one for no command of that device is not even read. So what a turn costs
depends on how many devices speak in it, not on how much one of them says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from enroll.mqtt_client import Incoming
from enroll.registry.records import CommandState
from enroll.reports import Report, ResultSeen, read_report
from fleet import topics
from fleet.errors import FleetError, NotFound
from fleet.identity import DeviceId
from fleet.messages import ResultState

Given = Mapping[str, tuple[DeviceId, CommandState]]
"""By command id: whose it is, and how far it has come."""


class Aside(Protocol):
    """Takes what cannot be handled."""

    def add(self, device: str, what: str, error: Exception) -> None: ...


_Placed = tuple[int, Incoming]


@dataclass(frozen=True, slots=True)
class Sifted:
    """The messages of one turn by device and channel, each with its place among all; nothing was decoded yet."""

    latest: dict[tuple[DeviceId, type], list[_Placed]] = field(default_factory=dict)
    results: dict[tuple[DeviceId, str], list[_Placed]] = field(default_factory=dict)

    @property
    def command_ids(self) -> set[str]:
        return {command_id for _, command_id in self.results}

    def reports(self, given: Given, aside: Aside) -> list[Report]:
        """What there is to record, in the order in which it was said. `given` has the commands of `command_ids`."""
        found: list[tuple[int, Report]] = []
        for pile in self.latest.values():
            found += _last(pile, aside)
        for (device, command_id), pile in self.results.items():
            owner, state = given.get(command_id, (None, CommandState.QUEUED))
            if owner != device:
                _refuse(device, command_id, pile, aside)
            elif any(state.may_become(each) for each in ResultState):
                found += _each_state(pile, aside)
            else:
                found += _last(pile, aside)  # no news, but a sign of life
        return [report for _, report in sorted(found, key=lambda each: each[0])]


def sift(arrived: Sequence[Incoming], aside: Aside) -> Sifted:
    """Sort the messages of one turn by what they are about."""
    sifted = Sifted()
    for place, message in enumerate(arrived):
        try:
            topic = topics.parse(message.topic)
            match topic:
                case (
                    topics.Status(device)
                    | topics.Hello(device)
                    | topics.ReportedState(device)
                    | topics.DeclaredCommands(device)
                ):
                    sifted.latest.setdefault((device, type(topic)), []).append((place, message))
                case topics.Result(device, command_id):
                    sifted.results.setdefault((device, command_id), []).append((place, message))
                case _:
                    read_report(message.topic, b"", is_retained=False)
        except FleetError as error:
            aside.add([*message.topic.split("/"), ""][1], message.topic, error)
    return sifted


def _read(placed: _Placed, aside: Aside) -> Iterator[tuple[int, Report]]:
    place, message = placed
    try:
        yield place, read_report(message.topic, message.payload, is_retained=message.retain)
    except FleetError as error:
        aside.add(message.topic.split("/")[1], message.topic, error)


def _last(pile: list[_Placed], aside: Aside) -> list[tuple[int, Report]]:
    """The last that can be read."""
    for placed in reversed(pile):
        for found in _read(placed, aside):
            return [found]
    return []


def _each_state(pile: list[_Placed], aside: Aside) -> list[tuple[int, Report]]:
    """The first of each state, and nothing after the end of the command."""
    found: dict[ResultState, tuple[int, Report]] = {}
    for placed in pile:
        for place, report in _read(placed, aside):
            assert isinstance(report, ResultSeen)
            found.setdefault(report.result.state, (place, report))
        if any(state.is_final for state in found):
            break
    return list(found.values())


def _refuse(device: DeviceId, command_id: str, pile: list[_Placed], aside: Aside) -> None:
    error = NotFound(f"{device} has no command {command_id}")
    for _ in pile:
        aside.add(device, ResultSeen.__name__, error)
