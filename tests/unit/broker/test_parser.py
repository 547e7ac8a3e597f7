"""The parser of what clients send: strict, incremental, and never surprised."""

from __future__ import annotations

import asyncio

import pytest
from amqtt.adapters import BufferReader
from amqtt.mqtt.publish import PublishPacket
from hypothesis import example, given
from hypothesis import strategies as st

from broker.engines.amqtt import packets
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
    Will,
)
from broker.engines.amqtt.parser import Parser, TopicNames
from tests import malformed, mqtt
from tests.malformed import Malformed

LIMIT = 70_000


def parse(*chunks: bytes, limit: int = LIMIT) -> tuple[list[object], str | None]:
    """What comes out of a stream, in a form that compares, and the rule that ended it."""
    parser = Parser(limit, TopicNames())
    found: list[object] = []
    try:
        for chunk in chunks:
            found.extend(shown(packet) for packet in parser.feed(chunk))
    except ProtocolViolation as violation:
        return found, violation.rule
    return found, None


def shown(packet: Packet) -> object:
    if isinstance(packet, Publish):
        return packet.topic, packet.payload, packet.qos, packet.packet_id, packet.retain, packet.dup, packet.frame
    return packet


NAMES = st.text(
    st.characters(codec="utf-8", exclude_characters="+#/", exclude_categories=["Cc", "Cn", "Cs"]), min_size=1
)
TOPICS = st.lists(NAMES, min_size=1, max_size=8).map(lambda levels: "/".join(levels)[:60])
IDS = st.integers(1, 65_535)
PAYLOADS = st.binary(max_size=300)
FILTERS = st.tuples(
    TOPICS | TOPICS.map(lambda topic: topic + "/#") | st.sampled_from(["#", "+", "+/x"]), st.integers(0, 2)
)
FRAMES = st.one_of(
    st.builds(mqtt.connect, NAMES, clean=st.booleans(), keep_alive=st.integers(0, 65_535)),
    st.builds(mqtt.publish, TOPICS, PAYLOADS, st.integers(0, 2), IDS, retain=st.booleans()),
    st.builds(
        lambda filters, number: mqtt.subscribe(*filters, id=number), st.lists(FILTERS, min_size=1, max_size=4), IDS
    ),
    st.builds(
        lambda filters, number: mqtt.unsubscribe(*filters, id=number), st.lists(TOPICS, min_size=1, max_size=4), IDS
    ),
    st.builds(mqtt.puback, IDS),
    st.builds(mqtt.pubrec, IDS),
    st.builds(mqtt.pubrel, IDS),
    st.builds(mqtt.pubcomp, IDS),
    st.sampled_from([mqtt.PINGREQ, mqtt.DISCONNECT]),
)
NOISE = st.binary(max_size=40) | st.builds(mqtt.packet, st.integers(0, 255), PAYLOADS)
STREAMS = st.lists(FRAMES | NOISE, max_size=6).map(b"".join)


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (mqtt.connect("a", keep_alive=7), Connect("a", True, 7, None)),
        (mqtt.connect("", clean=False, will=("t", b"\0", 2, True)), Connect("", False, 60, Will("t", b"\0", 2, True))),
        (mqtt.connect("a", level=5), UnsupportedLevel("MQTT", 5)),
        (mqtt.subscribe(("a/#", 1), ("+", 0), id=3), Subscribe(3, (("a/#", 1), ("+", 0)))),
        (mqtt.unsubscribe("a", "b/+", id=4), Unsubscribe(4, ("a", "b/+"))),
        (mqtt.puback(1), Puback(1)),
        (mqtt.pubrec(258), Pubrec(258)),
        (mqtt.pubrel(65_535), Pubrel(65_535)),
        (mqtt.pubcomp(2), Pubcomp(2)),
        (mqtt.PINGREQ, Pingreq()),
        (mqtt.DISCONNECT, Disconnect()),
    ],
)
def test_a_packet_is_what_was_sent(frame: bytes, expected: Packet) -> None:
    """A client would be misunderstood."""
    assert ([expected], None) == parse(frame)


