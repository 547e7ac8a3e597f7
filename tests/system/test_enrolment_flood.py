"""A stranger with a laptop against the service as it is shipped."""

from __future__ import annotations

import asyncio
import ctypes
import ctypes.util
import resource
import shlex
import socket
import ssl
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import uvloop

from fleet import est
from fleet.layout import AdminHome
from tests.deadlines import within
from tests.fleets import new_home
from tests.processes import Program, command_line
from tests.system.agents import LiveFleet, join, live_fleet
from tests.system.brokers import wait_ready

CONNECTIONS = 1000
HEALTH = f"GET {est.HEALTH} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Stranger:
    """Holds connections that shook hands and say nothing."""

    def __init__(self, home: AdminHome, port: int) -> None:
        self._port = port
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._tls.load_verify_locations(home.root.certificate)
        self._held: list[Streams] = []

    async def open(self, source: str = "127.0.0.1") -> Streams:
        streams = await asyncio.open_connection(
            "127.0.0.1", self._port, ssl=self._tls, server_hostname="localhost", local_addr=(source, 0)
        )
        self._held.append(streams)
        return streams

    async def asks_from(self, source: str) -> bytes:
        """The first line of the answer to a health check."""
        reader, writer = await self.open(source)
        writer.write(HEALTH)
        return await reader.readline()

    def close(self) -> None:
        for _, writer in self._held:
            writer.transport.abort()


@pytest.fixture
def _descriptors() -> None:
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if now != resource.RLIM_INFINITY and now < 4096:
        resource.setrlimit(resource.RLIMIT_NOFILE, (4096 if most == resource.RLIM_INFINITY else min(most, 4096), most))


@pytest.mark.usefixtures("_descriptors")
def test_a_thousand_silent_connections_keep_nobody_out(tmp_path: Path) -> None:
    """One stranger with a laptop stops a site's enrolments for half a minute."""

    async def steps(fleet: LiveFleet) -> None:
        code, home = fleet.invite("pump-07"), fleet.new_agent_home()
        stranger = Stranger(fleet.home, wait_ready(fleet.service))
        try:
            for _ in range(CONNECTIONS // 50):
                await asyncio.gather(*(stranger.open() for _ in range(50)))
            began = time.monotonic()
            assert b"HTTP/1.1 200 OK\r\n" == await stranger.asks_from("127.0.0.2")
            (await asyncio.to_thread(join, home, code, "pump-07")).check()
            assert time.monotonic() - began < within(4)
        finally:
            stranger.close()

    with live_fleet(tmp_path, with_broker=False) as fleet:
        uvloop.run(steps(fleet))
        assert "Traceback" not in fleet.service.stderr


def test_strangers_that_use_up_the_descriptors_keep_nobody_out(tmp_path: Path) -> None:
    """Where a process may open few files, the limit of connections is never reached, and nobody is let in."""
    home = new_home(tmp_path / "fleet")
    serve = shlex.join([*command_line("enroll", "serve"), "--home", str(home.path), "--listen", "127.0.0.1:0"])

    async def steps(stranger: Stranger) -> None:
        try:
            for _ in range(4):
                await asyncio.gather(*(stranger.open() for _ in range(50)), return_exceptions=True)
            async with asyncio.timeout(within(8)):
                assert b"HTTP/1.1 200 OK\r\n" == await stranger.asks_from("127.0.0.2")
        finally:
            stranger.close()

    with Program("sh", "-c", f"ulimit -n 100 && exec {serve}") as service:
        uvloop.run(steps(Stranger(home, wait_ready(service))))
    assert "connection.not_accepted" in service.stderr
    assert "Traceback" not in service.stderr


def _update_keys(port: int, seconds: float) -> int:
    """Shake hands and then send nothing but key updates, until the peer ends it; how many were sent.

    By OpenSSL itself: Python's ssl cannot.
    """
    name = ctypes.util.find_library("ssl")
    assert name
    tls, pointer = ctypes.CDLL(name), ctypes.c_void_p
    tls.TLS_client_method.restype = tls.SSL_CTX_new.restype = tls.SSL_new.restype = pointer
    tls.SSL_CTX_new.argtypes = tls.SSL_new.argtypes = tls.SSL_connect.argtypes = tls.SSL_do_handshake.argtypes = [
        pointer
    ]
    tls.SSL_set_fd.argtypes = tls.SSL_key_update.argtypes = [pointer, ctypes.c_int]
    tls.SSL_free.argtypes = tls.SSL_CTX_free.argtypes = [pointer]
    tls.SSL_free.restype = tls.SSL_CTX_free.restype = None
    context = tls.SSL_CTX_new(tls.TLS_client_method())
    session = tls.SSL_new(context)
    count, until = 0, time.monotonic() + seconds
    try:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            tls.SSL_set_fd(session, connection.fileno())
            assert 1 == tls.SSL_connect(session)
            while (
                time.monotonic() < until and 1 == tls.SSL_key_update(session, 1) and 1 == tls.SSL_do_handshake(session)
            ):
                count += 1
    finally:
        tls.SSL_free(session)
        tls.SSL_CTX_free(context)
    return count


def _health_seconds(tls: ssl.SSLContext, port: int) -> float:
    began = time.monotonic()
    with (
        socket.create_connection(("127.0.0.1", port), timeout=within(20)) as raw,
        tls.wrap_socket(raw, server_hostname="localhost") as connection,
    ):
        connection.sendall(HEALTH)
        assert connection.recv(65_536).startswith(b"HTTP/1.1 200 OK")
    return time.monotonic() - began


def test_records_that_hold_nothing_stop_nobody(tmp_path: Path) -> None:
    """One connection of a stranger, who needs no certificate, stops every enrolment for as long as it likes."""
    home = new_home(tmp_path / "fleet")
    with Program("enroll", "serve", "--home", home.path, "--listen", "127.0.0.1:0") as service:
        port, sent = wait_ready(service), list[int]()
        tls = ssl.create_default_context(cafile=str(home.root.certificate))
        flood = threading.Thread(target=lambda: sent.append(_update_keys(port, 8)))
        flood.start()
        slowest = 0.0
        while flood.is_alive():
            slowest = max(slowest, _health_seconds(tls, port))
        assert within(2) > max(slowest, _health_seconds(tls, port))
        assert 20_000 > sent[0], "it was not cut"
    assert "connection.says_nothing holder=127.0.0.1" in service.stderr


def test_bodies_that_never_come_do_not_hold_up_the_end(tmp_path: Path) -> None:
    """A stranger delays every restart of the service by ten seconds."""
    home = new_home(tmp_path / "fleet")
    head = f"POST {est.BASE}/simpleenroll HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n".encode()
    asked = head + b"Content-Type: application/pkcs10\r\nExpect: 100-continue\r\n\r\n"
    with Program("enroll", "serve", "--home", home.path, "--listen", "127.0.0.1:0") as service, ExitStack() as held:
        tls, port = ssl.create_default_context(cafile=str(home.root.certificate)), wait_ready(service)
        for _ in range(25):
            raw = held.enter_context(socket.create_connection(("127.0.0.1", port), timeout=within(10)))
            connection = held.enter_context(tls.wrap_socket(raw, server_hostname="localhost"))
            connection.sendall(asked)
            assert connection.recv(100).startswith(b"HTTP/1.1 100 Continue")
            connection.sendall(b"half")
        began = time.monotonic()
        assert 0 == service.stop()
        assert within(5) > time.monotonic() - began
