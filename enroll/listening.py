"""What an admin listens to: the topic filters of one device's channels, or of everybody's. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from fleet import topics
from fleet.errors import InvalidInput
from fleet.identity import DeviceId


def topic_filters(device: DeviceId | None, channels: Iterable[str]) -> tuple[str, ...]:
    """The filters to subscribe to: none covers another, so that the broker sends each message once.

    A channel is `telemetry` or, narrower, `telemetry/load`; none at all means all of them. Raises: InvalidInput.
    """
    above = topics.ALL_UP if device is None else topics.own_up(device)
    found = tuple(dict.fromkeys(above.removesuffix("#") + _levels(each) + "/#" for each in channels)) or (above,)
    return tuple(each for each in found if not any(other != each and topics.covers(other, each) for other in found))


def _levels(channel: str) -> str:
    """The levels behind `up`. Raises: InvalidInput."""
    name, *rest = channel.split("/")
    if name not in topics.UP_CHANNELS or len(rest) > 1:
        hint = f"one of {', '.join(topics.UP_CHANNELS)}, or one of its names as in telemetry/load"
        raise InvalidInput(f"{channel[:80]!r} is not a channel", hint=hint)
    return "/".join((name, *map(topics.check_name, rest)))
