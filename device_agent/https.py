"""HTTPS requests, each bounded in time and size. No redirect is followed, no proxy and no environment is asked."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from device_agent.failures import Cause, Failure
from device_agent.tls import BoundedContext, FleetContext, FleetSocket, failure_of, lean_name
from fleet.clock import Validity, parse_http_date
from fleet.errors import InvalidInput

OPERATION_SECONDS: Final = 10.0
REQUEST_SECONDS: Final = 30.0
MAX_ANSWER_BYTES: Final = 262_144  # as fleet.est, which `run` may not load


class RequestFailed(Exception):
    """No answer; `failure` says why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.cause.value)
        self.failure = failure


@dataclass(frozen=True, slots=True)
class Request:
    """What to send to a server at `url` (scheme, host and port alone count)."""

    url: str
    path: str
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. Header names are lower-case."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


def peer_of(url: str) -> str:
    """`HOST:PORT` of an https address, for messages."""
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port or 443}"


def send(request: Request, context: BoundedContext) -> Answer:
    """The answer to `request`, over a new connection. Raises: RequestFailed."""
    answer, _ = _send(request, context)
    if isinstance(context, FleetContext) and "date" in answer.headers:
        with contextlib.suppress(InvalidInput):
            context.clock.heard(parse_http_date(answer.headers["date"]))
    return answer


def ask_dateless(request: Request, context: FleetContext) -> tuple[Answer, Validity]:
    """The answer of whom all was verified of but dates, and when its chain is valid. Raises: RequestFailed."""
    answer, validity = _send(request, context)
    if validity is None:
        raise RequestFailed(Failure(Cause.BAD_ANSWER, peer_of(request.url), "no dates in the certificates"))
    return answer, validity


def _send(request: Request, context: BoundedContext) -> tuple[Answer, Validity | None]:
    with conversation(request.url, context) as talk:
        is_dateless = isinstance(context, FleetContext) and context.is_dateless
        validity = _validity(talk.connection.sock) if is_dateless else None
        return talk.ask(request), validity


@dataclass(frozen=True, slots=True)
class Conversation:
    """One connection to the server `peer`, for one request after the other."""

    connection: http.client.HTTPSConnection
    peer: str

    def ask(self, request: Request) -> Answer:
        """The answer to `request`, whose address is not looked at. Raises: RequestFailed; then the connection is over.

        A server that answers before it has read the body, and closes, may not be heard.
        """
        with _explained(self.peer):
            return _converse(self.connection, request, self.peer)


@contextlib.contextmanager
def conversation(url: str, context: BoundedContext) -> Iterator[Conversation]:
    """A new connection to the server at `url`, closed at the end. Raises: RequestFailed."""
    parts, peer = urlsplit(url), peer_of(url)
    connection = _Connection(parts.hostname or "", parts.port or 443, context)
    try:
        with _explained(peer):
            _connect(connection, context)
        yield Conversation(connection, peer)
    finally:
        connection.close()


@contextlib.contextmanager
def _explained(peer: str) -> Iterator[None]:
    """Raises: RequestFailed for what goes wrong within."""
    try:
        yield
    except (http.client.RemoteDisconnected, http.client.IncompleteRead) as error:
        raise RequestFailed(Failure(Cause.CLOSED, peer, "the answer is missing, or the end of it")) from error
    except http.client.HTTPException as error:
        raise RequestFailed(Failure(Cause.BAD_ANSWER, peer, f"{type(error).__name__}: {error}"[:200])) from error
    except (OSError, ValueError) as error:
        raise RequestFailed(failure_of(error, peer)) from error


def _connect(connection: http.client.HTTPSConnection, context: BoundedContext) -> None:
    if isinstance(context, FleetContext):
        context.in_time(connection.connect)
    else:
        connection.connect()


def _validity(connection: socket.socket) -> Validity | None:
    assert isinstance(connection, FleetSocket)
    try:
        return connection.validity()
    except InvalidInput:
        return None


def _converse(connection: http.client.HTTPSConnection, request: Request, peer: str) -> Answer:
    with _deadline(connection.sock):
        connection.request(request.method, request.path, body=request.body, headers=dict(request.headers))
        with connection.getresponse() as response:
            if response.length is None and not response.chunked:
                raise RequestFailed(Failure(Cause.BAD_ANSWER, peer, "an answer of unknown length"))
            body = response.read(MAX_ANSWER_BYTES + 1)
            if len(body) > MAX_ANSWER_BYTES:
                raise RequestFailed(Failure(Cause.BAD_ANSWER, peer, f"more than {MAX_ANSWER_BYTES} bytes"))
            if response.length:  # read(n) is content with less than was promised
                raise RequestFailed(Failure(Cause.CLOSED, peer, f"{response.length} bytes of the answer are missing"))
            return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, body)


class _Connection(http.client.HTTPSConnection):
    """Connects by a lean name."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext) -> None:
        super().__init__(host, port, timeout=OPERATION_SECONDS, context=context)
        self._tls = context

    def connect(self) -> None:
        """Complete the handshake. Raises: OSError."""
        self.sock = socket.create_connection((lean_name(self.host), self.port), OPERATION_SECONDS)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = self._tls.wrap_socket(self.sock, server_hostname=self.host)


@contextlib.contextmanager
def _deadline(connection: socket.socket) -> Iterator[None]:
    """Cut the connection after REQUEST_SECONDS: a peer that drips never trips the time-out per operation."""

    def cut() -> None:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(REQUEST_SECONDS, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
