"""The Unix socket that firmware talks to: lines in, lines out, and no application can hurt the agent or another.

One thread serves all of them. A line that is too long ends its connection, and so does an application that does not
read; one that floods is slowed by the agent's own queue, which is bounded.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import selectors
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from device_agent.core.events import AppJoined, AppLeft, AppSaid, Event
from device_agent.requests import MAX_LINE_BYTES, parse_request
from fleet.errors import FleetError
from fleet.layout import AgentHome
from fleet.logs import event
from fleet.messages import InvalidMessage

MAX_APPLICATIONS: Final = 16
MAX_UNREAD_BYTES: Final = 512 * 1024
_CHUNK_BYTES: Final = 65_536
_MAX_UNIX_PATH_BYTES: Final = 107  # unix(7): sun_path, with its NUL

_log = logging.getLogger("device_agent.application")


def socket_path(home: AgentHome) -> Path:
    """Where applications find the agent."""
    return home.path / "run" / "app.sock"


@contextlib.contextmanager
def short_path(path: Path) -> Iterator[str]:
    """A name of `path` that fits into a socket address, while this lasts: a deep home has too long a one."""
    if len(os.fsencode(path)) <= _MAX_UNIX_PATH_BYTES:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


@dataclass(slots=True)
class _Client:
    """One application. `outgoing` is guarded by the server's lock."""

    number: int
    connection: socket.socket
    incoming: bytearray = field(default_factory=bytearray)
    outgoing: bytearray = field(default_factory=bytearray)
    is_lost: bool = False


class ApplicationServer:
    """Serves HOME/run/app.sock from `start` to `close`. `post` takes events, and may block; `tell` never does."""

    def __init__(self, home: AgentHome, post: Callable[[Event], None]) -> None:
        self._path = socket_path(home)
        self._post = post
        self._numbers = itertools.count(1)
        self._clients: dict[int, _Client] = {}
        self._lock = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX)
        self._wake_in, self._wake_out = socket.socketpair()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="applications", daemon=True)

    def start(self) -> None:
        """Listen. The home's lock is ours, so a socket that is there was left by an agent that was killed.

        Raises: FleetError.
        """
        try:
            self._path.unlink(missing_ok=True)
            with short_path(self._path) as name:
                self._listener.bind(name)
            self._path.chmod(0o600)
            self._listener.listen(MAX_APPLICATIONS)
        except OSError as error:
            raise FleetError(f"{self._path} cannot be made: {error.strerror or error}") from error
        for ready in (self._listener, self._wake_in, self._wake_out):
            ready.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._wake_in, selectors.EVENT_READ, self._drain_wakes)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether applications are served: a dead thread must not look alive."""
        return self._thread.is_alive()

    def tell(self, number: int, line: Mapping[str, object]) -> None:
        """Send one line, soon. An application that is gone, or does not read, gets nothing."""
        data = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            client = self._clients.get(number)
            if client is None or client.is_lost:
                return
            client.outgoing += data
            client.is_lost = len(client.outgoing) > MAX_UNREAD_BYTES
        self._wake()

    def close(self) -> None:
        """Stop serving, remove the socket, close every connection."""
        self._is_closing = True
        self._wake()
        if self._thread.ident is not None:
            self._thread.join(5)
        for client in list(self._clients.values()):
            client.connection.close()
        for each in (self._listener, self._wake_in, self._wake_out):
            each.close()
        self._selector.close()
        self._path.unlink(missing_ok=True)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake_out.send(b"\0")

    def _run(self) -> None:
        while not self._is_closing:
            for key, mask in self._selector.select():
                if isinstance(key.data, _Client):
                    self._serve(key.data, mask)
                else:
                    key.data()
            self._refresh()

    def _drain_wakes(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake_in.recv(4096)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # it went before we came, or there is no file descriptor left for it
        connection.setblocking(False)
        if len(self._clients) >= MAX_APPLICATIONS:
            with contextlib.suppress(OSError):
                connection.send(_error_line(f"{MAX_APPLICATIONS} applications are connected already"))
            connection.close()
            return
        client = _Client(next(self._numbers), connection)
        with self._lock:
            self._clients[client.number] = client
        self._selector.register(connection, selectors.EVENT_READ, client)
        self._post(AppJoined(client.number))

    def _serve(self, client: _Client, mask: int) -> None:
        try:
            if mask & selectors.EVENT_WRITE:
                self._write(client)
            if mask & selectors.EVENT_READ:
                self._read(client)
        except BlockingIOError:
            pass
        except OSError:
            self._drop(client, "it went away")

    def _write(self, client: _Client) -> None:
        with self._lock:
            sent = client.connection.send(client.outgoing)
            del client.outgoing[:sent]

    def _read(self, client: _Client) -> None:
        data = client.connection.recv(_CHUNK_BYTES)
        if not data:
            self._drop(client, "")
            return
        client.incoming += data
        *lines, rest = bytes(client.incoming).split(b"\n")
        client.incoming = bytearray(rest)
        for line in lines:
            if len(line) >= MAX_LINE_BYTES:
                self._drop(client, "a line is too long")
                return
            self._hear(client, line)
        if len(rest) >= MAX_LINE_BYTES:
            self._drop(client, "a line is too long")

    def _hear(self, client: _Client, line: bytes) -> None:
        if not line.strip():
            return
        try:
            request = parse_request(line)
        except InvalidMessage as error:
            self.tell(client.number, {"type": "error", "message": error.message})
            return
        self._post(AppSaid(client.number, request))

    def _refresh(self) -> None:
        """Ask for writability where there is something to write, and drop who does not read."""
        for client in list(self._clients.values()):
            if client.is_lost:
                self._drop(client, "it does not read what it is sent")
                continue
            mask = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.outgoing else 0)
            if self._selector.get_key(client.connection).events != mask:
                self._selector.modify(client.connection, mask, client)

    def _drop(self, client: _Client, reason: str) -> None:
        if reason:
            _log.warning(event("application.dropped", number=client.number, reason=reason))
        with self._lock:
            if self._clients.pop(client.number, None) is None:
                return
        self._selector.unregister(client.connection)
        client.connection.close()
        self._post(AppLeft(client.number))


def _error_line(message: str) -> bytes:
    return json.dumps({"type": "error", "message": message}).encode() + b"\n"
