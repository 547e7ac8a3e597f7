"""Tells whoever may read `$SYS/` of sessions that begin and end, and which there are (`fleet/sessions.py`).

What it knows it has from the engine's events, so no message is touched. While nobody listens, a session costs one line
of JSON and one number. Changes go out at once, and then ten times a second, together; the list is made when somebody
subscribes, and of it only what has changed since.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Final

from broker.engine import Clock, Connected, Disconnected, Event, Reason
from broker.engines.amqtt.hub import Hub
from broker.engines.amqtt.packets import Publish
from fleet import sessions
from fleet.sessions import Alive, Began, Ended, Ending, bucket_of

_ROOT: Final = ("$SYS", "sessions")
FLUSH_SECONDS: Final = 0.1
_MOST_CHANGES: Final = 200  # in one message
_MOST_ENDED: Final = 1000  # sessions that ended, in all lists
_PAGE_SESSIONS: Final = 64  # in one bucket, about; at most four times as many before there are more buckets
_ENDINGS: Final = {reason: Ending(reason.value) for reason in Reason if reason.value in set(Ending)}


class Announcements:
    """The sessions of one hub, told from now on; `boot` names this start of the broker."""

    def __init__(
        self,
        hub: Hub,
        loop: asyncio.AbstractEventLoop,
        boot: str,
        now: Clock,
        period_seconds: float = sessions.HEARTBEAT_SECONDS,
    ) -> None:
        self._hub = hub
        self._loop = loop
        self._boot = boot
        self._now = now
        self._period_seconds = period_seconds
        self._began_at = loop.time()
        self._seq = 0
        self._numbers: dict[str, int] = {}  # by client id: under which number its session began
        self._lists: list[dict[str, bytes]] = [{}]  # bucket -> client id -> its line
        self._stale: set[int] = {0}  # buckets whose list is older than what happened
        self._ended: OrderedDict[int, tuple[str, bytes]] = OrderedDict()
        self._pending: list[bytes] = []
        self._flushed_at = loop.time() - FLUSH_SECONDS
        self._flush: asyncio.Handle | None = None
        self._observe = hub.observe
        for _, client in hub.live():
            self._enter(Connected(client, False))
        self._pending.clear()
        hub.observe = self._heard
        hub.refreshers[_ROOT[1]] = self._refresh
        self._timer = loop.call_later(period_seconds, self._tick)

    def stop(self) -> None:
        """The broker's last word; nothing is told any more."""
        self._timer.cancel()
        if self._flush is not None:
            self._flush.cancel()
        if self._has_listeners():
            self._send_changes()
            self._say_alive(is_stopping=True)
        self._hub.observe = self._observe
        self._hub.refreshers.pop(_ROOT[1], None)

    def _heard(self, event: Event) -> None:
        if isinstance(event, Connected | Disconnected):
            self._enter(event)
        self._observe(event)

    def _enter(self, event: Connected | Disconnected) -> None:
        self._seq += 1
        client, now = event.client, self._now()
        bucket = bucket_of(client.client_id, len(self._lists))
        self._stale.add(bucket)
        if isinstance(event, Connected):
            self._numbers[client.client_id] = self._seq
            began = Began(self._seq, client.client_id, client.principal, client.serial, client.peer, now)
            line = self._lists[bucket][client.client_id] = sessions.encode_change(began)
        else:
            number = self._numbers.pop(client.client_id, 0)
            self._lists[bucket].pop(client.client_id, None)
            ending = _ENDINGS.get(event.reason, Ending.OTHER)
            line = sessions.encode_change(Ended(self._seq, client.client_id, number, ending, now))
            self._ended[self._seq] = client.client_id, line
            if len(self._ended) > _MOST_ENDED:
                self._ended.popitem(last=False)
        if self._has_listeners():
            self._pending.append(line)
            self._flush_soon()

    def _has_listeners(self) -> bool:
        return self._hub.subscriptions.has_below(*_ROOT)

    # Changes

    def _flush_soon(self) -> None:
        if self._flush is None:
            wait = self._flushed_at + FLUSH_SECONDS - self._loop.time()
            self._flush = (
                self._loop.call_later(wait, self._flush_now) if wait > 0 else self._loop.call_soon(self._flush_now)
            )

    def _flush_now(self) -> None:
        self._flush, self._flushed_at = None, self._loop.time()
        self._send_changes()

    def _send_changes(self) -> None:
        """Nothing is pending but the last that happened, without a gap."""
        pending, self._pending = self._pending, []
        first = self._seq - len(pending) + 1
        for at in range(0, len(pending), _MOST_CHANGES):
            lines = pending[at : at + _MOST_CHANGES]
            last = first + at + len(lines) - 1
            payload = sessions.encode_changes(self._boot, first + at, last, lines)
            self._hub.publish_own(Publish.of(sessions.CHANGES, payload, 0, retain=False))

    # The list

    def _refresh(self) -> None:
        """Somebody subscribes: have a list of this moment."""
        self._send_changes()  # to who listens already; or the next would begin in the middle
        live = sum(map(len, self._lists))
        if live > 4 * _PAGE_SESSIONS * len(self._lists) or (
            len(self._lists) > 1 and live < _PAGE_SESSIONS * len(self._lists) // 4
        ):
            self._regroup(max(1, min(live // _PAGE_SESSIONS, sessions.MAX_BUCKETS)))
        self._hub.retained.set(self._alive(retain=True), None)
        buckets = len(self._lists)
        ended: dict[int, list[bytes]] = {}
        for client_id, line in self._ended.values():
            ended.setdefault(bucket_of(client_id, buckets), []).append(line)
        for bucket in self._stale:
            lines = self._lists[bucket].values()
            payload = sessions.encode_page(self._boot, self._seq, lines, ended.get(bucket, ()))
            self._hub.retained.set(Publish.of(sessions.page_topic(buckets, bucket), payload, 0, retain=True), None)
        self._stale.clear()

    def _regroup(self, buckets: int) -> None:
        self._hub.retained.forget_matching(f"{sessions.ROOT}/list/#")
        clients = [each for lines in self._lists for each in lines.items()]
        self._lists = [{} for _ in range(buckets)]
        for client_id, line in clients:
            self._lists[bucket_of(client_id, buckets)][client_id] = line
        self._stale = set(range(buckets))

    # Being there

    def _tick(self) -> None:
        self._timer = self._loop.call_later(self._period_seconds, self._tick)
        if self._has_listeners():
            self._send_changes()
            self._say_alive()

    def _say_alive(self, *, is_stopping: bool = False) -> None:
        self._hub.publish_own(self._alive(retain=False, is_stopping=is_stopping))

    def _alive(self, *, retain: bool, is_stopping: bool = False) -> Publish:
        alive = Alive(self._boot, self._seq, self._loop.time() - self._began_at, is_stopping)
        return Publish.of(sessions.BROKER, sessions.encode_alive(alive), 0, retain=retain)
