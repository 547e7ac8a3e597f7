"""A thousand connections of a stranger against the service as it is shipped."""

from __future__ import annotations

import asyncio
import resource
import shlex
import ssl
import time
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
