"""Every malformed packet that MQTT 3.1.1 names, as bytes: what a decoder refuses, with the statement that says so.

A statement without "MQTT" ("2.2.3") is a section: there the standard describes, or allows to refuse, and this fleet
refuses. Two statements about decoding cannot be seen to be broken: a packet identifier in a QoS 0 PUBLISH
[MQTT-2.3.1-5] is the beginning of its payload, fields of CONNECT in another order [MQTT-3.1.3-1] are other fields.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Malformed:
    """One frame, and why it is none."""

    statement: str
    what: str
    frame: bytes

    def __str__(self) -> str:
        return f"{self.statement}: {self.what}"


# What may be published, subscribed to and taken as a client id: nothing else is wrong with these frames. Twenty bytes:
#   devices/pump-07/up/x
PACKETS = tuple(
    Malformed(*row)
    for row in (
        # 1.5.3, strings: in a topic name, then in a filter
        ("MQTT-1.5.3-1", "a byte that begins nothing in a topic", b"\x30\x17\x00\x15devices/pump-07/up/x\xff"),
        ("MQTT-1.5.3-1", "a lone continuation", b"\x30\x17\x00\x15devices/pump-07/up/x\x80"),
        ("MQTT-1.5.3-1", "an encoding that is cut", b"\x30\x18\x00\x16devices/pump-07/up/x\xe2\x82"),
        ("MQTT-1.5.3-1", "a surrogate, U+D800", b"\x30\x19\x00\x17devices/pump-07/up/x\xed\xa0\x80"),
        ("MQTT-1.5.3-1", "a surrogate, U+DFFF", b"\x30\x19\x00\x17devices/pump-07/up/x\xed\xbf\xbf"),
        ("MQTT-1.5.3-1", "a pair of surrogates", b"\x30\x1c\x00\x1adevices/pump-07/up/x\xed\xa0\xbd\xed\xb2\xa9"),
        ("MQTT-1.5.3-1", "/ in two bytes", b"\x30\x18\x00\x16devices/pump-07/up/x\xc0\xaf"),
        ("MQTT-1.5.3-1", "NUL in two bytes", b"\x30\x18\x00\x16devices/pump-07/up/x\xc0\x80"),
        ("MQTT-1.5.3-1", "/ in three bytes", b"\x30\x19\x00\x17devices/pump-07/up/x\xe0\x80\xaf"),
        ("MQTT-1.5.3-1", "/ in four bytes", b"\x30\x1a\x00\x18devices/pump-07/up/x\xf0\x80\x80\xaf"),
        ("MQTT-1.5.3-1", "beyond U+10FFFF", b"\x30\x1a\x00\x18devices/pump-07/up/x\xf4\x90\x80\x80"),
        ("MQTT-1.5.3-1", "five bytes", b"\x30\x1b\x00\x19devices/pump-07/up/x\xf8\x88\x80\x80\x80"),
        ("MQTT-1.5.3-2", "NUL in a topic", b"\x30\x17\x00\x15devices/pump-07/up/x\x00"),
        ("MQTT-1.5.3-2", "NUL at the front of a topic", b"\x30\x17\x00\x15\x00devices/pump-07/up/x"),
        ("MQTT-1.5.3-2", "NUL in a filter", b"\x82\x1a\x00\x01\x00\x15devices/pump-07/up/x\x00\x00"),
        ("1.5.3", "U+0001", b"\x30\x17\x00\x15devices/pump-07/up/x\x01"),
        ("1.5.3", "an escape sequence", b"\x30\x1a\x00\x18devices/pump-07/up/x\x1b[2J"),
        ("1.5.3", "a line feed", b"\x30\x17\x00\x15devices/pump-07/up/x\n"),
        ("1.5.3", "DEL", b"\x30\x17\x00\x15devices/pump-07/up/x\x7f"),
        ("1.5.3", "U+0080", b"\x30\x18\x00\x16devices/pump-07/up/x\xc2\x80"),
        ("1.5.3", "U+009F", b"\x30\x18\x00\x16devices/pump-07/up/x\xc2\x9f"),
        ("1.5.3", "a non-character, U+FDD0", b"\x30\x19\x00\x17devices/pump-07/up/x\xef\xb7\x90"),
        ("1.5.3", "a non-character, U+FFFE", b"\x30\x19\x00\x17devices/pump-07/up/x\xef\xbf\xbe"),
        ("1.5.3", "a non-character, U+FFFF", b"\x30\x19\x00\x17devices/pump-07/up/x\xef\xbf\xbf"),
        ("1.5.3", "a non-character, U+1FFFE", b"\x30\x1a\x00\x18devices/pump-07/up/x\xf0\x9f\xbf\xbe"),
        ("1.5.3", "a non-character, U+10FFFF", b"\x30\x1a\x00\x18devices/pump-07/up/x\xf4\x8f\xbf\xbf"),
        # 2.2.1, control packet types
        ("2.2.1", "type 0", b"\x00\x00"),
        ("2.2.1", "type 15", b"\xf0\x00"),
        ("2.2.1", "CONNACK from a client", b"\x20\x02\x00\x00"),
        ("2.2.1", "SUBACK from a client", b"\x90\x03\x00\x01\x00"),
        ("2.2.1", "UNSUBACK from a client", b"\xb0\x02\x00\x01"),
        ("2.2.1", "PINGRESP from a client", b"\xd0\x00"),
        # 2.2.2, flags
        ("MQTT-2.2.2-2", "flags of CONNECT", b"\x11\x13\x00\x04MQTT\x04\x02\x00\x3c\x00\x07pump-07"),
        ("MQTT-2.2.2-2", "flags of PUBACK", b"\x42\x02\x00\x01"),
        ("MQTT-2.2.2-2", "flags of PUBREC", b"\x52\x02\x00\x01"),
        ("MQTT-2.2.2-2", "PUBREL without its flag [MQTT-3.6.1-1]", b"\x60\x02\x00\x01"),
        ("MQTT-2.2.2-2", "PUBREL with another flag", b"\x63\x02\x00\x01"),
        ("MQTT-2.2.2-2", "flags of PUBCOMP", b"\x78\x02\x00\x01"),
        (
            *("MQTT-2.2.2-2", "SUBSCRIBE without its flag [MQTT-3.8.1-1]"),
            b"\x80\x19\x00\x01\x00\x14devices/pump-07/up/x\x00",
        ),
        ("MQTT-2.2.2-2", "SUBSCRIBE with another flag", b"\x8a\x19\x00\x01\x00\x14devices/pump-07/up/x\x00"),
        (
            *("MQTT-2.2.2-2", "UNSUBSCRIBE without its flag [MQTT-3.10.1-1]"),
            b"\xa0\x18\x00\x01\x00\x14devices/pump-07/up/x",
        ),
        ("MQTT-2.2.2-2", "UNSUBSCRIBE with another flag", b"\xa3\x18\x00\x01\x00\x14devices/pump-07/up/x"),
        ("MQTT-2.2.2-2", "flags of PINGREQ", b"\xc1\x00"),
        ("MQTT-2.2.2-2", "flags of DISCONNECT [MQTT-3.14.1-1]", b"\xe1\x00"),
        # 2.2.3, the remaining length
        ("2.2.3", "a length of five bytes", b"\x30\xff\xff\xff\xff\x01"),
        ("2.2.3", "a length of four bytes that says that it goes on", b"\x30\x80\x80\x80\x80"),
        ("2.2.3", "a length of 0 in two bytes", b"\xc0\x80\x00"),
        ("2.2.3", "a length of 2 in four bytes", b"\x40\x82\x80\x80\x00\x00\x01"),
        ("2.2.3", "a length of 256 MB", b"\x30\xff\xff\xff\x7f"),
        # 2.3.1, packet identifiers
        ("MQTT-2.3.1-1", "PUBLISH of QoS 1 with identifier 0", b"\x32\x19\x00\x14devices/pump-07/up/x\x00\x00x"),
        ("MQTT-2.3.1-1", "PUBLISH of QoS 2 with identifier 0", b"\x34\x19\x00\x14devices/pump-07/up/x\x00\x00x"),
        ("MQTT-2.3.1-1", "SUBSCRIBE with identifier 0", b"\x82\x19\x00\x00\x00\x14devices/pump-07/up/x\x00"),
        ("MQTT-2.3.1-1", "UNSUBSCRIBE with identifier 0", b"\xa2\x18\x00\x00\x00\x14devices/pump-07/up/x"),
        ("MQTT-2.3.1-1", "PUBACK with identifier 0", b"\x40\x02\x00\x00"),
        ("MQTT-2.3.1-1", "PUBREC with identifier 0", b"\x50\x02\x00\x00"),
        ("MQTT-2.3.1-1", "PUBREL with identifier 0", b"\x62\x02\x00\x00"),
        ("MQTT-2.3.1-1", "PUBCOMP with identifier 0", b"\x70\x02\x00\x00"),
        # 3.3, PUBLISH
        ("MQTT-3.3.1-4", "QoS 3", b"\x36\x19\x00\x14devices/pump-07/up/x\x00\x01x"),
        ("MQTT-3.3.1-4", "QoS 3 with DUP and RETAIN", b"\x3f\x19\x00\x14devices/pump-07/up/x\x00\x01x"),
        ("MQTT-3.3.1-2", "DUP at QoS 0", b"\x38\x17\x00\x14devices/pump-07/up/xx"),
        ("3.3.2", "PUBLISH of nothing", b"\x30\x00"),
        ("3.3.2", "PUBLISH that ends in the topic's length [MQTT-3.3.2-1]", b"\x30\x01\x00"),
        ("3.3.2", "PUBLISH that ends in the topic", b"\x30\x0f\x00\x14devices/pump-"),
        ("3.3.2", "a topic as long as can be in a packet that is not", b"\x30\x16\xff\xffdevices/pump-07/up/x"),
        ("3.3.2", "PUBLISH of QoS 1 without an identifier", b"\x32\x16\x00\x14devices/pump-07/up/x"),
        ("3.3.2", "PUBLISH of QoS 2 with half an identifier", b"\x34\x17\x00\x14devices/pump-07/up/x\x01"),
        # 4.7, topic names and filters
        ("MQTT-4.7.1-1", "+ in a topic [MQTT-3.3.2-2]", b"\x30\x10\x00\x0edevices/+/up/x"),
        (
            *("MQTT-4.7.1-1", "# in a topic, and a packet in its payload"),
            b"\x30\x25\x00\x09devices/#\x30\x18\x00\x14devices/pump-07/up/xno",
        ),
        ("MQTT-4.7.1-1", "# after a level in a topic", b"\x30\x17\x00\x15devices/pump-07/up/x#"),
        ("MQTT-4.7.1-2", "# that is not last", b"\x82\x10\x00\x01\x00\x0bdevices/#/x\x00"),
        ("MQTT-4.7.1-2", "# that is not alone", b"\x82\x0f\x00\x01\x00\x0adevices/x#\x00"),
        ("MQTT-4.7.1-2", "# twice", b"\x82\x10\x00\x01\x00\x0bdevices/#/#\x00"),
        ("MQTT-4.7.1-2", "# that is not last, in UNSUBSCRIBE", b"\xa2\x0f\x00\x01\x00\x0bdevices/#/x"),
        ("MQTT-4.7.1-3", "+ after a level", b"\x82\x11\x00\x01\x00\x0cdevices/x+/y\x00"),
        ("MQTT-4.7.1-3", "+ before a level", b"\x82\x11\x00\x01\x00\x0cdevices/+x/y\x00"),
        ("MQTT-4.7.1-3", "+ twice in a level", b"\x82\x0f\x00\x01\x00\x0adevices/++\x00"),
        ("MQTT-4.7.3-1", "an empty topic", b"\x30\x03\x00\x00x"),
        ("MQTT-4.7.3-1", "an empty filter", b"\x82\x05\x00\x01\x00\x00\x00"),
        ("MQTT-4.7.3-1", "an empty filter in UNSUBSCRIBE", b"\xa2\x04\x00\x01\x00\x00"),
        ("4.7.3", "a topic of 40 levels", b"\x30\x66\x00\x64devices/pump-07/up/x" + b"/x" * 40),
        ("4.7.3", "a topic of 2 KB", b"\x30\x96\x10\x08\x14devices/pump-07/up/x" + b"x" * 2048),
        # 3.8 and 3.10, SUBSCRIBE and UNSUBSCRIBE
        ("MQTT-3.8.3-3", "SUBSCRIBE without a filter", b"\x82\x02\x00\x01"),
        ("MQTT-3.8.3-4", "a QoS of 3", b"\x82\x19\x00\x01\x00\x14devices/pump-07/up/x\x03"),
        ("MQTT-3.8.3-4", "reserved bits beside the QoS", b"\x82\x19\x00\x01\x00\x14devices/pump-07/up/x\x81"),
        ("MQTT-3.8.3-4", "MQTT 5's options", b"\x82\x19\x00\x01\x00\x14devices/pump-07/up/x\x05"),
        ("4.8", "a filter without a QoS", b"\x82\x18\x00\x01\x00\x14devices/pump-07/up/x"),
        (
            *("4.8", "a second filter that is cut, after a good one"),
            b"\x82\x1d\x00\x01\x00\x14devices/pump-07/up/x\x00\x00\x14de",
        ),
        (
            *("MQTT-1.5.3-1", "a filter that is not UTF-8 [MQTT-3.8.3-1]"),
            b"\x82\x1a\x00\x01\x00\x15devices/pump-07/up/x\xff\x00",
        ),
        ("4.8", "SUBSCRIBE without an identifier", b"\x82\x00"),
        ("4.8", "SUBSCRIBE with half an identifier", b"\x82\x01\x00"),
        ("MQTT-3.10.3-2", "UNSUBSCRIBE without a filter", b"\xa2\x02\x00\x01"),
        ("4.8", "UNSUBSCRIBE with a QoS", b"\xa2\x19\x00\x01\x00\x14devices/pump-07/up/x\x00"),
        (
            *("MQTT-1.5.3-1", "a filter that is not UTF-8, in UNSUBSCRIBE [MQTT-3.10.3-1]"),
            b"\xa2\x19\x00\x01\x00\x15devices/pump-07/up/x\xff",
        ),
        # Packets without a payload
        ("4.8", "PUBACK without an identifier", b"\x40\x00"),
        ("4.8", "PUBACK with half an identifier", b"\x40\x01\x01"),
        ("4.8", "PUBACK that is too long", b"\x40\x03\x00\x01\x00"),
        ("4.8", "MQTT 5's PUBREC", b"\x50\x04\x00\x01\x00\x00"),
        ("4.8", "PUBREL that is too long", b"\x62\x03\x00\x01\x00"),
        ("4.8", "PUBCOMP that is too short", b"\x70\x01\x01"),
        ("4.8", "PINGREQ with a body", b"\xc0\x01\x00"),
        ("4.8", "DISCONNECT with a body", b"\xe0\x01\x00"),
    )
)

CONNECTS = tuple(
    Malformed(*row)
    for row in (
        ("MQTT-2.2.2-2", "HTTP", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("MQTT-2.2.2-2", "TLS in TLS", b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00"),
        ("MQTT-2.2.2-2", "flags of the header", b"\x11\x13\x00\x04MQTT\x04\x02\x00\x3c\x00\x07pump-07"),
        ("MQTT-3.1.2-1", "another protocol", b"\x10\x13\x00\x04AMQP\x04\x02\x00\x3c\x00\x07pump-07"),
        ("MQTT-3.1.2-1", "the name in lower case", b"\x10\x13\x00\x04mqtt\x04\x02\x00\x3c\x00\x07pump-07"),
        ("MQTT-3.1.2-1", "no name", b"\x10\x0f\x00\x00\x04\x02\x00\x3c\x00\x07pump-07"),
        ("MQTT-3.1.2-1", "a name with more behind it", b"\x10\x14\x00\x05MQTT \x04\x02\x00\x3c\x00\x07pump-07"),
        ("MQTT-3.1.2-3", "the reserved flag", b"\x10\x13\x00\x04MQTT\x04\x03\x00\x3c\x00\x07pump-07"),
        (
            *("MQTT-3.1.2-13", "a will's QoS without a will [MQTT-3.1.2-11]"),
            b"\x10\x13\x00\x04MQTT\x04\x0a\x00\x3c\x00\x07pump-07",
        ),
        ("MQTT-3.1.2-15", "a will's RETAIN without a will", b"\x10\x13\x00\x04MQTT\x04\x22\x00\x3c\x00\x07pump-07"),
        (
            *("MQTT-3.1.2-14", "a will of QoS 3"),
            b"\x10\x2c\x00\x04MQTT\x04\x1e\x00\x3c\x00\x07pump-07\x00\x14devices/pump-07/up/x\x00\x01w",
        ),
        (
            *("MQTT-3.1.2-22", "a password without a user name"),
            b"\x10\x16\x00\x04MQTT\x04\x42\x00\x3c\x00\x07pump-07\x00\x01p",
        ),
        ("4.8", "a will that is not there [MQTT-3.1.2-9]", b"\x10\x13\x00\x04MQTT\x04\x06\x00\x3c\x00\x07pump-07"),
        (
            *("4.8", "a will without a message"),
            b"\x10\x29\x00\x04MQTT\x04\x06\x00\x3c\x00\x07pump-07\x00\x14devices/pump-07/up/x",
        ),
        (
            *("4.8", "a will that was not announced [MQTT-3.1.2-11]"),
            b"\x10\x2c\x00\x04MQTT\x04\x02\x00\x3c\x00\x07pump-07\x00\x14devices/pump-07/up/x\x00\x01w",
        ),
        (
            *("4.8", "a user name that is not there [MQTT-3.1.2-19]"),
            b"\x10\x13\x00\x04MQTT\x04\x82\x00\x3c\x00\x07pump-07",
        ),
        (
            *("4.8", "a user name that was not announced [MQTT-3.1.2-18]"),
            b"\x10\x16\x00\x04MQTT\x04\x02\x00\x3c\x00\x07pump-07\x00\x01u",
        ),
        (
            *("4.8", "a password that is not there [MQTT-3.1.2-21]"),
            b"\x10\x16\x00\x04MQTT\x04\xc2\x00\x3c\x00\x07pump-07\x00\x01u",
        ),
        (
            *("4.8", "a password that was not announced [MQTT-3.1.2-20]"),
            b"\x10\x19\x00\x04MQTT\x04\x82\x00\x3c\x00\x07pump-07\x00\x01u\x00\x01p",
        ),
        ("4.8", "no client id at all [MQTT-3.1.3-3]", b"\x10\x0a\x00\x04MQTT\x04\x02\x00\x3c"),
        ("4.8", "a client id that is cut", b"\x10\x0f\x00\x04MQTT\x04\x02\x00\x3c\x00\x07pum"),
        ("4.8", "a keep alive that is cut", b"\x10\x09\x00\x04MQTT\x04\x02\x00"),
        ("4.8", "a name and no level", b"\x10\x06\x00\x04MQTT"),
        ("4.8", "nothing", b"\x10\x00"),
        ("4.8", "a byte after the end", b"\x10\x14\x00\x04MQTT\x04\x02\x00\x3c\x00\x07pump-07\x00"),
        ("MQTT-1.5.3-2", "NUL in the client id", b"\x10\x14\x00\x04MQTT\x04\x02\x00\x3c\x00\x08pump-07\x00"),
        (
            *("MQTT-1.5.3-1", "a client id that is not UTF-8 [MQTT-3.1.3-4]"),
            b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01\xff",
        ),
        (
            *("MQTT-1.5.3-1", "a will's topic that is not UTF-8 [MQTT-3.1.3-10]"),
            b"\x10\x2d\x00\x04MQTT\x04\x06\x00\x3c\x00\x07pump-07\x00\x15devices/pump-07/up/x\xff\x00\x01w",
        ),
        (
            *("MQTT-1.5.3-1", "a user name that is not UTF-8 [MQTT-3.1.3-11]"),
            b"\x10\x16\x00\x04MQTT\x04\x82\x00\x3c\x00\x07pump-07\x00\x01\xff",
        ),
        (
            *("MQTT-4.7.1-1", "a wildcard in the will's topic"),
            b"\x10\x2c\x00\x04MQTT\x04\x06\x00\x3c\x00\x07pump-07\x00\x14devices/pump-07/up/#\x00\x01w",
        ),
        (
            *("MQTT-4.7.3-1", "an empty topic of the will"),
            b"\x10\x18\x00\x04MQTT\x04\x06\x00\x3c\x00\x07pump-07\x00\x00\x00\x01w",
        ),
    )
)

# Nothing is wrong with these, but that they come first, or a second time.
NOT_FIRST = (
    Malformed("MQTT-3.1.0-1", "PINGREQ before CONNECT", b"\xc0\x00"),
    Malformed("MQTT-3.1.0-1", "DISCONNECT before CONNECT", b"\xe0\x00"),
    Malformed("MQTT-3.1.0-1", "PUBLISH before CONNECT", b"\x30\x17\x00\x14devices/pump-07/up/xx"),
    Malformed("MQTT-3.1.0-1", "SUBSCRIBE before CONNECT", b"\x82\x19\x00\x01\x00\x14devices/pump-07/up/x\x00"),
)
NOT_TWICE = (
    Malformed("MQTT-3.1.0-2", "a second CONNECT", b"\x10\x13\x00\x04MQTT\x04\x02\x00\x3c\x00\x07pump-07"),
    Malformed("MQTT-3.1.0-2", "a second CONNECT, of another version", b"\x10\x07\x00\x04MQTT\x05"),
)
