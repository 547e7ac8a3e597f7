"""What clients send, and what is close to it: Hypothesis strategies, and the comparison of parser and oracle."""

from __future__ import annotations

from collections.abc import Iterable
from typing import assert_never

from hypothesis import strategies as st

from broker.engines.amqtt.packets import (
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    ProtocolViolation,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Subscribe,
    Unsubscribe,
    UnsupportedLevel,
)
from broker.engines.amqtt.parser import Parser, TopicNames
from tests import mqtt
from tests.fuzz.naive import Bounds, End, Item

_CHARACTERS = st.characters(codec="utf-8", exclude_categories=["Cc", "Cn", "Cs"], exclude_characters="+#/")
_LEVELS = st.sampled_from(["", "a", "$SYS", "é", "\ufeff", "\U0001f6b0", "x" * 7]) | st.text(_CHARACTERS, max_size=6)
NAMES = st.lists(_LEVELS, min_size=1, max_size=5).map("/".join).map(lambda name: name or "a")
FILTERS = NAMES | st.sampled_from(["#", "+", "+/a", "a/+", "a/#", "/+/#", "+/+/+"])
# Odd ones: wildcards where they may not be, characters that no text has, bytes that are no UTF-8.
_ODD = st.sampled_from(["", "a+", "#/a", "a#", "a/b#", "+a/b", "a\0", "\x1f", "\x7f", "\ufffe", "\U0001ffff"])
_ODD_BYTES = st.sampled_from([b"\xed\xa0\x80", b"\xc0\xaf", b"\xff", b"\xf4\x90\x80\x80", b"\xc3"]) | st.binary(
    max_size=8
)
ODD = _ODD.map(str.encode) | _ODD_BYTES | FILTERS.map(str.encode)
IDS = st.integers(1, 65_535)
PAYLOADS = st.binary(max_size=20)
QOS = st.integers(0, 2)


@st.composite
def connects(draw: st.DrawFn, flags: st.SearchStrategy[int], fields: st.SearchStrategy[str | bytes]) -> bytes:
    """CONNECT with the fields that its flags announce."""
    drawn = draw(flags)
    count = 1 + (2 if drawn & 0x04 else 0) + (drawn >> 7) + (drawn >> 6 & 1)
    values = [draw(fields) for _ in range(count)]
    name, level = draw(st.sampled_from([("MQTT", 4)] * 6 + [("MQTT", 5), ("MQTT", 3), ("MQIsdp", 3), ("mqtt", 4)]))
    head = mqtt.field(name) + bytes((level, drawn)) + mqtt.number(draw(st.integers(0, 65_535)))
    return mqtt.packet(0x10, head, *map(mqtt.field, values))


def publishes(
    firsts: st.SearchStrategy[int], topics: st.SearchStrategy[str | bytes], ids: st.SearchStrategy[int]
) -> st.SearchStrategy[bytes]:
    """PUBLISH with a packet identifier where its flags say so."""
    return st.builds(_publish, firsts, topics, ids, PAYLOADS)


def _publish(first: int, topic: str | bytes, id: int, payload: bytes) -> bytes:
    return mqtt.packet(0x30 | first, mqtt.field(topic), mqtt.number(id) if first & 6 else b"", payload)


def subscribes(
    filters: st.SearchStrategy[str | bytes], qos: st.SearchStrategy[int], ids: st.SearchStrategy[int], at_least: int
) -> st.SearchStrategy[bytes]:
    """SUBSCRIBE and UNSUBSCRIBE."""
    requests = st.lists(
        st.builds(lambda name, qos: mqtt.field(name) + bytes((qos,)), filters, qos), min_size=at_least, max_size=3
    )
    names = st.lists(filters.map(mqtt.field), min_size=at_least, max_size=3)
    numbers = ids.map(mqtt.number)
    return st.builds(lambda number, fields: mqtt.packet(0x82, number, *fields), numbers, requests) | st.builds(
        lambda number, fields: mqtt.packet(0xA2, number, *fields), numbers, names
    )


def acknowledgements(ids: st.SearchStrategy[int]) -> st.SearchStrategy[bytes]:
    return st.builds(mqtt.packet, st.sampled_from([0x40, 0x50, 0x62, 0x70]), ids.map(mqtt.number))


