"""Whatever bytes a stranger sends to the enrollment service over TLS get an answer of 4xx, or the connection ends."""

from __future__ import annotations

import asyncio
import base64
import logging
import re
import ssl
import threading
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from enroll import service
from enroll.commits import Commits
from enroll.connection import Limits
from enroll.home import read_config
from enroll.registry import Registry
from enroll.serving import serving
from enroll.tokens import TokenOrder
from fleet import directory, est
from fleet.config import Address
from fleet.join import Token
from fleet.layout import AdminHome
from tests.deadlines import FACTOR, within
from tests.fleets import csr, new_home
from tests.fuzz.requests import spoilt, written
from tests.system.enrolling import basic
from tests.system.strangers import HEALTH, PORTS

_T = TypeVar("_T")
SHORT = 0.05 * FACTOR
LIMITS = Limits(head=SHORT, body=SHORT, linger=SHORT, goodbye=SHORT, answer=SHORT)
CLOSING = HEALTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
BODY = est.encode_body(csr("pump-07"))
BASIC = base64.b64encode(b"x:fleettok_" + b"a" * 34)
SEEDS = [
    HEALTH,
    f"GET {est.CACERTS} HTTP/1.0\r\n\r\n".encode(),
    f"GET {directory.PATH}?serial=0a&after=1 HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
    f"POST {est.SIMPLE_ENROLL} HTTP/1.1\r\nHost: x\r\nAuthorization: Basic ".encode()
    + BASIC
    + f"\r\nContent-Type: {est.PKCS10}\r\nContent-Length: {len(BODY)}\r\n\r\n".encode()
    + BODY,
    f"POST {est.SIMPLE_REENROLL} HTTP/1.1\r\nHost: x\r\nContent-Type: {est.PKCS10}\r\n".encode()
    + b"Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n5\r\nMIIBa\r\n4;x=y\r\nAAAA\r\n0\r\nX: y\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
]
PIECES = [
    *(b"\r\n", b"\n", b"\r", b"\x00", b"\xff", b" ", b":", b"\t", b"%00", b"%", b"?", b"//", b"..", b"chunked"),
    *(b"Content-Length: 5\r\n", b"Content-Length: -1\r\n", b"Content-Length: 99999999999999999999\r\n"),
    *(b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip, chunked\r\n", b"Content-Encoding: gzip\r\n"),
    *(b"Expect: 100-continue\r\n", b"Connection: close\r\n", b"Upgrade: websocket\r\n", b"Host: y\r\n"),
    *(b"0\r\n\r\n", b"FFFFFFFFFF\r\n", b"x" * 9000, b"a: b\r\n" * 200, HEALTH),
]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A request of a client that means well, spoilt; or anything at all."""
    data = bytearray(draw(st.sampled_from(SEEDS) | st.binary(max_size=200)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(("change", "drop", "insert", "cut", "double"))):
            case "change":
                data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case "drop":
                del data[at : at + draw(st.integers(1, 30))]
            case "insert":
                data[at:at] = draw(st.sampled_from(PIECES))
            case "cut":
                del data[at:]
            case "double":
                data += data[at:]
    return bytes(data)


@dataclass
class Mistakes(logging.Handler):
    """Keeps what was logged of our own mistakes."""

    found: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __hash__(self) -> int:
        return id(self)

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.levelno > logging.DEBUG:
            self.found.append(self.format(record))


class Door:
    """The service on a thread of its own, and connections to it."""

    def __init__(self, home: AdminHome, limits: Limits) -> None:
        self.home, self._limits = home, limits
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._tls.load_verify_locations(home.root.certificate)
        self._loop = uvloop.new_event_loop()
        self._ready, self._stop = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))
        self._address = Address("127.0.0.1", 0)

    async def _serve(self) -> None:
        config = read_config(self.home)
        with Registry.open(self.home.registry) as registry:
            async with (
                Commits(registry) as commits,
                serving(
                    self.home, config, registry, commits, PORTS, listen=self._address, limits=self._limits
                ) as self._address,
            ):
                self._ready.set()
                await self._stop.wait()

    def __enter__(self) -> Door:
        self._thread.start()
        assert self._ready.wait(within(20))
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(within(20))
        self._loop.close()

    def _run(self, steps: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(steps, self._loop).result(within(20))

    def answers(self, requests: list[bytes]) -> list[bytes]:
        """All that came back on a connection each, up to its end."""

        async def steps() -> list[bytes]:
            return await asyncio.gather(*map(self._ask, requests))

        return self._run(steps())

    async def _ask(self, data: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(
            self._address.host, self._address.port, ssl=self._tls, server_hostname="localhost"
        )
        got = b""
        try:
            writer.write(data)
            while more := await reader.read(65_536):
                got += more
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()
        return got


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    path: Path = tmp_path_factory.mktemp("door")
    with Door(new_home(path / "fleet"), LIMITS) as opened:
        yield opened


@pytest.fixture(scope="module")
def patient_door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """For requests that are whole: a machine that is busy elsewhere takes long over them."""
    with Door(new_home(tmp_path_factory.mktemp("patient") / "fleet"), Limits()) as opened:
        yield opened


@pytest.fixture(scope="module")
def token(patient_door: Door) -> Token:
    """A token that is good for everything."""
    with Registry.open(patient_door.home.registry) as registry:
        order = TokenOrder(pattern="*", uses=100_000)
        return service.invite(registry, order, by="test", now=PORTS.clock(), token_bytes=PORTS.token_bytes).token


@pytest.fixture(scope="module")
def mistakes() -> Iterator[Mistakes]:
    handler = Mistakes()
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)


@pytest.mark.fuzz
@given(st.lists(mutated(), min_size=1, max_size=10))
def test_bytes_of_strangers_are_their_own_mistake(door: Door, mistakes: Mistakes, requests: list[bytes]) -> None:
    """A stranger makes the service fail, hang, or write tracebacks into its log."""
    for request, answer in zip(requests, door.answers(requests), strict=True):
        statuses = set(map(int, re.findall(rb"HTTP/1\.[01] (\d{3}) ", answer)))
        assert all(status < 500 for status in statuses), (request, answer)
    assert [] == mistakes.found
    assert door.answers([CLOSING])[0].startswith(b"HTTP/1.1 200 ")


@pytest.mark.fuzz
@given(st.lists(spoilt().flatmap(written), min_size=1, max_size=10))
def test_a_stranger_with_a_token_gets_nothing_for_a_spoilt_request(
    patient_door: Door, token: Token, mistakes: Mistakes, bodies: list[bytes]
) -> None:
    """Whoever has a token makes the service fail, or gets a certificate that nobody asked for."""
    head = (
        f"POST {est.SIMPLE_ENROLL} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{basic(token)}\r\n"
        f"Content-Type: {est.PKCS10}\r\nContent-Length: "
    ).encode()
    answers = patient_door.answers([head + str(len(body)).encode() + b"\r\n\r\n" + body for body in bodies])
    for body, answer in zip(bodies, answers, strict=True):
        assert answer[9:12] in (b"200", b"400", b"403"), (body, answer)
    assert [] == mistakes.found
