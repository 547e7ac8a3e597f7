"""Every topic: one type per channel, each with `format()`; `parse()` is the inverse. Matching and covering of filters.

Topic names and filters follow MQTT 3.1.1, section 4.7.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from fleet.errors import InvalidInput
from fleet.identity import DeviceId

MAX_TOPIC_BYTES = 65_535  # MQTT 3.1.1, 1.5.3: a two-byte length
# One level that a peer chooses: a stream, an event type, a command name or an id.
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,62}[A-Za-z0-9])?")

NOTICES = "fleet/notices/#"
ALL_UP = "devices/+/up/#"
ALL_DOWN = "devices/+/down/#"
UP_CHANNELS = ("telemetry", "events", "status", "hello", "state", "results", "jobs", "commands")
"""What devices publish on: the level behind `up`."""


class InvalidTopic(InvalidInput):
    """Not a topic, or not one of ours."""


def check_name(value: str) -> str:
    """`value` if it can stand as one level of a topic. Raises: InvalidTopic."""
    if not _NAME.fullmatch(value):
        raise InvalidTopic(
            f"{value[:80]!r} cannot be a level of a topic",
            hint="use letters, digits, _, . and -, starting and ending with a letter or digit, at most 64 characters",
        )
    return value


@dataclass(frozen=True, slots=True)
class _DeviceTopic:
    """A topic of one device."""

    device: DeviceId


@dataclass(frozen=True, slots=True)
class Telemetry(_DeviceTopic):
    """Measurements; QoS 0 or 1."""

    stream: str

    def format(self) -> str:
        return f"devices/{self.device}/up/telemetry/{check_name(self.stream)}"


@dataclass(frozen=True, slots=True)
class Event(_DeviceTopic):
    """Something that happened; QoS 1."""

    type: str

    def format(self) -> str:
        return f"devices/{self.device}/up/events/{check_name(self.type)}"


@dataclass(frozen=True, slots=True)
class Status(_DeviceTopic):
    """Online or offline, also the will; QoS 1, retained."""

    def format(self) -> str:
        return f"devices/{self.device}/up/status"


@dataclass(frozen=True, slots=True)
class Hello(_DeviceTopic):
    """Asks for what is due after a connect; QoS 1."""

    def format(self) -> str:
        return f"devices/{self.device}/up/hello"


@dataclass(frozen=True, slots=True)
class ReportedState(_DeviceTopic):
    """A patch of the reported state and its version; QoS 1."""

    def format(self) -> str:
        return f"devices/{self.device}/up/state"


@dataclass(frozen=True, slots=True)
class Result(_DeviceTopic):
    """How a command went; QoS 1."""

    command_id: str

    def format(self) -> str:
        return f"devices/{self.device}/up/results/{check_name(self.command_id)}"


@dataclass(frozen=True, slots=True)
class JobProgress(_DeviceTopic):
    """How a job goes on; QoS 1."""

    job_id: str

    def format(self) -> str:
        return f"devices/{self.device}/up/jobs/{check_name(self.job_id)}"


@dataclass(frozen=True, slots=True)
class DeclaredCommands(_DeviceTopic):
    """Which commands the device takes, and with what arguments; QoS 1."""

    def format(self) -> str:
        return f"devices/{self.device}/up/commands"


@dataclass(frozen=True, slots=True)
class Command(_DeviceTopic):
    """An order with a deadline; QoS 1."""

    name: str
    command_id: str

    def format(self) -> str:
        return f"devices/{self.device}/down/commands/{check_name(self.name)}/{check_name(self.command_id)}"


@dataclass(frozen=True, slots=True)
class DesiredState(_DeviceTopic):
    """A delta of the desired state and its version; QoS 1."""

    def format(self) -> str:
        return f"devices/{self.device}/down/state"


@dataclass(frozen=True, slots=True)
class Job(_DeviceTopic):
    """A job for one device; QoS 1."""

    job_id: str

    def format(self) -> str:
        return f"devices/{self.device}/down/jobs/{check_name(self.job_id)}"


@dataclass(frozen=True, slots=True)
class Control(_DeviceTopic):
    """Pacing of reconnects, renewals and rates; QoS 1."""

    def format(self) -> str:
        return f"devices/{self.device}/down/control"


@dataclass(frozen=True, slots=True)
class Notice:
    """A word to every principal; QoS 1."""

    name: str

    def format(self) -> str:
        return f"fleet/notices/{check_name(self.name)}"


Topic = (
    Telemetry
    | Event
    | Status
    | Hello
    | ReportedState
    | Result
    | JobProgress
    | DeclaredCommands
    | Command
    | DesiredState
    | Job
    | Control
    | Notice
)


def parse(topic: str) -> Topic:
    """The channel that `topic` belongs to. Raises: InvalidTopic for a topic that is none of ours, InvalidDeviceId."""
    match topic.split("/"):
        case ["devices", device, direction, *rest] if rest:
            found = _parse_device(DeviceId(device), direction, rest)
        case ["fleet", "notices", name]:
            found = Notice(check_name(name))
        case _:
            found = None
    if found is None:
        raise InvalidTopic(f"{topic[:120]!r} is not a topic of a fleet")
    return found


def _parse_device(device: DeviceId, direction: str, rest: list[str]) -> Topic | None:
    match direction, rest:
        case "up", ["telemetry", stream]:
            return Telemetry(device, check_name(stream))
        case "up", ["events", kind]:
            return Event(device, check_name(kind))
        case "up", ["status"]:
            return Status(device)
        case "up", ["hello"]:
            return Hello(device)
        case "up", ["state"]:
            return ReportedState(device)
        case "up", ["results", command_id]:
            return Result(device, check_name(command_id))
        case "up", ["jobs", job_id]:
            return JobProgress(device, check_name(job_id))
        case "up", ["commands"]:
            return DeclaredCommands(device)
        case "down", ["commands", name, command_id]:
            return Command(device, check_name(name), check_name(command_id))
        case "down", ["state"]:
            return DesiredState(device)
        case "down", ["jobs", job_id]:
            return Job(device, check_name(job_id))
        case "down", ["control"]:
            return Control(device)
    return None


def own_up(device: DeviceId) -> str:
    """The filter of all that `device` publishes."""
    return f"devices/{device}/up/#"


def own_down(device: DeviceId) -> str:
    """The filter of all that `device` reads of its own."""
    return f"devices/{device}/down/#"


def is_topic_name(topic: str) -> bool:
    """Whether `topic` can be published to: not empty, no wildcard, no NUL, at most 65,535 bytes (MQTT 3.1.1, 4.7.3)."""
    return _is_topic_text(topic) and "+" not in topic and "#" not in topic


def is_topic_filter(topic_filter: str) -> bool:
    """Whether `topic_filter` can be subscribed to (MQTT 3.1.1, 4.7.1): a wildcard stands alone in its level, # last."""
    if not _is_topic_text(topic_filter):
        return False
    levels = topic_filter.split("/")
    return all(level in ("+", "#") or not ("+" in level or "#" in level) for level in levels) and "#" not in levels[:-1]


