"""What `explain` reads from the messages of a handshake: real ones, recorded here."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from device_agent.handshake import ALERT, HANDSHAKE, Kind, Trace
from tests.unit.device_agent.authority import new_authority
from tests.unit.device_agent.servers import server_context

OURS = new_authority()
SERVER, CLIENT = OURS.server("broker"), OURS.client("pump-07")


def record(folder: Path, version: ssl.TLSVersion) -> Trace:
    """A mutual handshake at `version`, as the client hears it."""
    trace = Trace()

    def heard(_connection: Any, direction: str, _version: Any, content: int, _kind: Any, data: bytes) -> None:
        trace.record(direction == "write", int(content), bytes(data))

    serving = server_context(SERVER, folder / "server", OURS.roots_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=OURS.roots_pem)
    context.load_cert_chain(*CLIENT.write(folder / "client"))
    context.maximum_version = version
    context._msg_callback = heard  # type: ignore[attr-defined]
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with serving.wrap_socket(theirs, server_side=True) as secure:
            secure.recv(1)

    thread = threading.Thread(target=serve)
    thread.start()
    with context.wrap_socket(ours, server_hostname="127.0.0.1") as secure:
        secure.send(b"x")
        thread.join()
    return trace


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_both_sides_certificates_and_proofs_are_read(version: ssl.TLSVersion, tmp_path: Path) -> None:
    """`explain` would show somebody else's conversation."""
    trace = record(tmp_path, version)
    assert (version is ssl.TLSVersion.TLSv1_3) == trace.is_tls13
    assert [c.public_bytes(Encoding.DER) for c in (SERVER.certificate, *SERVER.issuers)] == trace.certificates(
        ours=False
    )
    assert [c.public_bytes(Encoding.DER) for c in (CLIENT.certificate, *CLIENT.issuers)] == trace.certificates(
        ours=True
    )
    assert "ecdsa_secp256r1_sha256" == trace.signature(ours=False) == trace.signature(ours=True)
    assert trace.key_group in ("x25519", "X25519MLKEM768", "secp256r1")
    assert trace.find(Kind.CERTIFICATE_REQUEST, ours=False) is not None


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([ALERT, HANDSHAKE, 23]), st.binary(max_size=80))))
def test_random_messages_are_left_out(messages: list[tuple[bool, int, bytes]]) -> None:
    """A strange server would end `explain`, the very command to find out about it, with a traceback."""
    trace = Trace()
    for message in messages:
        trace.record(*message)
    assert trace.certificates(ours=False) is not None
    assert trace.signature(ours=False) in (None, trace.signature(ours=False))
    assert trace.key_group in (None, trace.key_group)


_HELLO = st.tuples(st.sampled_from(list(Kind)), st.binary(max_size=120)).map(lambda m: bytes([m[0], 0, 0, 0]) + m[1])


@given(st.lists(st.tuples(st.booleans(), _HELLO), max_size=6))
def test_messages_cut_anywhere_are_left_out(messages: list[tuple[bool, bytes]]) -> None:
    """The same, for messages that begin as they should."""
    trace = Trace()
    for is_ours, data in messages:
        trace.record(is_ours, HANDSHAKE, data)
    for ours in (True, False):
        trace.certificates(ours=ours)
        trace.signature(ours=ours)
    assert trace.is_tls13 in (True, False)
