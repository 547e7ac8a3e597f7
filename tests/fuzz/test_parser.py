"""The parser against the oracle: the same packets, the same end, however the network cuts the stream."""

from __future__ import annotations

import time
import tracemalloc

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from broker.engines.amqtt.packets import ProtocolViolation
from broker.engines.amqtt.parser import Parser, TopicNames
from tests import mqtt
from tests.fuzz import naive
from tests.fuzz.naive import Bounds, End
from tests.fuzz.streams import GOOD, PACKETS, STREAMS, cut, mutated, parse, single_bytes

# Limits are met often where they are small.
BOUNDS = st.sampled_from([Bounds(), Bounds(12, 7, 2), Bounds(24, 8, 3), Bounds(200, 30, 5)])


@pytest.mark.fuzz
@given(STREAMS, BOUNDS)
@example(mqtt.publish("a/\U0001ffff"), Bounds())
def test_parser_and_oracle_agree(stream: bytes, bounds: Bounds) -> None:
    """One of them misreads, and so does a broker or a client."""
    assert naive.read_stream(stream, bounds) == parse([stream], bounds)


@pytest.mark.fuzz
@given(st.binary(max_size=60), BOUNDS)
def test_parser_and_oracle_agree_on_random_bytes(stream: bytes, bounds: Bounds) -> None:
    """The same, for whatever is not MQTT at all."""
    assert naive.read_stream(stream, bounds) == parse([stream], bounds)


@pytest.mark.fuzz
@given(PACKETS | mutated())
def test_parser_and_oracle_agree_at_every_byte_of_a_packet(packet: bytes) -> None:
    """Somewhere in a packet more is asked for, or less, than is needed to tell."""
    for stop in range(len(packet) + 1):
        assert naive.read_stream(packet[:stop], Bounds()) == parse([packet[:stop]], Bounds())


@pytest.mark.fuzz
@given(STREAMS, st.lists(st.integers(0, 200), max_size=5), BOUNDS)
@example(mqtt.PINGREQ + b"\x36", [], Bounds())
def test_a_stream_cut_anywhere_equals_the_whole(stream: bytes, places: list[int], bounds: Bounds) -> None:
    """What a packet means would depend on the network."""
    whole = parse([stream], bounds)
    assert whole == parse(single_bytes(stream), bounds)
    assert whole == parse(cut(stream, places), bounds)


@pytest.mark.fuzz
@given(PACKETS, PACKETS)
def test_a_stream_of_two_cut_at_every_byte_equals_the_whole(first: bytes, second: bytes) -> None:
    """The same, at every place there is."""
    stream = first + second
    whole = parse([stream], Bounds())
    for place in range(len(stream) + 1):
        assert whole == parse(cut(stream, [place]), Bounds())


@pytest.mark.parametrize("first", range(256))
def test_every_first_byte_is_judged_as_by_the_book(first: int) -> None:
    """2.2.1 and 2.2.2: a packet type or a flag would pass that means nothing."""
    for body in (b"", b"\0\1", b"\0\1a\0\1", b"\0\1a\0\1x"):
        stream = mqtt.packet(first, body)
        assert naive.read_stream(stream, Bounds()) == parse([stream], Bounds())


@pytest.mark.parametrize("flags", range(256))
def test_all_flags_of_connect_are_judged_as_by_the_book(flags: int) -> None:
    """3.1.2: a reserved flag, or a will that is none, would pass."""
    for count in range(1, 6):
        stream = mqtt.packet(0x10, b"\0\4MQTT\4", bytes((flags,)), b"\0\x3c", b"\0\1a" * count)
        assert naive.read_stream(stream, Bounds()) == parse([stream], Bounds())


@pytest.mark.fuzz
@given(GOOD)
def test_every_shorter_packet_is_judged_as_by_the_book(packet: bytes) -> None:
    """A field that is missing, or cut, would be read as if it were there."""
    body = packet[2:] if packet[1] < 0x80 else packet[3:]  # none here is as long as 16 KB
    for stop in range(len(body) + 1):
        stream = mqtt.packet(packet[0], body[:stop])
        assert naive.read_stream(stream, Bounds()) == parse([stream], Bounds())


@pytest.mark.parametrize("qos", range(256))
def test_every_requested_qos_is_judged_as_by_the_book(qos: int) -> None:
    """MQTT-3.8.3-4: reserved bits would pass."""
    stream = mqtt.subscribe(("a", qos))
    assert naive.read_stream(stream, Bounds()) == parse([stream], Bounds())


