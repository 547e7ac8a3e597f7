"""What an MQTT 3.1.1 client sends, read by the book: the oracle that the broker's parser is compared with.

Written from the tables of the OASIS text and from nothing else: one packet at a time, a byte at a time, no speed, no
state, no Python codec. It knows nothing of the broker. Where this server is stricter than the standard demands, the
statement begins with "house".
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

Text = str
Item = tuple[object, ...]
"""A packet: its name in the standard, then its fields in the order of the standard."""


class Malformed(Exception):
    """Not what a client may send. `statement` is the standard's number."""

    def __init__(self, statement: str) -> None:
        super().__init__(statement)
        self.statement = statement


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the server takes at most; the standard leaves it to the server."""

    packet_bytes: int = 262_144
    topic_bytes: int = 1024
    topic_levels: int = 32


class End(Enum):
    """How a stream ended."""

    BETWEEN_PACKETS = "between packets"
    WITHIN_A_PACKET = "within a packet"
    MALFORMED = "malformed"


def read_stream(data: bytes, bounds: Bounds) -> tuple[list[Item], End]:
    """Every packet of a stream up to its end or to what is malformed."""
    found: list[Item] = []
    rest = list(data)
    while rest:
        try:
            header_size, remaining = read_fixed_header(rest, bounds)
            if header_size == 0 or len(rest) < header_size + remaining:
                return found, End.WITHIN_A_PACKET
            body = rest[header_size : header_size + remaining]
            found.append(read_packet(rest[0], body, bounds))
        except Malformed:
            return found, End.MALFORMED
        rest = rest[header_size + remaining :]
    return found, End.BETWEEN_PACKETS


# 2.2 Fixed header

# Tables 2.1 and 2.2: value, name, whether it flows from client to server, flags (None: PUBLISH has its own).
TYPES: dict[int, tuple[str, bool, int | None]] = {
    1: ("CONNECT", True, 0b0000),
    2: ("CONNACK", False, 0b0000),
    3: ("PUBLISH", True, None),
    4: ("PUBACK", True, 0b0000),
    5: ("PUBREC", True, 0b0000),
    6: ("PUBREL", True, 0b0010),
    7: ("PUBCOMP", True, 0b0000),
    8: ("SUBSCRIBE", True, 0b0010),
    9: ("SUBACK", False, 0b0000),
    10: ("UNSUBSCRIBE", True, 0b0010),
    11: ("UNSUBACK", False, 0b0000),
    12: ("PINGREQ", True, 0b0000),
    13: ("PINGRESP", False, 0b0000),
    14: ("DISCONNECT", True, 0b0000),
}


def read_fixed_header(data: list[int], bounds: Bounds) -> tuple[int, int]:
    """The size of the fixed header and the remaining length; (0, 0) as long as the header is not all there."""
    check_first_byte(data[0])
    # The algorithm of 2.2.3.
    multiplier, value, at = 1, 0, 1
    while True:
        if at >= len(data):
            return 0, 0
        value += (data[at] % 128) * multiplier
        if data[at] < 128:
            break
        multiplier *= 128
        at += 1
        if multiplier > 128 * 128 * 128:
            raise Malformed("2.2.3")
    if at > 1 and data[at] == 0:
        raise Malformed("house: a remaining length in more bytes than it takes")
    if at + 1 + value > bounds.packet_bytes:
        raise Malformed("house: a packet that is too large")
    return at + 1, value


def check_first_byte(first: int) -> None:
    kind, flags = first // 16, first % 16
    if kind not in TYPES:
        raise Malformed("2.2.1: reserved")
    _, is_sent_by_clients, expected = TYPES[kind]
    if not is_sent_by_clients:
        raise Malformed("2.2.1: direction of flow")
    if expected is not None and flags != expected:
        raise Malformed("MQTT-2.2.2-2")
    if expected is None:
        dup, qos = flags // 8, flags // 2 % 4
        if qos == 3:
            raise Malformed("MQTT-3.3.1-4")
        if dup and qos == 0:
            raise Malformed("MQTT-3.3.1-2")


# 3 Control packets


def read_packet(first: int, body: list[int], bounds: Bounds) -> Item:
    """One packet whose fixed header is good. Raises: Malformed."""
    reader = Reader(body, bounds)
    name = TYPES[first // 16][0]
    if name == "CONNECT":
        packet = read_connect(reader)
    elif name == "PUBLISH":
        packet = read_publish(first % 16, reader)
    elif name in ("PUBACK", "PUBREC", "PUBREL", "PUBCOMP"):
        packet = (name, reader.packet_identifier())
    elif name == "SUBSCRIBE":
        packet = (name, reader.packet_identifier(), read_requests(reader))
    elif name == "UNSUBSCRIBE":
        packet = (name, reader.packet_identifier(), read_filters(reader))
    else:
        packet = (name,)
    if reader.rest and packet[0] != "OTHER VERSION":
        raise Malformed("remaining length")
    return packet


def read_connect(reader: Reader) -> Item:
    """3.1: name, clean session, keep alive, client identifier, will (topic, message, QoS, retain)."""
    name = reader.text()
    if name == "MQIsdp":  # the name that MQTT 3.1 has; what follows is no business of this version
        return ("OTHER VERSION", name, reader.byte())
    if name != "MQTT":
        raise Malformed("MQTT-3.1.2-1")
    level = reader.byte()
    if level != 4:
        return ("OTHER VERSION", name, level)
    flags = reader.byte()
    user_name_flag, password_flag = flags // 128 % 2, flags // 64 % 2
    will_retain, will_qos, will_flag = flags // 32 % 2, flags // 8 % 4, flags // 4 % 2
    clean_session, reserved = flags // 2 % 2, flags % 2
    if reserved:
        raise Malformed("MQTT-3.1.2-3")
    if will_flag == 0 and will_qos != 0:
        raise Malformed("MQTT-3.1.2-13")
    if will_flag == 0 and will_retain != 0:
        raise Malformed("MQTT-3.1.2-15")
    if will_qos == 3:
        raise Malformed("MQTT-3.1.2-14")
    if user_name_flag == 0 and password_flag == 1:
        raise Malformed("MQTT-3.1.2-22")
    keep_alive = reader.integer()
    client_identifier = reader.text()
    will: Item | None = None
    if will_flag:
        topic = reader.topic_name()
        will = (topic, reader.binary(), will_qos, bool(will_retain))
    if user_name_flag:
        reader.text()
    if password_flag:
        reader.binary()
    return ("CONNECT", bool(clean_session), keep_alive, client_identifier, will)


def read_publish(flags: int, reader: Reader) -> Item:
    """3.3: DUP, QoS, RETAIN, topic name, packet identifier, application message."""
    dup, qos, retain = flags // 8, flags // 2 % 4, flags % 2
    topic = reader.topic_name()
    packet_identifier = reader.packet_identifier() if qos > 0 else 0
    return ("PUBLISH", bool(dup), qos, bool(retain), topic, packet_identifier, reader.all_that_is_left())


def read_requests(reader: Reader) -> Item:
    """3.8.3: pairs of topic filter and requested QoS, at least one."""
    requests: list[Item] = []
    while reader.rest:
        topic_filter, requested = reader.topic_filter(), reader.byte()
        if requested not in (0, 1, 2):
            raise Malformed("MQTT-3.8.3-4")
        requests.append((topic_filter, requested))
    if not requests:
        raise Malformed("MQTT-3.8.3-3")
    return tuple(requests)


def read_filters(reader: Reader) -> Item:
    """3.10.3: topic filters, at least one."""
    filters: list[Text] = []
    while reader.rest:
        filters.append(reader.topic_filter())
    if not filters:
        raise Malformed("MQTT-3.10.3-2")
    return tuple(filters)


class Reader:
    """1.5: the fields of one packet, taken one after the other."""

    def __init__(self, body: list[int], bounds: Bounds) -> None:
        self.rest = body
        self.bounds = bounds

    def byte(self) -> int:
        if not self.rest:
            raise Malformed("remaining length")
        return self.rest.pop(0)

    def integer(self) -> int:
        most_significant = self.byte()
        return most_significant * 256 + self.byte()

    def take(self, count: int) -> list[int]:
        if count > len(self.rest):
            raise Malformed("remaining length")
        taken, self.rest = self.rest[:count], self.rest[count:]
        return taken

    def binary(self) -> bytes:
        return bytes(self.take(self.integer()))

    def text(self) -> Text:
        return read_utf8(self.take(self.integer()))

    def all_that_is_left(self) -> bytes:
        return bytes(self.take(len(self.rest)))

    def packet_identifier(self) -> int:
        found = self.integer()
        if found == 0:
            raise Malformed("MQTT-2.3.1-1")
        return found

    def topic_name(self) -> Text:
        """4.7, without wildcards."""
        name = self._topic()
        if "+" in name or "#" in name:
            raise Malformed("MQTT-4.7.1-1")
        return name

    def topic_filter(self) -> Text:
        """4.7.1: # alone in the last level, + alone in its level."""
        found = self._topic()
        levels = found.split("/")
        for at, level in enumerate(levels):
            if "#" in level and not (level == "#" and at == len(levels) - 1):
                raise Malformed("MQTT-4.7.1-2")
            if "+" in level and level != "+":
                raise Malformed("MQTT-4.7.1-3")
        return found

    def _topic(self) -> Text:
        size = self.integer()
        found = read_utf8(self.take(size))
        if size == 0:
            raise Malformed("MQTT-4.7.3-1")
        if size > self.bounds.topic_bytes or len(found.split("/")) > self.bounds.topic_levels:
            raise Malformed("house: a topic that is too long or too deep")
        return found


