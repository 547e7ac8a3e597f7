"""All that the broker tells of itself: one table, from which come both `/metrics` and the topics under `$SYS/`.

No figure is about one device: neither an id nor a common name, a serial or an address stands in any of them. Topics are
named as Mosquitto names them where it has the same (mosquitto(8), "Broker Status").
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Final

from broker.engine import Reason, Stats

METRIC_PREFIX: Final = "mqtt_fleet_broker_"
TOPIC_PREFIX: Final = "$SYS/broker/"

DELAY_BOUNDS_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_WINDOW_SECONDS: Final = 60.0


class LoopDelay:
    """How much later than it was due the event loop came to a callback: that much later it came to everything else."""

    def __init__(self) -> None:
        self.counts = [0] * (len(DELAY_BOUNDS_SECONDS) + 1)  # up to each bound, and beyond the last
        self.sum_seconds = 0.0
        self._window: float | None = None
        self._longest = self._longest_before = 0.0

    def record(self, seconds: float, now_seconds: float) -> None:
        """One callback came `seconds` late."""
        late = max(0.0, seconds)
        at = next((at for at, bound in enumerate(DELAY_BOUNDS_SECONDS) if late <= bound), len(DELAY_BOUNDS_SECONDS))
        self.counts[at] += 1
        self.sum_seconds += late
        if self._window is None or now_seconds - self._window >= _WINDOW_SECONDS:
            self._window, self._longest_before, self._longest = now_seconds, self._longest, 0.0
        self._longest = max(self._longest, late)

    @property
    def longest_seconds(self) -> float:
        """The longest of the last one to two minutes: whoever looks every minute misses none."""
        return max(self._longest, self._longest_before)

    def copy(self) -> LoopDelay:
        """As it is now, whatever is recorded later."""
        found = LoopDelay()
        found.counts, found.sum_seconds, found._longest = self.counts.copy(), self.sum_seconds, self.longest_seconds
        return found


@dataclass(frozen=True, slots=True)
class Readings:
    """Everything at one moment. `directory_age_seconds` is since the enrollment service was heard."""

    version: str
    started_at: datetime
    now: datetime
    stats: Stats
    delay: LoopDelay
    directory_age_seconds: float
    directory_seq: int
    principals: int


class Kind(Enum):
    COUNTER = "counter"
    GAUGE = "gauge"


@dataclass(frozen=True, slots=True)
class Figure:
    """One number: its metric (without prefix; of counters without `_total` too) and its topic; "" where it has none."""

    kind: Kind
    metric: str
    topic: str
    help: str
    read: Callable[[Readings], float]


@dataclass(frozen=True, slots=True)
class ReasonFigure:
    """A counter for each `Reason`, which stands in the metric's label `reason` and in the topic's last level."""

    metric: str
    topic: str
    help: str
    read: Callable[[Stats], Counter[Reason]]


def _now(metric: str, topic: str, help: str, read: Callable[[Stats], int]) -> Figure:
    return Figure(Kind.GAUGE, metric, topic, help, lambda readings: read(readings.stats))


def _since_start(metric: str, topic: str, help: str, read: Callable[[Stats], int]) -> Figure:
    return Figure(Kind.COUNTER, metric, topic, help, lambda readings: read(readings.stats))


FIGURES: Final = (
    _now("connections", "clients/connected", "Clients that are connected.", lambda s: s.connections),
    _now("connections_pending", "", "Connections that were not let in yet.", lambda s: s.pending),
    _now("sessions", "clients/total", "Sessions, of clients that are connected or come back.", lambda s: s.sessions),
    _now(
        "sessions_absent",
        "clients/disconnected",
        "Sessions kept for who is away.",
        lambda s: s.sessions - s.connections,
    ),
    _now("subscriptions", "subscriptions/count", "Subscriptions of all sessions.", lambda s: s.subscriptions),
    _now("retained_messages", "retained messages/count", "Retained messages.", lambda s: s.retained),
    _now("retained_bytes", "retained messages/bytes", "Bytes of retained messages.", lambda s: s.retained_bytes),
    _now("queued_messages", "queued messages/count", "Messages that wait for a client.", lambda s: s.queued),
    _now(
        "queued_bytes", "queued messages/bytes", "Bytes of messages that wait for a client.", lambda s: s.queued_bytes
    ),
    _now(
        "queue_deepest_messages", "queued messages/deepest", "Messages in the longest queue.", lambda s: s.deepest_queue
    ),
    _now("inflight_messages", "messages/inflight", "Messages sent and not acknowledged yet.", lambda s: s.inflight),
    _since_start("connections_accepted", "clients/accepted", "Connections that were let in.", lambda s: s.accepted),
    _since_start(
        "packets_received", "messages/received", "MQTT packets of any type received.", lambda s: s.packets_received
    ),
    _since_start("packets_sent", "messages/sent", "MQTT packets of any type sent.", lambda s: s.packets_sent),
    _since_start(
        "received_bytes", "bytes/received", "Bytes of MQTT received, without TLS.", lambda s: s.bytes_received
    ),
    _since_start("sent_bytes", "bytes/sent", "Bytes of MQTT sent, without TLS.", lambda s: s.bytes_sent),
    _since_start(
        "messages_received", "publish/messages/received", "PUBLISH packets received.", lambda s: s.messages_received
    ),
    _since_start("messages_sent", "publish/messages/sent", "PUBLISH packets sent.", lambda s: s.messages_sent),
    _since_start(
        "messages_dropped", "publish/messages/dropped", "Messages that a full queue lost.", lambda s: s.messages_dropped
    ),
    _since_start(
        "sessions_expired",
        "clients/expired",
        "Sessions whose clients were away too long.",
        lambda s: s.sessions_expired,
    ),
    _now(
        "store_failing",
        "store/failing",
        "1 while the disk does not take what has to be kept: nobody is promised anything.",
        lambda s: s.store_failing,
    ),
    _since_start("store_commits", "store/commits", "Commits of sessions and messages.", lambda s: s.store_commits),
    _since_start("store_failures", "store/failures", "Commits that the disk did not take.", lambda s: s.store_failures),
    _since_start("denied", "denied", "What clients tried and the rules do not allow.", lambda s: s.denied),
    _since_start("slowed", "slowed", "Times that a client sent too fast and was read more slowly.", lambda s: s.slowed),
    Figure(
        Kind.GAUGE,
        "directory_age_seconds",
        "directory/age",
        "Seconds since the enrollment service was heard; from 900 on operators and services are refused.",
        lambda r: round(r.directory_age_seconds, 3),
    ),
    Figure(
        Kind.GAUGE,
        "directory_sequence",
        "directory/sequence",
        "The newest change of the directory that is known here.",
        lambda r: r.directory_seq,
    ),
    Figure(
        Kind.GAUGE,
        "directory_principals",
        "directory/principals",
        "Principals in the directory.",
        lambda r: r.principals,
    ),
    Figure(
        Kind.GAUGE,
        "event_loop_delay_max_seconds",
        "loop/delay",
        "The latest that anything was come to in the last one to two minutes.",
        lambda r: round(r.delay.longest_seconds, 6),
    ),
    Figure(
        Kind.GAUGE,
        "start_time_seconds",
        "",
        "When the broker started, in Unix time.",
        lambda r: r.started_at.timestamp(),
    ),
)

BY_REASON: Final = (
    ReasonFigure("connections_refused", "clients/refused", "Connections that were not let in.", lambda s: s.refused),
    ReasonFigure(
        "connections_ended", "clients/ended", "Connections that were let in and have ended.", lambda s: s.ended
    ),
)

DELAY_METRIC: Final = ("event_loop_delay_seconds", "How late the event loop came to what was due.")
INFO_METRIC: Final = ("build", "The version of the broker.")


def topics(readings: Readings) -> dict[str, str]:
    """What stands under `$SYS/`, by topic. A reason that never occurred has no topic."""
    uptime = int((readings.now - readings.started_at).total_seconds())
    found = {"version": f"mqtt-fleet {readings.version}", "uptime": f"{uptime} seconds"}
    found.update((figure.topic, str(figure.read(readings))) for figure in FIGURES if figure.topic)
    found.update(_by_reason(readings.stats))
    return {TOPIC_PREFIX + topic: value for topic, value in found.items()}


def _by_reason(stats: Stats) -> Iterator[tuple[str, str]]:
    for figure in BY_REASON:
        for reason, count in figure.read(stats).items():
            yield f"{figure.topic}/{reason.value}", str(count)