@given(TOPICS, PAYLOADS, st.integers(0, 2), IDS, st.booleans())
def test_a_publish_is_what_was_sent(topic: str, payload: bytes, qos: int, id: int, retain: bool) -> None:
    """A message would arrive altered."""
    frame = mqtt.publish(topic, payload, qos, id, retain=retain)
    assert ([(topic, payload, qos, id if qos else 0, retain, False, frame)], None) == parse(frame)


@given(STREAMS)
@example(mqtt.PINGREQ + b"\x36")
def test_a_stream_cut_byte_by_byte_equals_the_whole(stream: bytes) -> None:
    """What a packet means would depend on how the network cuts it."""
    whole = parse(stream)
    assert whole == parse(*(stream[at : at + 1] for at in range(len(stream))))


@given(STREAMS, st.data())
def test_a_stream_cut_anywhere_equals_the_whole(stream: bytes, data: st.DataObject) -> None:
    """The same, with packets that end within a segment."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=4)))
    chunks = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert parse(stream) == parse(*chunks)


@given(st.binary(max_size=2000))
def test_random_bytes_raise_only_the_peers_error(stream: bytes) -> None:
    """A hostile client would take the broker's handling of others down with it."""
    parse(stream)


@given(FRAMES, st.data())
def test_a_mutated_packet_raises_only_the_peers_error(frame: bytes, data: st.DataObject) -> None:
    """The same, close to what is valid."""
    at = data.draw(st.integers(0, len(frame) - 1))
    mutated = frame[:at] + data.draw(st.binary(max_size=3)) + frame[at + 1 :]
    parse(mutated)


@given(TOPICS, PAYLOADS, st.integers(0, 2), IDS, st.booleans())
def test_amqtt_reads_the_same_from_what_is_accepted(
    topic: str, payload: bytes, qos: int, id: int, retain: bool
) -> None:
    """Its codec is an independent decoder: where they differ, one of them misreads."""
    frame = mqtt.publish(topic, payload, qos, id, retain=retain)
    read = asyncio.run(PublishPacket.from_stream(BufferReader(frame)))
    (found,) = Parser(LIMIT, TopicNames()).feed(frame)
    assert isinstance(found, Publish)
    assert (read.topic_name, read.data, read.qos) == (found.topic, found.payload, found.qos)


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_383, 16_384, 65_000])
def test_every_length_of_the_length_is_read(size: int) -> None:
    """2.2.3: a packet of one more byte would be cut or joined."""
    payload = bytes(size)
    for qos in (0, 1):
        found, rule = parse(mqtt.publish("t", payload, qos) + mqtt.PINGREQ)
        assert (None, Pingreq(), 2) == (rule, found[1], len(found))


def test_the_limit_counts_the_whole_packet() -> None:
    """A packet of one byte over the limit would pass, or one at the limit would not."""
    frame = mqtt.publish("t", bytes(100))
    assert None is parse(frame, limit=len(frame))[1]
    assert None is not parse(frame, limit=len(frame) - 1)[1]
    assert None is not parse(frame[:2], limit=len(frame) - 1)[1]


def test_a_packet_that_has_begun_is_known() -> None:
    """Half a packet would not run into its deadline."""
    parser = Parser(LIMIT, TopicNames())
    assert [] == list(parser.feed(mqtt.PINGREQ[:1]))
    assert parser.is_within_packet
    assert [Pingreq()] == list(parser.feed(mqtt.PINGREQ[1:]))
    assert not parser.is_within_packet


def test_known_topics_are_bounded() -> None:
    """A client that uses every topic once would fill the memory."""
    names = TopicNames()
    for n in range(40_000):
        assert f"t/{n}" == names.name(f"t/{n}".encode())
    assert len(names.known) + len(names._known_before) <= 32_768
    names = TopicNames()
    assert "t" * 500 == names.name(b"t" * 500)
    assert {} == names.known


def test_a_topic_in_use_stays_known_while_others_make_up_new_ones() -> None:
    """One client that uses every topic once would have everybody's topics checked again and again."""
    names = TopicNames()
    known = names.name(b"in/use")
    for n in range(40_000):
        names.name(f"t/{n}".encode())
        if n % 1000 == 0:
            assert known is names.name(b"in/use")


def named(topic: str, rest: bytes) -> bytes:
    """The body of a PUBLISH."""
    name = topic.encode()
    return len(name).to_bytes(2, "big") + name + rest