# 1.5.3 UTF-8 encoded strings

# RFC 3629, section 4: the first byte, then what each that follows may be.
TAIL = range(0x80, 0xC0)
SEQUENCES: list[tuple[range, list[range]]] = [
    (range(0x80), []),
    (range(0xC2, 0xE0), [TAIL]),
    (range(0xE0, 0xE1), [range(0xA0, 0xC0), TAIL]),
    (range(0xE1, 0xED), [TAIL, TAIL]),
    (range(0xED, 0xEE), [range(0x80, 0xA0), TAIL]),
    (range(0xEE, 0xF0), [TAIL, TAIL]),
    (range(0xF0, 0xF1), [range(0x90, 0xC0), TAIL, TAIL]),
    (range(0xF1, 0xF4), [TAIL, TAIL, TAIL]),
    (range(0xF4, 0xF5), [range(0x80, 0x90), TAIL, TAIL]),
]


def read_utf8(data: list[int]) -> Text:
    """The characters of a string field. Raises: Malformed."""
    characters: list[str] = []
    at = 0
    while at < len(data):
        tails = next((tails for first, tails in SEQUENCES if data[at] in first), None)
        follow = data[at + 1 : at + 1 + len(tails or [])]
        if tails is None or len(follow) < len(tails) or any(b not in t for b, t in zip(follow, tails, strict=True)):
            raise Malformed("MQTT-1.5.3-1")
        code_point = data[at] if not tails else data[at] % (64 >> len(tails))
        for byte in follow:
            code_point = code_point * 64 + byte % 64
        check_code_point(code_point)
        characters.append(chr(code_point))
        at += 1 + len(tails)
    return "".join(characters)


def check_code_point(code_point: int) -> None:
    if code_point == 0:
        raise Malformed("MQTT-1.5.3-2")
    if 0x01 <= code_point <= 0x1F or 0x7F <= code_point <= 0x9F:
        raise Malformed("house: a control character, which 1.5.3 lets a receiver refuse")
    # Unicode, 23.7: the last two of each plane, and 32 in the Arabic presentation forms.
    if code_point % 0x10000 in (0xFFFE, 0xFFFF) or 0xFDD0 <= code_point <= 0xFDEF:
        raise Malformed("house: a non-character, which 1.5.3 lets a receiver refuse")
