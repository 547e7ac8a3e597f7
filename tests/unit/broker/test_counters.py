"""The broker's counters as topics: fresh for who asks, and no work while nobody does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from broker.engine import Reason
from broker.engines.amqtt.counters import CounterTopics
from broker.engines.amqtt.packets import Connect, Subscribe
from fleet.identity import DeviceId, Principal, Role
from tests.deadlines import within
from tests.fuzz.hubs import SmallBroker, Wire

OPERATOR = Principal(Role.OPERATOR, DeviceId("op"))
PERIOD = 0.02


class Office:
    """A broker that shows two counters, and an operator who is connected; `reads` is how often they were read."""

    def __init__(self) -> None:
        self.broker = SmallBroker()
        self.values = {"$SYS/broker/a": "1", "$SYS/broker/b": "1"}
        self.reads = 0
        self.has_read = asyncio.Event()
        self.topics = CounterTopics(self.broker.hub, asyncio.get_running_loop(), self.read, PERIOD)
        connected = self.broker.connect(OPERATOR, Connect("op", True, 0, None))
        assert connected is not None
        self.wire: Wire = connected[0]
        self.session = connected[1]

    def read(self) -> dict[str, str]:
        self.reads += 1
        self.has_read.set()
        return dict(self.values)

    def subscribe(self, topic_filter: str) -> None:
        self.broker.hub.handle(self.session, Subscribe(1, ((topic_filter, 1),)))

    def heard(self) -> list[str]:
        """The topics that the operator was sent so far, each `PUBLISH` at QoS 0."""
        published = list(self.wire.published())
        assert not [topic for topic, qos, _ in published if qos]
        return sorted(topic for topic, _, _ in published)

    async def period(self) -> None:
        """Until the counters were read again."""
        self.has_read.clear()
        await asyncio.wait_for(self.has_read.wait(), within(5))


async def three_periods() -> None:
    """Return when whatever was there before has had three periods in which it might do something."""
    watched = Office()
    watched.subscribe("$SYS/#")
    for _ in range(3):
        await watched.period()
    watched.topics.stop()


def in_office(act: Callable[[Office], Awaitable[None]]) -> None:
    async def main() -> None:
        office = Office()
        await act(office)
        office.topics.stop()

    asyncio.run(main())


def test_a_subscription_finds_what_is_now() -> None:
    """Who subscribes would see nothing, or what was when somebody looked last."""

    async def act(office: Office) -> None:
        office.values["$SYS/broker/a"] = "2"
        office.subscribe("$SYS/#")
        assert ["$SYS/broker/a", "$SYS/broker/b"] == office.heard()
        assert [b"2", b"1"] == [office.broker.hub.retained.get(topic).payload for topic in office.heard()]  # type: ignore[union-attr]

    in_office(act)


def test_while_nobody_is_subscribed_nothing_is_read() -> None:
    """Ten thousand sessions would be counted for nobody, for ever."""

    async def act(office: Office) -> None:
        await three_periods()
        office.subscribe("fleet/notices/#")
        assert (0, 0) == (office.reads, len(office.broker.hub.retained))

    in_office(act)


def test_what_has_changed_is_published_and_nothing_else() -> None:
    """Whoever watches would be told everything again and again, or not at all."""

    async def act(office: Office) -> None:
        office.subscribe("$SYS/broker/+")
        before = office.heard()
        office.values["$SYS/broker/b"] = "2"
        await office.period()
        await office.period()
        assert sorted([*before, "$SYS/broker/b"]) == office.heard()

    in_office(act)


def test_a_client_that_subscribes_over_and_over_makes_no_work() -> None:
    """One small packet would cost a walk over all sessions."""

    async def act(office: Office) -> None:
        for _ in range(100):
            office.subscribe("$SYS/broker/a")
        assert 1 == office.reads

    in_office(act)


def test_when_nobody_is_left_it_ends() -> None:
    """One curious operator would cost for ever."""

    async def act(office: Office) -> None:
        office.subscribe("$SYS/#")
        await office.period()
        office.broker.hub.disconnect(OPERATOR, Reason.ADMIN)
        reads = office.reads
        await three_periods()
        assert reads == office.reads

    in_office(act)
