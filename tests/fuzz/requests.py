"""Certificate requests, spoilt: from those that clients make (tests/vectors/csr), and bodies that hold them."""

from __future__ import annotations

import base64
from typing import Final

from hypothesis import strategies as st

from fleet import est
from tests.vectors.record_csr import HERE

REQUESTS: Final = [est.decode_body(path.read_bytes()) for path in sorted(HERE.iterdir())]
_LENGTHS = (b"\x80", b"\x84\xff\xff\xff\xff", b"\x81\x00", b"\x00", b"\x7f")


@st.composite
def spoilt(draw: st.DrawFn) -> bytes:
    """A request with some bytes changed, dropped, doubled, or from another request."""
    der = bytearray(draw(st.sampled_from(REQUESTS)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(der) - 1))
        end = at + draw(st.integers(1, 40))
        match draw(st.sampled_from(("change", "drop", "insert", "cut", "length", "double", "splice"))):
            case "change":
                der[at] = draw(st.integers(0, 255))
            case "drop" if len(der) > end - at:
                del der[at:end]
            case "insert":
                der[at:at] = draw(st.binary(min_size=1, max_size=8))
            case "cut" if at:
                del der[at:]
            case "length":
                der[at : at + 1] = draw(st.sampled_from(_LENGTHS))
            case "double":
                der[at:at] = der[at:end]
            case "splice":
                der[at:end] = draw(st.sampled_from(REQUESTS))[at:end]
    return bytes(der)


@st.composite
def written(draw: st.DrawFn, der: bytes) -> bytes:
    """`der` as some client may write it."""
    text = base64.b64encode(der)
    width = draw(st.sampled_from((0, 1, 4, 60, 64, 76)))
    end = draw(st.sampled_from((b"\n", b"\r\n", b" ", b"\t\r\n", b"\n\n")))
    if width:
        text = b"".join(text[at : at + width] + end for at in range(0, len(text), width))
    label = draw(st.sampled_from((b"", b"CERTIFICATE REQUEST", b"NEW CERTIFICATE REQUEST")))
    if not label:
        return draw(st.sampled_from((b"", end))) + text
    around = draw(st.sampled_from((b"", b"Certificate Request:\n    Data:\n", b"\xef\xbb\xbf")))
    return around + b"-----BEGIN " + label + b"-----" + end + text + b"-----END " + label + b"-----" + end
