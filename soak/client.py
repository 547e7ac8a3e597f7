"""An honest client: MQTT 3.1.1 as the standard wants it, with an account of all that it sends and gets.

A persistent one sends again what was not acknowledged; a clean one forgets it. It complains where the broker refuses
it, ends its connection, or forgets a session.
"""

from __future__ import annotations

import asyncio
import itertools
import ssl
import time
from dataclasses import dataclass, field

from fleet.topics import NOTICES
from soak.ledger import Key, Kind, Ledger, Subscription
from soak.link import DEADLINE_SECONDS, Link
from tests import mqtt

_KEEP_ALIVE_SECONDS = 30
_PING_SECONDS = 10.0
_WILL_SECONDS = 5.0  # within these a will is out after its connection broke
_IN_FLIGHT = 20


class Refused(Exception):
    """CONNACK with another return code than 0, or none at all."""


class Gone(Exception):
    """There is no connection to do that on."""


@dataclass(slots=True)
class Outgoing:
    """A message of QoS 1 or 2 that is not acknowledged in full; `is_received` once PUBREC came."""

    key: Key
    topic: str
    payload: bytes
    retain: bool
    is_received: bool = False

    def frame(self, id: int, *, dup: bool) -> bytes:
        if self.is_received:
            return mqtt.pubrel(id)
        return mqtt.publish(self.topic, self.payload, self.key.qos, id, retain=self.retain, dup=dup)


