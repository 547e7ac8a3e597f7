"""Strangers against the plain listener that serves CRLs, over real sockets and with small limits."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvloop

from enroll.crl import build, next_issue
from enroll.crl_publisher import Published, published
from enroll.crl_server import LIMITS, CrlServer
from enroll.registry.records import Reason, Revocation
from fleet.config import Address
from fleet.identity import Serial
from tests.deadlines import FACTOR, within
from tests.fleets import CRL_URL, NOW, open_office

SHORT = 0.3 * FACTOR
Steps = Callable[[Address], Awaitable[None]]


@asynccontextmanager
async def serving(made: Published, **changes: Any) -> AsyncIterator[Address]:
    async def find(name: str, _wait_seconds: float) -> Published | None:
        return made if name == "1" else None

    server = CrlServer(find, CRL_URL, replace(LIMITS, grace=0.0, **changes))
    try:
        yield server.start(Address("127.0.0.1", 0))
    finally:
        await server.stop()


def run(folder: Path, steps: Steps, lines: int = 1, **changes: Any) -> None:
    """Run `steps` against a server with one list, on the loop that the service has."""
    revoked = [Revocation(Serial.from_int(number), NOW, Reason.SUPERSEDED) for number in range(1, lines + 1)]
    with open_office(folder / "fleet") as office:
        made = published(build(office.authority.devices, next_issue(None, NOW), revoked))

    async def main() -> None:
        async with asyncio.timeout(within(20)), serving(made, **changes) as address:
            await steps(address)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


async def ask(address: Address, request: bytes) -> bytes:
    """All that comes until the server closes."""
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        writer.write(request)
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


def head(method: str, path: str, *headers: str) -> bytes:
    lines = (f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close", *headers)
    return "\r\n".join((*lines, "", "")).encode()


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (head("GET", "/crl/1.crl"), b"200 OK"),
        (head("GET", "http://localhost:8080/crl/1.crl"), b"200 OK"),
        (head("GET", "/crl/1.crl?x=1"), b"200 OK"),
        (head("GET", "/crl/1.crl", "Upgrade: h2c"), b"200 OK"),
        (head("GET", "/crl/1.crl", "If-Modified-Since: yesterday"), b"200 OK"),
        (head("GET", "/crl/1.crl", "If-None-Match: \xff\"'"), b"200 OK"),
        (head("GET", "/1.crl"), b"404 Not Found"),
        (head("GET", "/crl/01234567890.crl"), b"404 Not Found"),
        (head("GET", "/crl/../../fleet.toml"), b"404 Not Found"),
        (head("GET", "/crl/%2e%2e%2f%2e%2e%2fca/root.pem"), b"404 Not Found"),
        (head("GET", "/crl/\x001.crl"), b"400 Bad Request"),
        (head("POST", "/crl/1.crl", "Content-Length: 1000000"), b"405 Method Not Allowed"),
        (head("CONNECT", "localhost:22"), b"405 Method Not Allowed"),
        (head("DELETE", "/crl/1.crl"), b"405 Method Not Allowed"),
        (b"rubbish\r\n\r\n", b"400 Bad Request"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\r\n\r\n", b"400 Bad Request"),
    ],
)
def test_what_is_asked_for_is_answered(tmp_path: Path, request_: bytes, status: bytes) -> None:
    """A request stops the server, gets a file of the home, or gets no answer."""

    async def steps(address: Address) -> None:
        answer = await ask(address, request_)
        assert status == answer.partition(b"\r\n")[0].partition(b" ")[2]

    run(tmp_path, steps, linger=SHORT)


def without_date(lines: bytes) -> list[bytes]:
    return sorted(line for line in lines.split(b"\r\n") if not line.startswith(b"Date: "))


def test_head_is_get_without_its_body(tmp_path: Path) -> None:
    """A cache takes the length of nothing for the length of the list."""

    async def steps(address: Address) -> None:
        full, bare = await ask(address, head("GET", "/crl/1.crl")), await ask(address, head("HEAD", "/crl/1.crl"))
        lines, _, body = full.partition(b"\r\n\r\n")
        assert f"Content-Length: {len(body)}".encode() in lines
        assert without_date(lines) == without_date(bare.removesuffix(b"\r\n\r\n"))

    run(tmp_path, steps)


def test_whoever_is_slow_loses_the_connection(tmp_path: Path) -> None:
    """A thousand that never finish a request keep everybody out."""

    async def steps(address: Address) -> None:
        assert b"" == await ask(address, b"GET /crl/1.crl HTTP/1.1\r\nHost: ")
        assert b"200 OK" in await ask(address, head("GET", "/crl/1.crl"))

    run(tmp_path, steps, head=SHORT)


def test_too_many_connections_end_the_oldest(tmp_path: Path) -> None:
    """Whoever opens connections and says nothing keeps everybody out."""

    async def steps(address: Address) -> None:
        held = [await asyncio.open_connection(address.host, address.port) for _ in range(20)]
        assert b"200 OK" in await ask(address, head("GET", "/crl/1.crl"))
        for _, writer in held:
            writer.close()

    run(tmp_path, steps, connections=4, head=60.0)


def test_whoever_does_not_read_loses_the_connection(tmp_path: Path) -> None:
    """The memory is full of lists that nobody takes."""

    async def steps(address: Address) -> None:
        loop = asyncio.get_running_loop()
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect((address.host, address.port))
            with told("crl.not_taken") as is_cut:
                deaf.sendall(head("GET", "/crl/1.crl"))
                await is_cut.wait()
            assert len(await loop.run_in_executor(None, all_of, deaf)) < 300_000
        assert len(await ask(address, head("GET", "/crl/1.crl"))) > 300_000

    run(tmp_path, steps, lines=10_000, answer=SHORT)


def all_of(connection: socket.socket) -> bytes:
    """What comes until the other side's end."""
    with suppress(ConnectionError):
        return b"".join(iter(lambda: connection.recv(65_536), b""))
    return b""


@contextmanager
def told(name: str) -> Iterator[asyncio.Event]:
    """An event that is set when the log tells of it."""
    found = asyncio.Event()

    class Listening(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().startswith(name):
                found.set()

    logger, listening = logging.getLogger("enroll.crl_server"), Listening()
    logger.addHandler(listening)
    logger.setLevel(logging.INFO)
    try:
        yield found
    finally:
        logger.removeHandler(listening)
