"""The broker's counters as retained topics under `$SYS/broker/`, kept while somebody is subscribed to some of them.

Nobody subscribed: nothing is read and nothing is published. A new subscription finds them as they are at that moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

from broker.engines.amqtt.hub import Hub
from broker.engines.amqtt.packets import Publish

_ROOT: Final = ("$SYS", "broker")
PERIOD_SECONDS: Final = 10.0  # as Mosquitto's sys_interval
_AGAIN_AFTER_SECONDS: Final = 1.0  # whoever subscribes again and again does not have everything counted each time


class CounterTopics:
    """Publishes what `read` gives by topic: what has changed, at QoS 0, so that nothing is kept for the absent."""

    def __init__(
        self,
        hub: Hub,
        loop: asyncio.AbstractEventLoop,
        read: Callable[[], Mapping[str, str]],
        period_seconds: float = PERIOD_SECONDS,
    ) -> None:
        self._hub = hub
        self._loop = loop
        self._read = read
        self._published: dict[str, str] = {}
        self._published_at = loop.time() - _AGAIN_AFTER_SECONDS
        self._period_seconds = period_seconds
        self._timer = loop.call_later(period_seconds, self._tick)
        hub.refreshers[_ROOT[1]] = self.refresh

    def stop(self) -> None:
        """Publish no more."""
        self._timer.cancel()

    def refresh(self) -> None:
        """Somebody subscribes: have topics that are not older than a second."""
        if self._loop.time() - self._published_at >= _AGAIN_AFTER_SECONDS:
            self._publish()

    def _tick(self) -> None:
        self._timer = self._loop.call_later(self._period_seconds, self._tick)
        if self._hub.subscriptions.has_below(*_ROOT):
            self._publish()

    def _publish(self) -> None:
        self._published_at = self._loop.time()
        for topic, value in self._read().items():
            if self._published.get(topic) != value:
                self._published[topic] = value
                self._hub.publish_own(Publish.of(topic, value.encode(), 0, retain=True))
