"""What is fuzzed: each a function of bytes that fails if a property does, the same for atheris and for the corpus."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from math import inf

from broker.engine import Reason
from broker.engines.amqtt.packets import Connect, ProtocolViolation
from broker.engines.amqtt.parser import Parser, TopicNames
from fleet import directory, est, join, messages, recovery, topics
from fleet.errors import FleetError, InvalidInput
from fleet.identity import DeviceId, State
from fleet.messages import InvalidMessage
from tests.fuzz import naive
from tests.fuzz.hubs import PRINCIPALS, SmallBroker, Wire
from tests.fuzz.naive import Bounds
from tests.fuzz.streams import cut, parse, single_bytes

_MAX_CLIENTS = 12


def parser(data: bytes) -> None:
    """Parser and oracle agree, however the stream is cut, and whatever the limits are."""
    bounds = Bounds(64, 12, 3) if len(data) % 2 else Bounds()
    expected = naive.read_stream(data, bounds)
    assert expected == parse([data], bounds)
    assert expected == parse(single_bytes(data), bounds)
    if data:
        assert expected == parse(cut(data, [data[0], data[-1], len(data) // 2]), bounds)


def hub(data: bytes) -> None:
    """Whatever clients send, everything that has to be true of a broker stays so.

    `data` is a list of steps: a byte (who, and what happens), a length, and so many bytes.
    """
    broker = SmallBroker()
    clients: list[_Client] = []
    at = 0
    while at + 2 <= len(data):
        what, size = data[at], data[at + 1]
        who, step = PRINCIPALS[what % 3], what // 3 % 8
        sent = data[at + 2 : at + 2 + size]
        at += 2 + size
        if step == 7:
            broker.announce(who, list(State)[size % len(State)])
        else:
            mine = [client for client in clients if client.is_of(who.id)]
            if not mine or (step == 6 and len(clients) < _MAX_CLIENTS):
                mine.append(_Client(broker, what % 3))
                clients.append(mine[-1])
            mine[-1].do(step, sent)
        broker.check()


class _Client:
    """One connection, as a listener would have it."""

    def __init__(self, broker: SmallBroker, who: int) -> None:
        self._broker = broker
        self._who = PRINCIPALS[who]
        self._parser = Parser(4096, TopicNames())
        self._is_refused = False
        self._wire: Wire | None = None

    def is_of(self, id: DeviceId) -> bool:
        return self._who.id == id and not self._is_refused and (self._wire is None or self._wire.ended is None)

    def do(self, step: int, sent: bytes) -> None:
        session = next((s for w, s in self._broker.live() if w is self._wire), None)
        match step:
            case 4 if session is not None:
                self._broker.hub.leave(session, Reason.LOST)
            case 5 if session is not None and self._wire is not None:
                self._wire.has_stopped_reading = not self._wire.has_stopped_reading
                if not self._wire.is_congested:
                    session.pump()
            case _:
                self._send(sent)

    def _send(self, sent: bytes) -> None:
        session = next((s for w, s in self._broker.live() if w is self._wire), None)
        try:
            for packet in self._parser.feed(sent):
                if session is not None:
                    self._broker.hub.handle(session, packet)
                elif isinstance(packet, Connect) and (found := self._broker.connect(self._who, packet)):
                    self._wire, session = found
                else:
                    self._is_refused = True
                    return
                if self._wire is not None and self._wire.ended is not None:
                    return
        except ProtocolViolation:
            self._is_refused = True
            if session is not None:
                self._broker.hub.leave(session, Reason.PROTOCOL)


def message(data: bytes) -> None:
    """A payload is an object that can be written and read again, or InvalidMessage; so is each kind of message."""
    device = DeviceId("pump-07")
    decoders: tuple[Callable[[bytes, DeviceId], object], ...] = (
        *(messages.decode_status, messages.decode_hello, messages.decode_result, messages.decode_command),
    )
    value: messages.JsonObject | None = None
    with suppress(InvalidMessage):
        value = messages.decode_object(data)
    if value is not None:
        assert value == messages.decode_object(messages.encode_object(value))
        assert value == json.loads(data)
        assert all(type(n) is not int or abs(n) < 2**53 for n in _leaves(value)), "not I-JSON (RFC 7493, 2.2)"
        assert all(n == n and abs(n) != inf for n in _leaves(value) if isinstance(n, float)), "not JSON"
    for decode in decoders:
        try:
            decode(data, device)
        except InvalidInput:
            continue
        assert value is not None


def _leaves(value: object) -> Iterator[object]:
    """All that is neither object nor list."""
    match value:
        case dict():
            for inner in value.values():
                yield from _leaves(inner)
        case list():
            for inner in value:
                yield from _leaves(inner)
        case _:
            yield value


def topic(data: bytes) -> None:
    """Matching is what a naive matcher says, covering never covers too much, parsing is the inverse of formatting."""
    allowed, requested, name, *_ = [*data.decode("utf-8", "replace").split("\n"), "", "", ""]
    with suppress(InvalidInput):
        assert name == topics.parse(name).format()
    for text in (allowed, requested, name):
        assert topics.is_topic_filter(text) == _is_accepted(naive.Reader.topic_filter, text)
        assert topics.is_topic_name(text) == _is_accepted(naive.Reader.topic_name, text)
    if not (topics.is_topic_name(name) and topics.is_topic_filter(requested)):
        return
    is_matched = topics.matches(requested, name)
    assert is_matched == _matches(requested.split("/"), name.split("/"), is_first=True)
    if topics.is_topic_filter(allowed) and topics.covers(allowed, requested) and is_matched:
        assert topics.matches(allowed, name)


def _is_accepted(read: Callable[[naive.Reader], str], text: str) -> bool:
    """As by the book, but for the characters that the broker refuses and the standard does not."""
    plain = "".join(c if c in "/+#\0" else "x" for c in text)
    data = plain.encode()
    if len(data) > topics.MAX_TOPIC_BYTES or len(text.encode()) > topics.MAX_TOPIC_BYTES:
        return False
    bounds = Bounds(topic_bytes=len(data), topic_levels=len(data) + 1)
    try:
        read(naive.Reader([*len(data).to_bytes(2, "big"), *data], bounds))
    except naive.Malformed:
        return False
    return True


def _matches(wanted: list[str], levels: list[str], *, is_first: bool = False) -> bool:
    """4.7, level by level."""
    if is_first and levels[0].startswith("$") and wanted[0] in ("+", "#"):
        return False
    if wanted == ["#"]:
        return True
    if not wanted or not levels:
        return wanted == levels
    return wanted[0] in ("+", levels[0]) and _matches(wanted[1:], levels[1:])


def join_code(data: bytes) -> None:
    """A code, a token or a file of them is what it would be written as, or InvalidInput; so is one with a good sum."""
    text = data.decode("utf-8", "replace")
    summed = b"\x01" + data
    summed += hashlib.sha256(summed).digest()[:4]
    for code in (text, "fleet1_" + base64.b32encode(summed).decode().rstrip("=").lower()):
        with suppress(InvalidInput):
            assert str(join.parse_join_code(code)) == "".join(code.split()).lower()
    for token in (text, "fleettok_" + base64.b32encode(data[:21]).decode().rstrip("=").lower()):
        with suppress(InvalidInput):
            assert token == str(join.parse_token(token))
    try:
        file = join.parse_join_file(text)
    except InvalidInput:
        return
    assert file == join.parse_join_file(file.encode())


def feed_line(data: bytes) -> None:
    """A line of the directory is what it would be written as, in characters that can be sent; or InvalidInput."""
    try:
        line = directory.decode(data)
    except InvalidInput:
        return
    encoded = directory.encode(line)
    assert line == directory.decode(encoded)
    assert encoded == directory.encode(directory.decode(encoded))
    if not isinstance(line, directory.Entry):
        line.feed.encode()


def request(data: bytes) -> None:
    """A certificate request is read, or refused; its normalised form is one, and stays as it is."""
    for der in (data, _decoded(data)):
        if der is None:
            continue
        with suppress(ValueError):
            normal = est.without_null_parameters(der)
            assert normal == est.without_null_parameters(normal)
        with suppress(FleetError):
            csr = est.parse_csr(der)
            assert csr.device == DeviceId(csr.device)
            est.check_connection(csr, csr.challenge)


def _decoded(body: bytes) -> bytes | None:
    try:
        return est.decode_body(body)
    except FleetError:
        return None


def recovery_claim(data: bytes) -> None:
    """A body of whoever wants to recover is what it would be written as, or InvalidInput; so is the answer to it."""
    with suppress(InvalidInput):
        nonce = recovery.decode_nonce(data)
        assert nonce == recovery.decode_nonce(recovery.encode_nonce(nonce))
    try:
        claim = recovery.decode_claim(data)
    except InvalidInput:
        return
    assert claim == recovery.decode_claim(claim.encode())
    assert 4 == len(recovery.statement(b"", claim.nonce, claim.csr).split(b"\n"))


TARGETS: Mapping[str, Callable[[bytes], None]] = {
    "parser": parser,
    "hub": hub,
    "message": message,
    "topic": topic,
    "join-code": join_code,
    "feed-line": feed_line,
    "request": request,
    "recovery": recovery_claim,
}
