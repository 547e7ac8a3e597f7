"""Strangers against the listener of the enrollment service, over real sockets and with small limits."""

from __future__ import annotations

import asyncio
import secrets
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import uvloop

from enroll.commits import Commits
from enroll.connection import Limits
from enroll.home import read_config
from enroll.registry import Registry
from enroll.serving import Ports, serving
from fleet import est
from fleet.config import Address
from fleet.layout import AdminHome, IdentityFiles
from tests.deadlines import FACTOR, within

PORTS = Ports(lambda: datetime.now(UTC), time.monotonic, secrets.token_bytes)
SHORT = 0.3 * FACTOR
PATIENT = 60.0 * FACTOR
HEALTH = f"GET {est.HEALTH} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()

Steps = Callable[["Client"], Awaitable[None]]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def limits(**changes: Any) -> Limits:
    """Limits that no test reaches, but for the one that it is about."""
    return replace(Limits(connections=100, handshake=PATIENT, head=PATIENT, body=PATIENT), **changes)


class Client:
    """Opens connections to the service and closes them at the end."""

    def __init__(self, address: Address, home: AdminHome) -> None:
        self.address = address
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._tls.load_verify_locations(home.root.certificate)
        self._writers: list[asyncio.StreamWriter] = []

    async def plain(self, source: str = "127.0.0.1") -> Streams:
        """A connection on which TLS was not begun."""
        host, port = self.address.host, self.address.port
        reader, writer = await asyncio.open_connection(host, port, local_addr=(source, 0))
        self._writers.append(writer)
        return reader, writer

    async def secure(self, source: str = "127.0.0.1", identity: IdentityFiles | None = None) -> Streams:
        """A connection that shook hands."""
        if identity is not None:
            self._tls.load_cert_chain(identity.certificate, identity.key)
        reader, writer = await asyncio.open_connection(
            self.address.host, self.address.port, ssl=self._tls, server_hostname="localhost", local_addr=(source, 0)
        )
        self._writers.append(writer)
        return reader, writer

    async def mute(self, said: bytes) -> asyncio.StreamReader:
        """A connection that shook hands and said that, with a peer that takes nothing in from then on: raw TCP."""
        reader, writer = await self.plain()
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = self._tls.wrap_bio(incoming, outgoing, server_hostname="localhost")
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                writer.write(outgoing.read())
                incoming.write(await reader.read(65_536))
        if said:
            tls.write(said)
        writer.write(outgoing.read())
        return reader

    async def close(self) -> None:
        for writer in self._writers:
            writer.transport.abort()


def against(home: AdminHome, limited: Limits, steps: Steps) -> None:
    """Run `steps` against a service with these limits."""

    async def main() -> None:
        with Registry.open(home.registry) as registry:
            async with (
                Commits(registry) as commits,
                serving(
                    home, read_config(home), registry, commits, PORTS, listen=Address("127.0.0.1", 0), limits=limited
                ) as address,
            ):
                client = Client(address, home)
                try:
                    async with asyncio.timeout(within(30)):
                        await steps(client)
                finally:
                    await client.close()

    uvloop.run(main())


async def is_served(client: Client, source: str = "127.0.0.1") -> bool:
    """Whether a newcomer is answered, and soon."""
    async with asyncio.timeout(within(2)):
        reader, writer = await client.secure(source)
        writer.write(HEALTH)
        return (await reader.readline()).startswith(b"HTTP/1.1 200 ")


async def line_with(reader: asyncio.StreamReader, word: bytes) -> None:
    """Read up to a line with that word."""
    while word not in (line := await reader.readline()):
        assert line, "the connection has ended"


async def write_on(writer: asyncio.StreamWriter, data: bytes) -> None:
    """Write the same for ever."""
    while True:
        writer.write(data)
        await writer.drain()


async def ended(reader: asyncio.StreamReader) -> bytes:
    """All that came up to the end of the connection."""
    try:
        return await reader.read(-1)
    except ConnectionResetError:
        return b""
