"""What strangers can do to others, and to the log, with wrong credentials: over real connections."""

from __future__ import annotations

import asyncio
import base64
from datetime import UTC, datetime
from pathlib import Path

import pytest

from enroll import authority
from enroll.registry import Registry
from fleet import est
from fleet.join import Token, new_token
from fleet.layout import AdminHome
from tests.fleets import CRL_URL, DOMAIN, Office, csr, new_home
from tests.system.strangers import Client, Streams, against, limits


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> AdminHome:
    path: Path = tmp_path_factory.mktemp("guessing")
    return new_home(path / "fleet")


def invited(home: AdminHome, device: str) -> Token:
    with Registry.open(home.registry) as registry:
        office = Office(home, registry, authority.load(home, DOMAIN, CRL_URL), datetime.now(UTC))
        return office.invite(device)


def enrolling(password: object, body: bytes) -> bytes:
    """A simpleenroll as bytes."""
    credentials = base64.b64encode(f"x:{password}".encode()).decode()
    return (
        f"POST {est.SIMPLE_ENROLL} HTTP/1.1\r\nHost: x\r\nAuthorization: Basic {credentials}\r\n"
        f"Content-Type: {est.PKCS10}\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body


async def status(streams: Streams, request: bytes) -> int:
    """The status of the answer; the rest of it is read."""
    reader, writer = streams
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    await reader.readexactly(int(length.partition(b":")[2]))
    return int(head.split()[1])


def test_what_others_got_wrong_does_not_keep_a_right_token_out(home: AdminHome) -> None:
    """Thirty requests a minute from behind a site's address stop its enrolments."""
    token = invited(home, "pump-07")

    async def steps(client: Client) -> None:
        streams = await client.secure()
        config = f"GET {est.CONFIG} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        assert {401} == {await status(streams, config) for _ in range(40)}
        guesses = [await status(streams, enrolling("no token", b"")) for _ in range(40)]
        assert [401] * 30 + [429] * 10 == guesses
        assert 200 == await status(streams, enrolling(token, est.encode_body(csr("pump-07"))))

    against(home, limits(), steps)


@pytest.mark.parametrize(
    "request_",
    [
        "GET /.well-known/est/simpleenroll/{} HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /{} HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET {} HTTP/1.1\r\nHost: x\r\n\r\n",
        "{} / HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\n{}\r\n\r\n",
        "GET / HTTP/1.1\r\nAuthorization : Basic {}\r\n\r\n",
        "GET / HTTP/1.1\r\nAuthorization: Basic {}\x00\r\n\r\n",
        "{}\r\n\r\n",
    ],
)
def test_a_token_is_not_logged_wherever_it_was_pasted(
    home: AdminHome, caplog: pytest.LogCaptureFixture, request_: str
) -> None:
    """A secret is kept in every copy of the log."""
    caplog.set_level("INFO")
    token = str(new_token(bytes(range(21))))

    async def steps(client: Client) -> None:
        reader, writer = await client.secure()
        writer.write(request_.format(token).encode())
        assert (await reader.readline())[9:10] == b"4"

    against(home, limits(), steps)
    assert token[:16] not in caplog.text


def test_who_goes_away_in_the_middle_of_a_body_leaves_no_traceback(
    home: AdminHome, caplog: pytest.LogCaptureFixture
) -> None:
    """A bad radio link looks like a mistake of the service."""

    async def steps(client: Client) -> None:
        for _ in range(3):
            _, writer = await client.secure()
            writer.write(enrolling("x", b"x" * 1000)[:-10])
            await writer.drain()
            writer.transport.abort()
        async with asyncio.timeout(5):
            streams = await client.secure()
            assert 401 == await status(streams, enrolling("x", b""))

    against(home, limits(), steps)
    assert "Traceback" not in caplog.text