GOOD = st.one_of(
    connects(st.sampled_from([0x02, 0x00, 0x06, 0x26, 0x0E, 0x16, 0xC2, 0x82, 0xF6]), NAMES),
    publishes(st.sampled_from([0, 1, 2, 3, 4, 5, 10, 11, 12, 13]), NAMES, IDS),
    subscribes(FILTERS, QOS, IDS, 1),
    acknowledgements(IDS),
    st.sampled_from([mqtt.PINGREQ, mqtt.DISCONNECT]),
)
_MAYBE_NO_ID = st.integers(0, 2)
STRANGE = st.one_of(
    connects(st.integers(0, 255), NAMES | ODD),
    publishes(st.integers(0, 15), NAMES | ODD, _MAYBE_NO_ID),
    subscribes(FILTERS | ODD, st.integers(0, 4) | st.just(0x80), _MAYBE_NO_ID, 0),
    acknowledgements(_MAYBE_NO_ID),
    # A length in one byte more than it takes, and in five.
    acknowledgements(IDS).map(lambda packet: packet[:1] + b"\x82\0" + packet[2:]),
    st.builds(lambda first: bytes((first,)) + b"\x80\x80\x80\x80\1", st.sampled_from([0x30, 0x40, 0x82])),
)
PACKETS = GOOD | GOOD | STRANGE


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A packet with some bytes changed, dropped or added; its length put right, or not."""
    packet = bytearray(draw(PACKETS))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(packet)))
        packet[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=2))
    if packet and draw(st.booleans()):
        return mqtt.packet(packet[0], bytes(packet[2:]))
    return bytes(packet)


NOISE = st.binary(max_size=12) | st.builds(mqtt.packet, st.integers(0, 255), st.binary(max_size=12))
# The first that is malformed ends a stream: what matters comes before it.
STREAMS = st.builds(
    lambda good, last: b"".join(good) + last, st.lists(GOOD, max_size=5), GOOD | STRANGE | STRANGE | mutated() | NOISE
)


def item(packet: Packet) -> Item:
    """What the parser found, in the oracle's words."""
    match packet:
        case Connect(client_id, clean_session, keep_alive, will):
            shown = None if will is None else (will.topic, will.payload, will.qos, will.retain)
            return ("CONNECT", clean_session, keep_alive, client_id, shown)
        case UnsupportedLevel(name, level):
            return ("OTHER VERSION", name, level)
        case Publish():
            fields = (packet.dup, packet.qos, packet.retain, packet.topic, packet.packet_id, packet.payload)
            return ("PUBLISH", *fields)
        case Puback(id) | Pubrec(id) | Pubrel(id) | Pubcomp(id):
            return (type(packet).__name__.upper(), id)
        case Subscribe(id, requests):
            return ("SUBSCRIBE", id, requests)
        case Unsubscribe(id, filters):
            return ("UNSUBSCRIBE", id, filters)
        case Pingreq() | Disconnect():
            return (type(packet).__name__.upper(),)
    assert_never(packet)


def parse(chunks: Iterable[bytes], bounds: Bounds) -> tuple[list[Item], End]:
    """What the broker's parser makes of a stream, in the oracle's words. Raises what it raises, but its own error."""
    parser = Parser(bounds.packet_bytes, TopicNames(bounds.topic_bytes, bounds.topic_levels))
    found: list[Item] = []
    try:
        for chunk in chunks:
            found.extend(item(packet) for packet in parser.feed(chunk))
            assert len(parser.held) < bounds.packet_bytes, "more is held than the packet that is not complete"
    except ProtocolViolation:
        return found, End.MALFORMED
    return found, End.WITHIN_A_PACKET if parser.is_within_packet else End.BETWEEN_PACKETS


def cut(stream: bytes, places: Iterable[int]) -> list[bytes]:
    """A stream in pieces."""
    within = sorted(place % (len(stream) + 1) for place in places)
    return [stream[a:b] for a, b in zip([0, *within], [*within, len(stream)], strict=True)]


def single_bytes(stream: bytes) -> list[bytes]:
    return [stream[at : at + 1] for at in range(len(stream))]
