"""How much a principal may send: token buckets that outlive its connections, so that a reconnect buys nothing."""

from __future__ import annotations

from typing import Final

from fleet.identity import Role, Serial
from fleet.limits import Limits

_MAX_SERIALS: Final = 4096


class Bucket:
    """A token bucket that may run into debt: what came is taken, and what comes next waits.

    `rate` is in tokens a second; times are of one monotonic clock, in seconds.
    """

    __slots__ = ("at", "burst", "level", "rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate = rate
        self.burst = self.level = max(burst, 1.0)
        self.at = now

    def take(self, amount: float, now: float) -> float:
        """Take `amount`; the seconds until the debt is paid, 0 if there is none."""
        level = self.level + (now - self.at) * self.rate
        self.at = now
        level = (level if level < self.burst else self.burst) - amount  # noqa: FURB136 - on the path of every read
        self.level = level
        return 0.0 if level >= 0 else -level / self.rate

    def give_back(self, amount: float) -> None:
        """What was taken was not used."""
        self.level += amount


class Usage:
    """What one principal has used of its rates, over all its connections."""

    __slots__ = ("_bytes", "_connects", "_max_hold_seconds", "_messages", "_slowed_since")

    def __init__(self, limits: Limits, role: Role, now: float) -> None:
        multiple, burst = limits.multiple_for(role), limits.burst_seconds
        messages, size = limits.messages_per_second * multiple, limits.bytes_per_second * multiple
        self._messages = Bucket(messages, messages * burst, now)
        self._bytes = Bucket(size, size * burst, now)
        self._connects = Bucket(limits.connects_per_minute / 60, limits.connects_per_minute, now)
        self._max_hold_seconds = limits.connect_seconds / 2
        self._slowed_since: float | None = None

    def connect(self, now: float) -> float | None:
        """The seconds that a CONNECT has to wait; None where there would be too many, and it is refused."""
        seconds = self._connects.take(1, now)
        if seconds <= self._max_hold_seconds:
            return seconds
        self._connects.give_back(1)
        return None

    def send(self, messages: int, size_bytes: int, now: float) -> float:
        """The seconds for which no more is read of one that sent this."""
        # `Bucket.take` for both, without a call: this is on the path of every read.
        bucket = self._messages
        level = bucket.level + (now - bucket.at) * bucket.rate
        bucket.at = now
        bucket.level = for_messages = (level if level < bucket.burst else bucket.burst) - messages  # noqa: FURB136
        bucket = self._bytes
        level = bucket.level + (now - bucket.at) * bucket.rate
        bucket.at = now
        bucket.level = for_bytes = (level if level < bucket.burst else bucket.burst) - size_bytes  # noqa: FURB136
        if for_messages >= 0 <= for_bytes:
            self._slowed_since = None
            return 0.0
        if self._slowed_since is None:
            self._slowed_since = now
        return max(-for_messages / self._messages.rate, -for_bytes / self._bytes.rate)

    def slowed_for(self, now: float) -> float:
        """For how many seconds it has been too fast without a break."""
        return 0.0 if self._slowed_since is None else now - self._slowed_since


class Inquiries:
    """How often the service is asked for a serial that is not listed: no more often than its holder may connect."""

    def __init__(self, connects_per_minute: int) -> None:
        self._connects_per_minute = connects_per_minute
        self._of_serial: dict[Serial, Bucket] = {}

    def may_ask(self, serial: Serial, now: float) -> bool:
        """Whether to ask for this serial now, which then counts."""
        bucket = self._of_serial.get(serial)
        if bucket is None:
            if len(self._of_serial) >= _MAX_SERIALS:
                self._of_serial.clear()  # nobody but our own CA makes serials, so this takes that many devices
            per_minute = self._connects_per_minute
            bucket = self._of_serial[serial] = Bucket(per_minute / 60, per_minute, now)
        if bucket.take(1, now):
            bucket.give_back(1)
            return False
        return True