@pytest.mark.parametrize("id", [0, 1, 0x00FF, 0x0100, 0xFFFF])
def test_every_packet_identifier_is_judged_as_by_the_book(id: int) -> None:
    """MQTT-2.3.1-1: 0 would pass, or one that has a byte of 0 would not."""
    for stream in (
        *(mqtt.publish("a", b"x", 1, id), mqtt.publish("a", b"x", 2, id), mqtt.publish("a", b"", 1, id)),
        *(mqtt.subscribe(("a", 0), id=id), mqtt.unsubscribe("a", id=id)),
        *(acknowledge(id) for acknowledge in (mqtt.puback, mqtt.pubrec, mqtt.pubrel, mqtt.pubcomp)),
    ):
        assert naive.read_stream(stream, Bounds()) == parse([stream], Bounds())


def test_every_code_point_is_judged_as_by_the_book() -> None:
    """1.5.3: a surrogate, NUL, a control character or a non-character would get into logs and filters."""
    for code_point in (*range(0x3000), *range(0xD700, 0xE100), *range(0xFD00, 0x10100), *range(0xFFF0, 0x11_0000, 14)):
        stream = mqtt.publish(chr(code_point).encode("utf-8", "surrogatepass"))
        assert naive.read_stream(stream, Bounds()) == parse([stream], Bounds()), hex(code_point)
    for plane in range(17):
        for last in (0xFFFD, 0xFFFE, 0xFFFF):
            stream = mqtt.publish(chr(plane << 16 | last))
            assert naive.read_stream(stream, Bounds()) == parse([stream], Bounds()), hex(plane)


@pytest.mark.parametrize("size", [*range(1, 12), 127, 128, 129, 16_383, 16_384, 16_385])
def test_every_limit_is_judged_as_by_the_oracle(size: int) -> None:
    """A topic or a packet of one byte or one level over the limit would pass, or one at the limit would not."""
    for stream in (mqtt.publish("/" * size), mqtt.subscribe(("x" * size, 0)), mqtt.publish("t", bytes(size))):
        for off in (-1, 0, 1):
            for bounds in (Bounds(len(stream) + off), Bounds(topic_bytes=size + off), Bounds(topic_levels=size + off)):
                assert naive.read_stream(stream, bounds) == parse([stream], bounds)


@pytest.mark.parametrize("length", range(1, 6))
@pytest.mark.parametrize("last", [0, 1, 2, 0x7F])
def test_every_length_of_the_length_is_judged_as_by_the_book(length: int, last: int) -> None:
    """2.2.3: five bytes would pass, or four would not."""
    for fill in (b"\x80", b"\x81", b"\x82", b"\xff"):
        for first in (b"\x30", b"\x40", b"\xc0"):
            stream = first + fill * (length - 1) + bytes((last,)) + b"\0\1aa" * 70
            bounds = Bounds(packet_bytes=2**29)
            assert naive.read_stream(stream, bounds) == parse([stream], bounds)


def test_what_is_held_of_a_packet_is_bounded() -> None:
    """A client that never ends a packet would have the broker keep what it sends."""
    limit = 100_000
    parser = Parser(limit, TopicNames())
    tracemalloc.start()
    try:
        assert [] == list(parser.feed(b"\x30\xff\xff\x05"))  # 98,303 bytes follow
        for _ in range(98_302):
            assert [] == list(parser.feed(b"x"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * limit
    with pytest.raises(ProtocolViolation):
        list(Parser(limit, TopicNames()).feed(mqtt.packet(0x30, bytes(limit))[:4]))


def test_a_packet_in_single_bytes_costs_no_more_than_its_bytes() -> None:
    """Parsing again from the start at each byte would let one client keep the processor."""
    # Two lengths and not a time: quadratic work would be sixteen times as much, not four.
    short, long = _seconds(20_000), _seconds(80_000)
    assert long < 9 * short


def _seconds(size: int) -> float:
    frame = mqtt.publish("t", bytes(size))
    chunks = single_bytes(frame)

    def once() -> float:
        began = time.process_time()
        assert End.BETWEEN_PACKETS is parse(chunks, Bounds())[1]
        return time.process_time() - began

    return min(once() for _ in range(3))
