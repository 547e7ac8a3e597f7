"""One connection from its first byte to its last: TLS, identity, CONNECT, packets, deadlines, flow control.

Longer than a file should be: each packet passes through nearly all of a connection's state, and an object for each
concern would cost every message a look-up for every step between them.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Awaitable, Iterator
from typing import Final, cast

from broker.engine import Reason, Refused
from broker.engines.amqtt import admission, packets
from broker.engines.amqtt.admission import Admitted
from broker.engines.amqtt.door import Door
from broker.engines.amqtt.identity import IdentityRefused, PeerIdentity, identify
from broker.engines.amqtt.packets import (
    Connect,
    Packet,
    ProtocolViolation,
    Puback,
    Publish,
    Subscribe,
    Unsubscribe,
    UnsupportedLevel,
)
from broker.engines.amqtt.parser import Parser
from broker.engines.amqtt.rates import Usage
from broker.engines.amqtt.session import FleetSession
from broker.engines.amqtt.tls import TlsChannel

_SLICE_BYTES: Final = 16_384  # what is looked at in one go: nobody's turn is long, and nobody gets far ahead of a limit
_RECORD_BYTES: Final = 22  # of TLS 1.3 around the content of a record (RFC 8446, 5.2)
_PARTIAL_RECORD_BYTES: Final = 16_640  # of a record there may be before its content comes (RFC 8446, 5.2)
_MAX_BEFORE_CONNECT_BYTES: Final = 65_536  # of the wire: certificates and CONNECT take a quarter of it
_HIGH_WATER_BYTES: Final = 262_144
_LOW_WATER_BYTES: Final = 65_536
_MAX_UNREAD_ANSWERS_BYTES: Final = 65_536
_MAX_HELD_FRAMES: Final = 1024  # for a commit: who sends that much without an answer is read no more until there is one
_STALLED_SECONDS: Final = 300.0
_LINGER_SECONDS: Final = 2.0  # for what was written last to be read, before the connection is reset
_MAX_CHECK_SECONDS: Final = 60.0  # also how late a clock that jumped is noticed

_LOST_ON_THE_WAY: Final = (Reason.REVOKED, Reason.SUSPENDED, Reason.REMOVED, Reason.SUPERSEDED, Reason.EXPIRED)


class Connection:
    """One client's connection; the link of a session once it was let in. To the loop, an asyncio.Protocol."""

    __slots__ = (
        "_address",
        "_after",
        "_deadline",
        "_door",
        "_doors",
        "_has_peer_ended",
        "_held",
        "_identity",
        "_inbox",
        "_is_ending",
        "_is_held_back",
        "_is_paused",
        "_last_packet_at",
        "_out",
        "_out_bytes",
        "_overhead_bytes",
        "_packet_began_at",
        "_parser",
        "_paused_at",
        "_rest",
        "_session",
        "_slowing",
        "_timer",
        "_tls",
        "_transport",
        "_usage",
    )

    def __init__(self, door: Door) -> None:
        self._door = door
        self._tls = TlsChannel(door.trust.context)
        self._parser = Parser(door.hub.limits.max_connect_bytes, door.topic_names)
        self._transport: asyncio.Transport | None = None
        self._address = ""
        self._identity: PeerIdentity | None = None
        self._session: FleetSession | None = None
        self._usage: Usage | None = None
        self._held: asyncio.Future[None] | None = None  # its CONNECT waits: for an answer, its turn, or a commit
        self._after: deque[tuple[int, bytes, bool]] | None = None  # frames that wait for a commit, and whether a door
        self._doors = 0
        self._is_held_back = False
        self._inbox = memoryview(b"")  # what came and was not looked at yet
        self._overhead_bytes = 0  # of the wire, that no content of a packet has paid for
        self._has_peer_ended = False
        self._rest: Iterator[Packet] = iter(())
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._is_paused = False
        self._slowing: asyncio.TimerHandle | None = None
        self._is_ending = False
        self._timer: asyncio.TimerHandle | None = None
        self._deadline = 0.0
        self._last_packet_at = 0.0
        self._packet_began_at = 0.0
        self._paused_at = 0.0

    # The transport's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._address = _format_address(transport.get_extra_info("peername"))
        door = self._door
        if not door.enter(self):
            self._refuse(Reason.TOO_MANY_CONNECTIONS)
            return
        self._transport.set_write_buffer_limits(_HIGH_WATER_BYTES, _LOW_WATER_BYTES)
        self._set_deadline(door.hub.limits.handshake_seconds)

    def data_received(self, data: bytes) -> None:
        door = self._door
        door.is_reading = True
        try:
            is_next = not (self._inbox or self._is_ending or self._held is not None or self._slowing is not None)
            if is_next and len(data) <= _SLICE_BYTES:
                self._take(data)
                if not self._has_peer_ended:
                    return
            else:
                self._inbox = memoryview(bytes(self._inbox) + data if self._inbox else data)
            self._work()
        finally:
            door.end_read()

    def pause_writing(self) -> None:
        self._is_paused = True
        self._paused_at = self._door.loop.time()

    def resume_writing(self) -> None:
        self._is_paused = False
        self.flush()
        self._resume_reading()
        if self._session is not None:
            self._session.pump()

    def eof_received(self) -> None:
        """The peer sends no more: MQTT has no use for half a connection."""

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._is_ending:
            self._end_before(Reason.LOST, type(exc).__name__ if exc else "")
        self._door.open.discard(self)
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
        if self._slowing is not None:
            self._slowing.cancel()
        if self._held is not None:
            self._held.cancel()

    # Link

    @property
    def is_congested(self) -> bool:
        return self._is_paused or self._out_bytes > _HIGH_WATER_BYTES or self._doors > 0

    def send_after(self, commit: int, frame: bytes, *, is_door: bool = False) -> None:
        door, waiting = self._door, self._after
        if not waiting:
            if door.hub.journal is None or commit <= door.hub.journal.committed:
                self.send(frame)
                return
            door.holding[self] = None
        if waiting is None:
            waiting = self._after = deque()
        waiting.append((commit, frame, is_door))
        self._doors += is_door
        if len(waiting) == _MAX_HELD_FRAMES and self._transport is not None:
            self._is_held_back = True
            self._transport.pause_reading()

    def committed(self, commit: int) -> None:
        """Write what waited for this commit, or for one before it."""
        waiting, is_let_in = self._after, False
        while waiting and waiting[0][0] <= commit:
            _, frame, is_door = waiting.popleft()
            self.send(frame)
            is_let_in = is_let_in or (is_door and self._held is not None)
            if is_door:
                self._open()
        if not waiting:
            self._after = None
            self._door.holding.pop(self, None)
        if is_let_in or (self._is_held_back and not waiting):
            self._is_held_back = False
            self._nobody_looked()
            self._go_on()

    def answer_pings(self) -> None:
        """Without what was to be answered before them."""
        waiting = self._after or ()
        self._after = deque([each for each in waiting if each[1] is not packets.PINGRESP])
        for _ in range(len(waiting) - len(self._after)):
            self.send(packets.PINGRESP)

    def _open(self) -> None:
        self._doors -= 1
        session, held, self._held = self._session, self._held, None
        if session is None:
            return
        if held is None:
            session.pump()
        else:
            session.send_again()

    def send(self, frame: bytes) -> None:
        if not self._out:
            self._door.flush_soon(self)
        self._out.append(frame)
        self._out_bytes += len(frame)
        if self._is_paused and self._out_bytes > _MAX_UNREAD_ANSWERS_BYTES and self._transport is not None:
            self._transport.pause_reading()  # who does not read answers may not ask for more

    def flush(self) -> None:
        """Encrypt and write what was sent, as one piece."""
        if self._is_paused or not self._out or self._transport is None:
            return
        frames = self._out
        counted = self._door.hub.counted
        counted.packets_sent += len(frames)
        counted.bytes_sent += self._out_bytes
        self._out, self._out_bytes = [], 0
        try:
            wire = self._tls.encrypt(frames[0] if len(frames) == 1 else b"".join(frames))
        except ssl.SSLError:
            return  # the connection is about to be lost
        self._transport.write(wire)
        if self._session is not None and self._session.has_more:
            self._session.pump()

    def give_way(self) -> None:
        """End at once, for somebody else's sake."""
        transport = self._transport
        self._refuse(Reason.TOO_MANY_CONNECTIONS, "not let in in time")
        self._door.open.discard(self)
        if transport is not None:
            transport.abort()

    def end(self, reason: Reason, detail: str = "") -> None:
        if self._is_ending or self._transport is None:
            return
        self._is_ending = True
        self._session = self._after = None
        self._door.settled(self)
        self._door.holding.pop(self, None)
        if reason in _LOST_ON_THE_WAY:
            self._transport.abort()
            return
        self.flush()
        if self._tls.is_established:
            self._tls.close()
        if last := self._tls.flush():
            self._transport.write(last)
        self._transport.close()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._door.loop.call_later(_LINGER_SECONDS, self._transport.abort)

    # TLS and identity

    def _shake_hands(self) -> bool:
        assert self._transport is not None
        try:
            is_done = self._tls.handshake()
        finally:
            if answer := self._tls.flush():
                self._transport.write(answer)
        if not is_done:
            return False
        try:
            if self._tls.was_resumed:
                raise IdentityRefused(Reason.RESUMED, "")
            self._identity = identify(self._tls.certificate(), self._door.trust)
        except IdentityRefused as refusal:
            self._refuse(refusal.reason, name=refusal.name)
            return False
        self._set_deadline(self._door.hub.limits.connect_seconds)
        return True

    # Packets

    def _work(self) -> None:
        """Go on with what came, until there is no more of it, or it has to wait."""
        while self._inbox and not self._must_wait:
            piece, self._inbox = self._inbox[:_SLICE_BYTES], self._inbox[_SLICE_BYTES:]
            self._take(piece)
        if self._has_peer_ended and not self._must_wait:
            self._end_before(Reason.LOST)

    @property
    def _must_wait(self) -> bool:
        return self._is_ending or self._held is not None or self._slowing is not None

    def _take(self, piece: bytes | memoryview) -> None:
        self._tls.feed(piece)
        try:
            is_early = not self._tls.is_established
            if is_early and not self._shake_hands():
                self._charge_stranger(len(piece))
                return
            data, self._has_peer_ended = self._tls.read(len(piece))
        except ssl.SSLError as error:  # under TLS 1.3 a client may refuse our certificate after the handshake
            self._end_before(Reason.HANDSHAKE if self._session is None else Reason.LOST, _tls_reason(error))
            return
        if self._tls.outgoing.pending and self._transport is not None:
            self._transport.write(self._tls.flush())  # the answer to a KeyUpdate
        if self._session is None:
            self._charge_stranger(len(piece))
        else:
            self._overhead_bytes += len(piece) - len(data)
        if self._is_ending:
            return
        if data:
            self._rest = self._parser.feed(data)
        self._take_packets(len(data))

    def _charge_stranger(self, size_bytes: int) -> None:
        self._overhead_bytes += size_bytes
        if self._overhead_bytes > _MAX_BEFORE_CONNECT_BYTES and not self._is_ending:
            self._end_before(Reason.HANDSHAKE, "too much before CONNECT")

    def _take_packets(self, size_bytes: int) -> None:
        door, count, acknowledged = self._door, 0, 0
        hub, now = door.hub, door.loop.time()
        try:
            for packet in self._rest:
                session = self._session
                count += 1
                if session is None:
                    self._first_packet(packet)
                elif type(packet) is Publish:
                    hub.publish(session, packet)
                elif type(packet) is Puback:
                    acknowledged += session.acknowledged(packet.packet_id)
                else:
                    hub.handle(session, packet)
                    count += _further_requests(packet)
                if self._is_ending or self._held is not None or self._slowing is not None:  # `_must_wait`, quickly
                    return
                self._last_packet_at = now
                self._packet_began_at = 0.0
        except ProtocolViolation as violation:
            self._end_before(Reason.PROTOCOL, str(violation))
            return
        finally:
            if acknowledged and (session := self._session) is not None and session.has_more:
                session.pump()
            counted = hub.counted
            counted.packets_received += count
            counted.bytes_received += size_bytes
        if not self._parser.held:
            self._packet_began_at = 0.0
        elif not self._packet_began_at:
            self._packet_began_at = now
        if self._usage is not None:
            cost = count - acknowledged
            if self._overhead_bytes <= count * _RECORD_BYTES:
                self._overhead_bytes = 0
            else:
                cost += self._empty_records(self._overhead_bytes - count * _RECORD_BYTES)
            if (cost or size_bytes) and (seconds := self._usage.send(cost, size_bytes, now)):
                self._slow_down(self._usage, seconds, now)

    def _empty_records(self, unpaid_bytes: int) -> int:
        """How many TLS records came with nothing of a packet in them: they cost as much as one."""
        self._overhead_bytes = min(unpaid_bytes, _PARTIAL_RECORD_BYTES)
        return (unpaid_bytes - self._overhead_bytes) // _RECORD_BYTES

    def _slow_down(self, usage: Usage, seconds: float, now: float) -> None:
        """Read no more until what came is paid for; what a client sends meanwhile waits on its side of the wire."""
        hub, session = self._door.hub, self._session
        if session is None or self._transport is None:
            return
        slowed_for = usage.slowed_for(now)
        if slowed_for >= hub.limits.slowed_seconds:
            self._end_before(Reason.TOO_FAST, f"slowed for {slowed_for:.0f} s")
            return
        if not slowed_for:
            hub.slowed(session)
        if self._slowing is not None:
            self._slowing.cancel()
        self._slowing = self._door.loop.call_later(seconds, self._end_slowing)
        self._transport.pause_reading()

    def _end_slowing(self) -> None:
        self._slowing = None
        self._nobody_looked()
        self._go_on()

    def _nobody_looked(self) -> None:
        """It may have sent in time: its deadlines begin anew."""
        self._last_packet_at = now = self._door.loop.time()
        if self._packet_began_at:
            self._packet_began_at = now

    def _go_on(self) -> None:
        """Take up what had to wait."""
        if self._is_ending:
            return
        self._take_packets(0)
        self._work()
        self._resume_reading()

    def _resume_reading(self) -> None:
        if self._transport is None or self._must_wait or self._is_held_back:
            return
        if not (self._is_paused and self._out_bytes > _MAX_UNREAD_ANSWERS_BYTES):
            self._transport.resume_reading()

    def _first_packet(self, packet: Packet) -> None:
        match packet:
            case Connect():
                self._connect(packet, may_look_up=True)
            case UnsupportedLevel(name, level):
                self._refuse(Reason.WRONG_VERSION, f"{name} level {level}", packets.connack(admission.WRONG_LEVEL))
            case _:
                raise ProtocolViolation("MQTT-3.1.0-1", "the first packet is not CONNECT")

    def _connect(self, packet: Connect, *, may_look_up: bool = False) -> None:
        """Decide and register: with nothing in between, so that no revocation can slip through."""
        identity, hub = self._identity, self._door.hub
        assert identity is not None
        decision = hub.decide(packet, identity)
        if isinstance(decision, Admitted):
            if self._usage is None and not self._may_connect_now(packet, decision):
                return
            unloaded = hub.unloaded(packet, decision.client_id)
            if unloaded is not None and self._door.load is not None:
                self._hold(packet, self._door.load(unloaded))
                return
            self._session = hub.register(packet, decision, identity.serial, self._address, self)
            self._parser.allow(hub.limits.max_packet_bytes)
            self._door.settled(self)
            self._overhead_bytes = 0
            self._last_packet_at = now = self._door.loop.time()
            if self._doors:  # CONNACK waits for a commit
                self._held = self._door.loop.create_future()
                if self._transport is not None:
                    self._transport.pause_reading()
            self._check_deadlines()
            if self._usage is not None and (seconds := self._usage.send(0, 0, now)):
                self._slow_down(self._usage, seconds, now)  # for what it owes from before
        elif may_look_up and decision.reason is Reason.NOT_ADMITTED and self._may_ask(identity):
            self._hold(packet, hub.rules.look_up(identity.serial))  # it may be younger than our directory
        else:
            self._refuse(decision.reason, decision.detail, packets.connack(decision.return_code))

    def _may_ask(self, identity: PeerIdentity) -> bool:
        return self._door.inquiries.may_ask(identity.serial, self._door.loop.time())

    def _may_connect_now(self, packet: Connect, decision: Admitted) -> bool:
        """Whether this principal did not connect too often; else this CONNECT waits its turn, or is refused."""
        now = self._door.loop.time()
        usage = self._door.hub.usage(decision.entry.principal, now)
        seconds = usage.connect(now)
        if seconds is None:
            self._refuse(Reason.TOO_MANY_CONNECTS, answer=packets.connack(admission.UNAVAILABLE))
            return False
        self._usage = usage
        if seconds:
            self._hold(packet, asyncio.sleep(seconds))
        return not seconds

    def _hold(self, packet: Connect, until: Awaitable[None]) -> None:
        """Read nothing until then, and decide again."""
        assert self._transport is not None
        self._transport.pause_reading()

        async def hold() -> None:
            await until
            if self._transport is None or self._is_ending:
                return
            self._held = None
            self._connect(packet)
            if not self._must_wait:
                self._go_on()

        self._held = self._door.loop.create_task(hold())

    # Ends

    def _refuse(self, reason: Reason, detail: str = "", answer: bytes = b"", *, name: str = "") -> None:
        """End a connection that was not let in."""
        if answer:
            self.send(answer)
        name = self._identity.device if self._identity is not None else name
        self.end(reason)
        self._door.hub.refused(Refused(self._address, reason, name, detail))

    def _end_before(self, reason: Reason, detail: str = "") -> None:
        """End the connection, for whichever reason, whether or not it was let in."""
        session = self._session
        if session is not None:
            self._session = None
            self._door.hub.leave(session, reason, detail)
        else:
            self._refuse(reason, detail)

    # Deadlines

    def _set_deadline(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._door.loop.call_later(seconds, self._check_deadlines)

    def _check_deadlines(self) -> None:
        if self._is_ending:
            return
        session = self._session
        if session is None or self._identity is None:
            self._refuse(Reason.TOO_SLOW)
            return
        now = self._door.loop.time()
        remaining, reason = min(self._remaining(session, self._identity, now), key=lambda deadline: deadline[0])
        if remaining <= 0:
            if reason is Reason.NOT_STORED:
                self.send(packets.connack(admission.UNAVAILABLE))
            self._end_before(reason)
        else:
            self._set_deadline(min(remaining, _MAX_CHECK_SECONDS))

    def _remaining(self, session: FleetSession, identity: PeerIdentity, now: float) -> Iterator[tuple[float, Reason]]:
        """The seconds that are left of each deadline."""
        hub = self._door.hub
        yield (identity.not_after - hub.now()).total_seconds(), Reason.EXPIRED
        if self._held is not None:
            yield self._last_packet_at + hub.limits.connect_seconds - now, Reason.NOT_STORED
        elif session.keep_alive and self._slowing is None and not self._is_held_back:
            yield self._last_packet_at + 1.5 * session.keep_alive - now, Reason.KEEPALIVE  # MQTT-3.1.2-24
        if self._packet_began_at and self._slowing is None and not self._is_held_back:
            yield self._packet_began_at + hub.limits.packet_seconds - now, Reason.TOO_SLOW
        if session.client is not None and admission.needs_fresh_directory(session.client.principal.role):
            yield (_MAX_CHECK_SECONDS if hub.rules.is_fresh() else 0.0), Reason.STALE_DIRECTORY
        if self._is_paused:
            yield self._paused_at + _STALLED_SECONDS - now, Reason.NOT_READING


def _further_requests(packet: Packet) -> int:
    """How many more than one a packet asks for."""
    match packet:
        case Subscribe(_, requests):
            return len(requests) - 1
        case Unsubscribe(_, filters):
            return len(filters) - 1
    return 0


def _format_address(peer: object) -> str:
    match peer:
        case (str(host), int(port), *_):
            return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return "?"


def _tls_reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    return (error.reason or str(error)).lower().replace("_", " ")
