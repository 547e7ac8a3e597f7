"""Thousands of live MQTT sessions over mutual TLS, held for the price of a descriptor each.

A session that only waits needs no TLS of its own: once CONNACK was read, the state of the connection is freed and the
socket alone is kept. The broker sees no difference. Whatever ends the session shows as the end of the socket.
"""

from __future__ import annotations

import os
import resource
import select
import socket
import ssl
import time
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from benchmarks import _fleet
from fleet.identity import DeviceId
from fleet.layout import AdminHome, IdentityFiles

_ACCEPTED: Final = b"\x20\x02\x00\x00"
_PARALLEL: Final = 4
_PATIENCE_SECONDS: Final = 60.0


def allow_descriptors() -> None:
    """As many open files as this process may have."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@dataclass(frozen=True, slots=True)
class Door:
    """Where devices connect, and whom they trust."""

    home: AdminHome
    port: int

    def connect(self, id: DeviceId, files: IdentityFiles) -> socket.socket:
        """The socket of a live session without keep-alive. Raises: RuntimeError unless it is accepted."""
        context = _fleet.client_context(self.home, files)
        plain = socket.create_connection(("127.0.0.1", self.port), _PATIENCE_SECONDS)
        with context.wrap_socket(plain, server_hostname="localhost") as tls:
            body = b"\x00\x04MQTT\x04\x02\x00\x00" + len(id).to_bytes(2, "big") + id.encode()
            tls.sendall(b"\x10" + bytes((len(body),)) + body)
            if (answer := _read(tls, len(_ACCEPTED))) != _ACCEPTED:
                raise RuntimeError(f"the broker answered {answer!r} to {id}")
            return socket.socket(fileno=os.dup(tls.fileno()))


def _read(tls: ssl.SSLSocket, count: int) -> bytes:
    data = b""
    while len(data) < count and (more := tls.recv(count - len(data))):
        data += more
    return data


class Sessions:
    """Live sessions of devices; a context that closes what is left of them."""

    def __init__(self, door: Door, devices: Mapping[DeviceId, IdentityFiles]) -> None:
        self._stack = ExitStack()
        self._poll = select.epoll()
        self._stack.callback(self._poll.close)
        self._live: dict[int, tuple[DeviceId, socket.socket]] = {}
        with ThreadPoolExecutor(_PARALLEL) as pool:
            for device, found in zip(devices, pool.map(door.connect, devices.keys(), devices.values()), strict=True):
                found.setblocking(False)
                self._stack.enter_context(found)
                self._live[found.fileno()] = (device, found)
                self._poll.register(found, select.EPOLLIN | select.EPOLLRDHUP)

    def __len__(self) -> int:
        return len(self._live)

    def wait_for_ends(self, of: Collection[DeviceId]) -> dict[DeviceId, float]:
        """When each of these sessions ended (`time.perf_counter`). Raises: RuntimeError if one does not, or another."""
        ends: dict[DeviceId, float] = {}
        deadline = time.perf_counter() + _PATIENCE_SECONDS
        while len(ends) < len(of):
            if (left := deadline - time.perf_counter()) <= 0:
                raise RuntimeError(f"{len(of) - len(ends)} of {len(of)} sessions go on")
            for descriptor, _ in self._poll.poll(left):
                if (device := self._ended(descriptor)) is not None:
                    ends[device] = time.perf_counter()
        if others := ends.keys() - set(of):
            raise RuntimeError(f"sessions that nobody had ended are over: {sorted(others)[:5]}")
        return ends

    def _ended(self, descriptor: int) -> DeviceId | None:
        """Whose session is over; None if what came was not its end."""
        device, live = self._live[descriptor]
        try:
            while live.recv(4096):  # the close of TLS, which nobody can read any more
                pass
        except BlockingIOError:
            return None
        except OSError:
            pass
        self._poll.unregister(live)
        del self._live[descriptor]
        live.close()
        return device

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
