"""Clients that should not get far: what each was told by the broker."""

from __future__ import annotations

import queue
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

_SECONDS = 5.0
_ACCEPTED = bytes.fromhex("20020000")  # CONNACK, return code 0


def tls_context(trust: Path, identity: Path | None) -> ssl.SSLContext:
    """A client that trusts `trust` and shows the identity in the folder `identity`, if any."""
    context = ssl.create_default_context(cafile=str(trust))
    if identity is not None:
        context.load_cert_chain(identity / "cert.pem", identity / "key.pem")
    return context


def knock(host: str, port: int, context: ssl.SSLContext, client_id: str) -> str:
    """How a client that sends CONNECT was refused; empty if it was let in.

    With TLS 1.3 the server's refusal comes after the client's side of the handshake is done: read to see it.
    """
    try:
        with (
            socket.create_connection((host, port), _SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=host) as secure,
        ):
            secure.sendall(_connect(client_id))
            answer = secure.recv(4)
    except ssl.SSLError as error:
        return str(error.reason or error).lower().replace("_", " ")
    except OSError as error:
        return str(error.strerror or error).lower()
    if answer == _ACCEPTED:
        return ""
    return f"CONNACK with return code {answer[3]}" if len(answer) == 4 else "closed without an answer"


def _connect(client_id: str) -> bytes:
    """CONNECT of MQTT 3.1.1 with clean session and a minute of keep-alive (3.1)."""
    body = b"\x00\x04MQTT\x04\x02\x00\x3c" + len(client_id).to_bytes(2, "big") + client_id.encode()
    return b"\x10" + bytes([len(body)]) + body


@dataclass(frozen=True, slots=True)
class Attempts:
    """What one certified device got when it reached for another's topics."""

    granted_own: bool
    granted_foreign: bool
    is_cut_on_foreign_publish: bool


def trespass(host: str, port: int, context: ssl.SSLContext, own_id: str, foreign_id: str) -> Attempts:
    """Connect as `own_id`, subscribe to one's own commands and to another's, publish as the other."""
    events: queue.Queue[tuple[str, object]] = queue.Queue()
    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=own_id, clean_session=True, reconnect_on_failure=False)
    client.on_connect = lambda _c, _u, _f, code, _p: events.put(("connected", code))
    client.on_subscribe = lambda _c, _u, _m, codes, _p: events.put(("subscribed", codes))
    client.on_publish = lambda *_: events.put(("published", None))
    client.on_disconnect = lambda *_: events.put(("closed", None))
    client.tls_set_context(context)
    client.connect(host, port)
    client.loop_start()
    try:
        _next(events, "connected")
        client.subscribe([(f"devices/{own_id}/down/#", 1), (f"devices/{foreign_id}/down/#", 1)])
        own, foreign = (not code.is_failure for code in _next(events, "subscribed"))  # type: ignore[attr-defined]
        client.publish(f"devices/{foreign_id}/up/telemetry/level", b"a lie", qos=1)
        kind, _ = events.get(timeout=_SECONDS)
        return Attempts(own, foreign, kind == "closed")
    finally:
        client.disconnect()
        client.loop_stop()


def _next(events: queue.Queue[tuple[str, object]], wanted: str) -> object:
    kind, value = events.get(timeout=_SECONDS)
    if kind != wanted:
        raise ConnectionError(f"{kind} instead of {wanted}")
    return value
