"""The Unix socket that firmware talks to: lines in, lines out, and no application can hurt the agent or another.

One thread serves all of them. A line that is too long ends its connection, and so does an application that does not
read; one that floods is slowed by the agent's own queue, which is bounded.
"""

from __future__ import annotations

import contextlib
import errno
import functools
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


def spare_path(home: AgentHome) -> Path:
    """Where they find one that could not make a file in its home. In memory, and a name that follows from the home's.

    Anybody may make a file there, so whoever connects looks first whether it `is_of` the home's owner.
    """
    return Path("/dev/shm") / f"device-agent{str(home.path).replace('/', '-')}.sock"  # noqa: S108 - see above


def is_of(home: AgentHome, path: Path) -> bool:
    """Whether what is at `path` belongs to the owner of the home: nobody else can have put it there."""
    try:
        return path.lstat().st_uid == home.path.stat().st_uid
    except OSError:
        return False


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
    """Serves HOME/run/app.sock from `start` to `close`. `post` takes events, and may block; `tell` never does.

    While the home is read-only it serves `spare_path` instead, and both from then on.
    """

    def __init__(self, home: AgentHome, post: Callable[[Event], None]) -> None:
        self._home = home
        self._path, self._spare = socket_path(home), spare_path(home)
        self._post = post
        self._numbers = itertools.count(1)
        self._clients: dict[int, _Client] = {}
        self._lock = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._listeners: dict[Path, socket.socket] = {}
        self._must_move = False
        self._wake_in, self._wake_out = socket.socketpair()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="applications", daemon=True)

    def start(self) -> None:
        """Listen. The home's lock is ours, so a socket that is there was left by an agent that was killed.

        Raises: FleetError.
        """
        try:
            self._listen(self._path)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise FleetError(f"{self._path} cannot be made: {error.strerror or error}") from error
            self._listen_elsewhere()
        for ready in (self._wake_in, self._wake_out):
            ready.setblocking(False)
        self._selector.register(self._wake_in, selectors.EVENT_READ, self._drain_wakes)
        self._thread.start()

    def _listen(self, path: Path) -> None:
        """Raises: OSError."""
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        try:
            os.fchmod(listener.fileno(), 0o600)  # what is made of it is never open to others
            with short_path(path) as name:
                listener.bind(name)
            listener.listen(MAX_APPLICATIONS)
        except OSError:
            listener.close()
            raise
        listener.setblocking(False)
        self._listeners[path] = listener
        self._selector.register(listener, selectors.EVENT_READ, functools.partial(self._accept, listener))

    def _listen_elsewhere(self) -> None:
        """Without any socket the agent is still of use: it says what is the matter."""
        try:
            self._listen(self._spare)
            _log.warning(event("application.elsewhere", path=self._spare))
        except OSError as error:
            _log.error(event("application.not_served", path=self._spare, reason=error.strerror or error))

    def listen_at_home(self, *, is_writable: bool) -> None:
        """Once it can be: soon, where it could not be at the start."""
        if is_writable and not self._must_move and self._path not in self._listeners:
            self._must_move = True
            self._wake()

    def _move(self) -> None:
        with contextlib.suppress(OSError):
            self._listen(self._path)
        self._must_move = False

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
        for each in (*self._listeners.values(), self._wake_in, self._wake_out):
            each.close()
        self._selector.close()
        for path in self._listeners:
            with contextlib.suppress(OSError):  # of a card that takes no writing any more
                path.unlink(missing_ok=True)

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
            if self._must_move:
                self._move()
            self._refresh()

    def _drain_wakes(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake_in.recv(4096)

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
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
