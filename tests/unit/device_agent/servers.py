"""Servers that tests put in the agent's way: real sockets, real TLS, on a thread."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.deadlines import within
from tests.unit.device_agent.authority import Issued

Handler = Callable[[ssl.SSLSocket], None]


def server_context(issued: Issued, folder: Path, clients_pem: str | None = None) -> ssl.SSLContext:
    """TLS as `issued`; with `clients_pem`, only for clients whose chain ends there."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*issued.write(folder))
    if clients_pem is not None:
        context.load_verify_locations(cadata=clients_pem)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class Listener:
    """Accepts on a free port and hands each TCP connection to `serve`, one after the other. `accepted` counts them."""

    def __init__(self, serve: Callable[[socket.socket], None]) -> None:
        self._serve = serve
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.settimeout(within(20))
        self.port: int = self._socket.getsockname()[1]
        self.accepted = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.accepted += 1
            with connection, contextlib.suppress(OSError):
                connection.settimeout(within(20))
                self._serve(connection)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(within(5))


@contextlib.contextmanager
def listening(serve: Callable[[socket.socket], None]) -> Iterator[Listener]:
    listener = Listener(serve)
    try:
        yield listener
    finally:
        listener.close()


@contextlib.contextmanager
def tls_server(context: ssl.SSLContext, handle: Handler) -> Iterator[Listener]:
    """A TLS server; a client that ends the handshake never reaches `handle`."""

    def serve(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as secure:
            handle(secure)

    with listening(serve) as listener:
        yield listener


def http_answer(status: str, body: bytes, headers: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


def read_request(connection: ssl.SSLSocket) -> bytes:
    """One HTTP request, head and body."""
    data = b""
    while b"\r\n\r\n" not in data and (more := connection.recv(65_536)):
        data += more
    if b"\r\n\r\n" not in data:
        return data
    head, _, body = data.partition(b"\r\n\r\n")
    length = next((int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if b"content-length" in line), 0)
    while len(body) < length and (more := connection.recv(65_536)):
        body += more
    return head + b"\r\n\r\n" + body