def _is_topic_text(text: str) -> bool:
    return 0 < len(text) and "\0" not in text and len(text.encode("utf-8", "surrogatepass")) <= MAX_TOPIC_BYTES


def matches(topic_filter: str, topic: str) -> bool:
    """Whether a valid filter matches a topic name (MQTT 3.1.1, 4.7): no leading wildcard matches a `$` topic."""
    if "+" in topic_filter:
        return _expression(topic_filter)(topic) is not None
    if topic_filter[-1:] != "#":
        return topic_filter == topic
    if topic_filter == "#":
        return topic[:1] != "$"
    return topic.startswith(topic_filter[:-1]) or topic == topic_filter[:-2]  # the parent itself too: 4.7.1.2


@lru_cache(maxsize=1024)
def _expression(topic_filter: str) -> Callable[[str], object]:
    """Gives None for each topic name that a valid filter does not match."""
    levels = ["[^/]*" if level == "+" else re.escape(level) for level in topic_filter.removesuffix("/#").split("/")]
    pattern = "/".join(levels) + ("(?:/.*)?" if topic_filter.endswith("/#") else "")
    return re.compile(rf"(?!\$){pattern}" if topic_filter[0] == "+" else pattern, re.DOTALL).fullmatch


def covers(allowed: str, requested: str) -> bool:
    """Whether every topic that the valid filter `requested` matches is matched by the valid filter `allowed` too."""
    if requested[:1] == "$" and allowed[:1] in ("+", "#"):
        return False
    outer, inner = allowed.split("/"), requested.split("/")
    for at, level in enumerate(outer):
        if level == "#":
            return True
        if at >= len(inner) or inner[at] == "#" or level not in ("+", inner[at]):
            return False
    return len(outer) == len(inner)