@given(
    st.sampled_from([*range(0x30, 0x40), 0x40]),
    st.binary(max_size=300) | st.tuples(NAMES, PAYLOADS).map(lambda both: named(*both)),
)
def test_one_publish_alone_is_parsed_as_it_is_among_others(first: int, body: bytes) -> None:
    """What most reads bring takes a way of its own through the parser: it must say the same of every packet."""
    frame = bytes((first,)) + packets.encode_length(len(body)) + body
    found, rule = parse(frame + mqtt.PINGREQ)
    assert (found[:-1] if rule is None else found, rule) == parse(frame)
    assert parse(frame, limit=20) == parse(frame[:1], frame[1:], limit=20)


@given(NAMES, PAYLOADS, st.integers(0, 2), st.booleans(), IDS, st.integers(0, 2), st.booleans(), st.booleans())
def test_a_message_is_sent_on_as_amqtt_would_encode_it(
    topic: str, payload: bytes, came: int, kept: bool, id: int, goes: int, retain: bool, dup: bool
) -> None:
    """A frame that is encoded once would be wrong for one of its subscribers."""
    message = Publish.of(topic, payload, came, retain=kept)
    expected = PublishPacket.build(topic, payload, id if goes else None, dup and goes > 0, goes, retain).to_bytes()
    assert expected == message.to_send(goes, id, retain=retain, dup=dup)
    assert PublishPacket.build(topic, payload, None, False, 0, False).to_bytes() == message.plain()
    assert payload == message.payload
    assert (not payload) == message.is_empty()


@given(st.integers(0, packets.MAX_REMAINING_LENGTH))
def test_a_length_is_encoded_as_it_is_read(length: int) -> None:
    """2.2.3: the peer would lose its place in the stream."""
    expected = mqtt.packet(0, bytes(length))[1:-length] if 0 < length < 100_000 else None
    encoded = packets.encode_length(length)
    if expected is not None:
        assert expected == encoded
    value = sum((byte & 0x7F) << 7 * at for at, byte in enumerate(encoded))
    assert (length, True) == (value, encoded[-1] < 0x80)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (packets.puback(7), mqtt.puback(7)),
        (packets.pubrec(65_535), mqtt.pubrec(65_535)),
        (packets.pubrel(1), mqtt.pubrel(1)),
        (packets.pubcomp(256), mqtt.pubcomp(256)),
        (packets.connack(0, session_present=True), mqtt.ACCEPTED_PRESENT),
        (packets.connack(5), b"\x20\x02\x00\x05"),
        (packets.suback(9, [0, 1, 2, 0x80]), mqtt.suback(0, 1, 2, 0x80, id=9)),
        (packets.unsuback(300), mqtt.packet(0xB0, mqtt.number(300))),
        (packets.PINGRESP, mqtt.PINGRESP),
    ],
)
def test_what_the_server_sends_is_encoded_by_the_book(ours: bytes, theirs: bytes) -> None:
    """A client would not understand its answer."""
    assert theirs == ours


@pytest.mark.parametrize("case", malformed.PACKETS + malformed.CONNECTS, ids=str)
def test_a_malformed_packet_is_refused_by_the_statement_that_names_it(case: Malformed) -> None:
    """It would pass, or be refused by chance for something else."""
    assert ([], case.statement) == parse(case.frame)
    assert ([], case.statement) == parse(*(case.frame[at : at + 1] for at in range(len(case.frame))))
    assert ([Pingreq()], case.statement) == parse(mqtt.PINGREQ + case.frame + mqtt.PINGREQ)


@pytest.mark.parametrize("case", malformed.NOT_FIRST + malformed.NOT_TWICE, ids=str)
def test_a_packet_out_of_place_is_not_the_parsers_to_refuse(case: Malformed) -> None:
    """The table would say that it is well-formed where it is not."""
    (_,), rule = parse(case.frame)
    assert rule is None


def test_a_byte_order_mark_is_kept() -> None:
    """MQTT-1.5.3-3: two topics would become one."""
    (found,), _ = parse(b"\x30\x06\x00\x04\xef\xbb\xbfa")
    assert isinstance(found, tuple)
    assert "\ufeffa" == found[0]
