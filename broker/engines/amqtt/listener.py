"""One connection from its first byte to its last: TLS, identity, CONNECT, packets, deadlines, flow control."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from typing import Final, cast

from broker.engine import Reason, Refused
from broker.engines.amqtt import admission, packets
from broker.engines.amqtt.admission import Admitted
from broker.engines.amqtt.hub import Hub
from broker.engines.amqtt.identity import IdentityRefused, PeerIdentity, identify
from broker.engines.amqtt.packets import Connect, Packet, ProtocolViolation, Puback, Publish, UnsupportedLevel
from broker.engines.amqtt.parser import Parser, TopicNames
from broker.engines.amqtt.session import FleetSession
from broker.engines.amqtt.tls import TlsChannel
from broker.trust import Trust

_HIGH_WATER_BYTES: Final = 262_144
_LOW_WATER_BYTES: Final = 65_536
_MAX_UNREAD_ANSWERS_BYTES: Final = 65_536
_STALLED_SECONDS: Final = 300.0
_LINGER_SECONDS: Final = 2.0  # for what was written last to be read, before the connection is reset
_MAX_CHECK_SECONDS: Final = 60.0  # also how late a clock that jumped is noticed

_LOST_ON_THE_WAY: Final = (Reason.REVOKED, Reason.SUSPENDED, Reason.REMOVED, Reason.SUPERSEDED, Reason.EXPIRED)


class Door:
    """What the connections of one listener share."""

    def __init__(self, hub: Hub, trust: Trust, loop: asyncio.AbstractEventLoop) -> None:
        self.hub = hub
        self.trust = trust
        self.loop = loop
        limits = hub.limits
        self.topic_names = TopicNames(limits.max_topic_bytes, limits.max_topic_levels)
        self.open: set[Connection] = set()
        self._to_flush: list[Connection] = []

    def protocol(self) -> Connection:
        """For each connection that is accepted."""
        return Connection(self)

    def flush_soon(self, connection: Connection) -> None:
        """Once for all that is written in this turn of the loop."""
        if not self._to_flush:
            self.loop.call_soon(self._flush)
        self._to_flush.append(connection)

    def _flush(self) -> None:
        connections, self._to_flush = self._to_flush, []
        for connection in connections:
            connection.flush()


class Connection(asyncio.Protocol):
    """One client's connection; the link of a session once it was let in."""

    __slots__ = (
        "_address",
        "_deadline",
        "_door",
        "_identity",
        "_is_ending",
        "_is_paused",
        "_last_packet_at",
        "_looking_up",
        "_out",
        "_out_bytes",
        "_packet_began_at",
        "_parser",
        "_paused_at",
        "_rest",
        "_session",
        "_timer",
        "_tls",
        "_transport",
    )

    def __init__(self, door: Door) -> None:
        self._door = door
        self._tls = TlsChannel(door.trust.context)
        self._parser = Parser(door.hub.limits.max_packet_bytes, door.topic_names)
        self._transport: asyncio.Transport | None = None
        self._address = ""
        self._identity: PeerIdentity | None = None
        self._session: FleetSession | None = None
        self._looking_up: asyncio.Task[None] | None = None
        self._rest: Iterator[Packet] = iter(())
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._is_paused = False
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
        if len(door.open) >= door.hub.limits.max_connections:
            self._refuse(Reason.TOO_MANY_CONNECTIONS)
            return
        door.open.add(self)
        self._transport.set_write_buffer_limits(_HIGH_WATER_BYTES, _LOW_WATER_BYTES)
        self._set_deadline(door.hub.limits.handshake_seconds)

    def data_received(self, data: bytes) -> None:
        if self._is_ending:
            return
        self._tls.feed(data)
        try:
            if not self._tls.is_established and not self._shake_hands():
                return
        except ssl.SSLError as error:
            self._end_before(Reason.HANDSHAKE, _tls_reason(error))
            return
        if self._looking_up is None:
            self._read()

    def pause_writing(self) -> None:
        self._is_paused = True
        self._paused_at = self._door.loop.time()

    def resume_writing(self) -> None:
        self._is_paused = False
        self.flush()
        if self._transport is not None and not self._is_ending:
            if self._looking_up is None:
                self._transport.resume_reading()
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
        if self._looking_up is not None:
            self._looking_up.cancel()

    # Link

    @property
    def is_congested(self) -> bool:
        return self._is_paused or self._out_bytes > _HIGH_WATER_BYTES

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
        frames, self._out, self._out_bytes = self._out, [], 0
        try:
            self._tls.write(frames[0] if len(frames) == 1 else b"".join(frames))
        except ssl.SSLError:
            return  # the connection is about to be lost
        self._transport.write(self._tls.flush())

    def end(self, reason: Reason, detail: str = "") -> None:
        if self._is_ending or self._transport is None:
            return
        self._is_ending = True
        self._session = None
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

    def _read(self) -> None:
        try:
            data, is_closed = self._tls.read()
        except ssl.SSLError as error:  # under TLS 1.3 a client may refuse our certificate as late as here
            self._end_before(Reason.HANDSHAKE if self._session is None else Reason.LOST, _tls_reason(error))
            return
        if data:
            self._rest = self._parser.feed(data)
            self._take_packets()
        if is_closed and not self._is_ending:
            self._end_before(Reason.LOST)

    def _take_packets(self) -> None:
        hub, now = self._door.hub, self._door.loop.time()
        try:
            for packet in self._rest:
                session = self._session
                if session is None:
                    self._first_packet(packet)
                elif type(packet) is Publish:
                    hub.publish(session, packet)
                elif type(packet) is Puback:
                    session.acknowledged(packet.packet_id)
                else:
                    hub.handle(session, packet)
                if self._is_ending or self._looking_up is not None:
                    return
                self._last_packet_at = now
                self._packet_began_at = 0.0
        except ProtocolViolation as violation:
            self._end_before(Reason.PROTOCOL, str(violation))
            return
        if not self._parser.is_within_packet:
            self._packet_began_at = 0.0
        elif not self._packet_began_at:
            self._packet_began_at = now

    def _first_packet(self, packet: Packet) -> None:
        match packet:
            case Connect():
                self._connect(packet, may_look_up=True)
            case UnsupportedLevel(name, level):
                self._refuse(Reason.WRONG_VERSION, f"{name} level {level}", packets.connack(admission.WRONG_LEVEL))
            case _:
                raise ProtocolViolation("MQTT-3.1.0-1", "the first packet is not CONNECT")

    def _connect(self, packet: Connect, *, may_look_up: bool) -> None:
        """Decide and register: with nothing in between, so that no revocation can slip through."""
        identity, hub = self._identity, self._door.hub
        assert identity is not None
        decision = hub.decide(packet, identity)
        if isinstance(decision, Admitted):
            self._session = hub.register(packet, decision, identity.serial, self._address, self)
            self._last_packet_at = self._door.loop.time()
            self._check_deadlines()
        elif may_look_up and decision.reason is Reason.NOT_ADMITTED:
            self._look_up(packet, identity)
        else:
            self._refuse(decision.reason, decision.detail, packets.connack(decision.return_code))

    def _look_up(self, packet: Connect, identity: PeerIdentity) -> None:
        """Ask the service for this serial once: the certificate may be younger than our directory."""
        assert self._transport is not None
        self._transport.pause_reading()

        async def look_up() -> None:
            await self._door.hub.rules.look_up(identity.serial)
            if self._transport is None or self._is_ending:
                return
            self._looking_up = None
            self._transport.resume_reading()
            self._connect(packet, may_look_up=False)
            if not self._is_ending:
                self._take_packets()
            if not self._is_ending:
                self._read()

        self._looking_up = self._door.loop.create_task(look_up())

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
            self._end_before(reason)
        else:
            self._set_deadline(min(remaining, _MAX_CHECK_SECONDS))

    def _remaining(self, session: FleetSession, identity: PeerIdentity, now: float) -> Iterator[tuple[float, Reason]]:
        """The seconds that are left of each deadline."""
        hub = self._door.hub
        yield (identity.not_after - hub.now()).total_seconds(), Reason.EXPIRED
        if session.keep_alive:
            yield self._last_packet_at + 1.5 * session.keep_alive - now, Reason.KEEPALIVE  # MQTT-3.1.2-24
        if self._packet_began_at:
            yield self._packet_began_at + hub.limits.packet_seconds - now, Reason.TOO_SLOW
        if session.client is not None and admission.needs_fresh_directory(session.client.principal.role):
            yield (_MAX_CHECK_SECONDS if hub.rules.is_fresh() else 0.0), Reason.STALE_DIRECTORY
        if self._is_paused:
            yield self._paused_at + _STALLED_SECONDS - now, Reason.NOT_READING


def _format_address(peer: object) -> str:
    match peer:
        case (str(host), int(port), *_):
            return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return "?"


def _tls_reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    return (error.reason or str(error)).lower().replace("_", " ")