@dataclass(slots=True, eq=False)
class Client:
    """One client id. `owner` is its principal."""

    name: str
    context: ssl.SSLContext
    port: int
    ledger: Ledger
    is_persistent: bool
    may_be_cut: bool = False
    link: Link | None = None
    has_session: bool = False
    _connecting: Link | None = None
    _pings: int = 0
    subscriptions: dict[str, Subscription] = field(default_factory=dict)
    _ever_asked: set[str] = field(default_factory=set)
    _out: dict[int, Outgoing] = field(default_factory=dict)
    _received: set[int] = field(default_factory=set)
    _answers: dict[tuple[int, int], asyncio.Future[bytes]] = field(default_factory=dict)
    _ids: itertools.cycle[int] = field(default_factory=lambda: itertools.cycle(range(1, 65_536)))
    _will: Key | None = None
    _room: asyncio.Event = field(default_factory=asyncio.Event)
    _pinging: asyncio.TimerHandle | None = None

    @property
    def owner(self) -> str:
        return self.name.partition(":")[0]

    @property
    def is_settled(self) -> bool:
        """Whether all that it sent is acknowledged."""
        return not self._out

    # Coming and going

    async def connect(self, *, will: bool = False) -> None:
        """Connect, taking over from a connection that there is. Raises: Refused."""
        link = await Link.open(self.port, self.context, self._frame, self._ended)
        key, frame = self._connect_frame(will=will)
        self._let_go()
        old, self.link, self._connecting = self.link, None, link
        answer = self._expect(0x20, 0)
        link.send(frame)
        try:
            await self._await(answer, "CONNACK")
        except (Gone, TimeoutError) as error:
            link.abort()
            raise Refused(str(error)) from error
        finally:
            self._connecting = None
        self._will = key
        if old is not None and not await old.wait_ended():
            self.ledger.fault(f"{self.name}: the connection that it took over from was not ended")

    def _connect_frame(self, *, will: bool) -> tuple[Key | None, bytes]:
        clean, key, last = not self.is_persistent, None, None
        if will:
            topic = f"devices/{self.owner}/up/status"
            key, payload = self.ledger.write(self.owner, topic, 1, Kind.WILL, b"")
            last = topic, payload, 1, True
        return key, mqtt.connect(self.name, clean=clean, keep_alive=_KEEP_ALIVE_SECONDS, will=last)

    def _let_go(self) -> None:
        """The present connection, if any, is about to be lost without a DISCONNECT."""
        if self.link is not None:
            self.link.mute()
        if self._will is not None:
            self.ledger.due(self._will, _WILL_SECONDS)
            self._will = None
        if not self.is_persistent:
            self._forget()
        self._stop_waiting()

    def _forget(self) -> None:
        """The session ends, or may have ended."""
        for topic_filter in tuple(self.subscriptions):
            self._end_subscription(topic_filter, is_durable=False)
        self._out.clear()
        self._received.clear()
        self.has_session = False

    def _end_subscription(self, topic_filter: str, *, is_durable: bool) -> None:
        subscription = self.subscriptions.pop(topic_filter)
        subscription.end = time.monotonic()
        subscription.is_durable = is_durable

    def lose(self) -> None:
        """Pull the cable; the will is owed from now on."""
        link = self.link
        self._let_go()
        self.link = None
        if link is not None:
            link.abort()

    async def leave(self) -> None:
        """DISCONNECT: no will."""
        if self.link is None:
            return
        link, self.link = self.link, None
        if self._will is not None:
            self.ledger.void(self._will)
            self._will = None
        link.mute()
        if not self.is_persistent:
            self._forget()
        link.send(mqtt.DISCONNECT)
        self._stop_waiting()
        if not await link.wait_ended():
            self.ledger.fault(f"{self.name}: the broker did not close after DISCONNECT")
            link.abort()

    def expect_cut(self) -> None:
        """From now on the broker may end it, and is to fire no will and keep nothing."""
        self.may_be_cut = True
        if self._will is not None:
            self.ledger.void(self._will)
            self._will = None
        self._forget()

    def _ended(self, link: Link) -> None:
        """A connection is gone."""
        if link is self.link and not self.may_be_cut:
            self.ledger.fault(f"{self.name} was cut")
        if link in (self.link, self._connecting):
            self._stop_waiting()

    def _stop_waiting(self) -> None:
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(Gone())
        self._answers.clear()
        self._room.set()
        if self._pinging is not None:
            self._pinging.cancel()

    # Asking

    async def publish(
        self, topic: str, qos: int, kind: Kind = Kind.DATA, *, padding: bytes = b"", retain: bool = False
    ) -> Key:
        """Publish as soon as there is room. Raises: Gone."""
        while qos and len(self._out) >= _IN_FLIGHT:
            await self._await_room()
        link = self._present()
        key, payload = self.ledger.write(self.name, topic, qos, kind, padding)
        self.ledger.sent(key)
        if not qos:
            link.send(mqtt.publish(topic, payload, retain=retain))
            return key
        number = self._free_id()
        self._out[number] = Outgoing(key, topic, payload, retain)
        link.send(self._out[number].frame(number, dup=False))
        return key

    async def _await_room(self) -> None:
        self._room.clear()
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                await self._room.wait()
        except TimeoutError:
            self.ledger.fault(f"{self.name}: nothing was acknowledged for {DEADLINE_SECONDS:.0f} s")
            raise Gone from None

    async def settle(self) -> None:
        """Wait until everything is acknowledged. Raises: Gone."""
        while self._out:
            self._present()
            await self._await_room()

    async def subscribe(self, *requests: tuple[str, int]) -> None:
        """Subscribe. Raises: Gone."""
        link, number = self._present(), self._free_id()
        answer = self._expect(0x90, number)
        self._ever_asked.update(topic_filter for topic_filter, _ in requests)
        link.send(mqtt.subscribe(*requests, id=number))
        codes = await self._await(answer, "SUBACK")
        for (topic_filter, qos), code in zip(requests, codes, strict=True):
            if code != qos:
                self.ledger.fault(f"{self.name}: {topic_filter!r} at QoS {qos} was answered {code:#x}")
            elif link is self.link:
                self._granted(topic_filter, qos)

    def _granted(self, topic_filter: str, qos: int) -> None:
        if topic_filter in self.subscriptions:
            self._end_subscription(topic_filter, is_durable=False)
        self.subscriptions[topic_filter] = self.ledger.subscribed(
            self.name, topic_filter, qos, is_durable=self.is_persistent
        )

    async def unsubscribe(self, topic_filter: str) -> None:
        """Unsubscribe. Raises: Gone."""
        link, number = self._present(), self._free_id()
        if topic_filter in self.subscriptions:
            self._end_subscription(topic_filter, is_durable=self.is_persistent)
        answer = self._expect(0xB0, number)
        link.send(mqtt.unsubscribe(topic_filter, id=number))
        await self._await(answer, "UNSUBACK")

    async def sync(self) -> None:
        """Return when the broker has handled all that was sent. Raises: Gone."""
        link = self._present()
        answer = self._expect(0xD0, 0)
        self._pings += 1
        link.send(mqtt.PINGREQ)
        await self._await(answer, "PINGRESP")

    def _present(self) -> Link:
        if self.link is None or not self.link.is_open:
            raise Gone
        return self.link

    def _free_id(self) -> int:
        return next(number for number in self._ids if number not in self._out)

    def _expect(self, first: int, id: int) -> asyncio.Future[bytes]:
        answer = self._answers[first, id] = asyncio.get_running_loop().create_future()
        return answer

    async def _await(self, answer: asyncio.Future[bytes], what: str) -> bytes:
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                return await answer
        except TimeoutError:
            self.ledger.fault(f"{self.name}: no {what} for {DEADLINE_SECONDS:.0f} s")
            raise Gone from None

    # What comes

    def _frame(self, link: Link, first: int, body: bytes) -> None:
        kind = first & 0xF0
        if kind == 0x20:
            self._connected(link, body)
        elif link is not self.link:
            self.ledger.fault(f"{self.name}: {first:#x} came before CONNACK")
        elif kind == 0x30:
            self._published(link, first, body)
        elif kind in (0x40, 0x50, 0x60, 0x70):
            self._acknowledged(link, kind, int.from_bytes(body, "big"))
        elif kind in (0x90, 0xB0, 0xD0):
            self._pings -= kind == 0xD0
            if kind == 0xD0 and self._pings:
                return
            answer = self._answers.pop((kind, int.from_bytes(body[:2], "big")), None)
            if answer is not None and not answer.done():
                answer.set_result(body[2:])
        else:
            self.ledger.fault(f"{self.name} was sent {first:#x}")

    def _connected(self, link: Link, body: bytes) -> None:
        answer = self._answers.pop((0x20, 0), None)
        if answer is None or answer.done():
            return
        if body[1]:
            answer.set_exception(Gone(f"return code {body[1]}"))
            return
        is_present = bool(body[0])
        if is_present != self.has_session:
            self.ledger.fault(f"{self.name}: session present is {is_present}")
        if not is_present:
            self._forget()
        self.has_session = self.is_persistent
        self.link, self._pings = link, 0
        answer.set_result(body)
        for number, outgoing in self._out.items():
            self.ledger.sent_again(outgoing.key)
            link.send(outgoing.frame(number, dup=True))
        self._ping(link)

    def _ping(self, link: Link) -> None:
        if link is self.link and link.is_open:
            self._pings += 1
            link.send(mqtt.PINGREQ)
            self._pinging = asyncio.get_running_loop().call_later(_PING_SECONDS, self._ping, link)

    def _published(self, link: Link, first: int, body: bytes) -> None:
        length = int.from_bytes(body[:2], "big")
        topic, rest, qos = body[2 : 2 + length].decode(), body[2 + length :], first >> 1 & 3
        if qos:
            number, rest = int.from_bytes(rest[:2], "big"), rest[2:]
            link.send(mqtt.puback(number) if qos == 1 else mqtt.pubrec(number))
            if qos == 2:
                if number in self._received:
                    return
                self._received.add(number)
        self.ledger.delivered(self.name, self._ever_asked, first, topic, rest)

    def _acknowledged(self, link: Link, kind: int, id: int) -> None:
        if kind == 0x60:
            self._received.discard(id)
            link.send(mqtt.pubcomp(id))
            return
        outgoing = self._out.get(id)
        if outgoing is None:
            return
        if kind == 0x50:
            if not outgoing.is_received:
                self.ledger.acked(outgoing.key)
            outgoing.is_received = True
            link.send(mqtt.pubrel(id))
            return
        if kind == 0x40:
            self.ledger.acked(outgoing.key)
        del self._out[id]
        self._room.set()


def asks_for(device: str, qos: int) -> tuple[tuple[str, int], ...]:
    """What a device subscribes to."""
    return (f"devices/{device}/down/#", qos), (NOTICES, 1)
