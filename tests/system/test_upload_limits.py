"""What one device may take up of the service's listener with uploads: real sockets against small limits."""

from __future__ import annotations

import hashlib
import json
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from enroll.commands import Giver
from enroll.registry import Registry
from enroll.server import MAX_UPLOADS_PER_DEVICE
from enroll.uploads import uploads_of
from fleet.identity import DeviceId
from fleet.layout import AdminHome, IdentityFiles
from fleet.uploads import LogWanted, Order, Piece, UploadLimits, digest_header, path_of
from tests.fleets import new_home
from tests.system.brokers import enrol
from tests.system.strangers import SHORT, Client, Streams, against, ended, is_served, limits, line_with

_DATA = bytes(range(256)) * 100


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> AdminHome:
    """One home with one device."""
    path: Path = tmp_path_factory.mktemp("limits")
    return new_home(path / "fleet")


@pytest.fixture(scope="module")
def pump(home: AdminHome) -> IdentityFiles:
    return enrol(home, "pump-07")


def asked(home: AdminHome) -> str:
    """The path of an upload that pump-07 was asked for."""
    now = datetime.now(UTC)
    with Registry.open(home.registry) as registry:
        order, giver = Order(LogWanted(10), 100_000), Giver("test", now, secrets.token_bytes)
        uploads = uploads_of(home, registry, UploadLimits())
        return path_of(uploads.ask(DeviceId("pump-07"), order, now + timedelta(minutes=5), giver).id)


def head(path: str, first: int, length: int) -> bytes:
    """Of a request that brings `length` bytes of the data."""
    piece = Piece(first, length, len(_DATA)).header
    digest = digest_header(hashlib.sha256(_DATA).digest())
    fields = f"Content-Range: {piece}\r\nRepr-Digest: {digest}\r\nContent-Length: {length}"
    return f"PUT {path} HTTP/1.1\r\nHost: x\r\n{fields}\r\n\r\n".encode()


async def answer(streams: Streams) -> tuple[int, bytes]:
    reader, _ = streams
    status = int((await reader.readline()).split()[1])
    length = 0
    while (line := await reader.readline()) != b"\r\n":
        name, _, value = line.partition(b":")
        length = int(value) if name.lower() == b"content-length" else length
    return status, await reader.readexactly(length)


async def invited(client: Client, pump: IdentityFiles, path: str) -> Streams:
    """A connection on which the service waits for a body."""
    reader, writer = await client.secure(identity=pump)
    writer.write(head(path, 0, len(_DATA)).replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"))
    await line_with(reader, b"100 Continue")
    return reader, writer


async def told(streams: Streams, path: str) -> int:
    """How much the service says that it has."""
    streams[1].write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    status, body = await answer(streams)
    assert 200 == status
    return int(json.loads(body)["offset"])


async def sent_from(client: Client, pump: IdentityFiles, path: str, first: int) -> Streams:
    """A connection on which the service was sent the rest of the data, if that is where it is."""
    streams = await client.secure(identity=pump)
    assert first == await told(streams, path)
    streams[1].write(head(path, first, len(_DATA) - first) + _DATA[first:])
    return streams


def test_a_body_that_never_ends_is_cut_and_what_came_of_it_is_kept(home: AdminHome, pump: IdentityFiles) -> None:
    """A device that drips holds a connection and its memory for ever; or a slow one never gets a piece across."""

    async def steps(client: Client) -> None:
        path = asked(home)
        streams = await client.secure(identity=pump)
        streams[1].write(head(path, 0, len(_DATA)) + _DATA[:1000])
        assert (200, 1000) == ((said := await answer(streams))[0], json.loads(said[1])["offset"])
        assert b"" == await ended(streams[0])
        said = await answer(await sent_from(client, pump, path, 1000))
        while not json.loads(said[1])["is_finished"]:  # on a busy machine not even this is in time
            said = await answer(await sent_from(client, pump, path, json.loads(said[1])["offset"]))

    against(home, limits(body=SHORT), steps)


def test_what_came_before_a_connection_broke_is_kept(home: AdminHome, pump: IdentityFiles) -> None:
    """Each time a link breaks a device begins its piece anew, and never comes to its end."""

    async def steps(client: Client) -> None:
        path = asked(home)
        _, writer = await invited(client, pump, path)
        writer.write(_DATA[:1000])
        await writer.drain()
        streams = await client.secure(identity=pump)
        writer.close()
        while (found := await told(streams, path)) == 0:  # its end was not heard of yet
            pass
        assert 1000 == found

    against(home, limits(), steps)


def test_many_at_once_are_told_to_come_again(home: AdminHome, pump: IdentityFiles) -> None:
    """One device takes all the memory that there is for pieces, and the others wait behind it."""

    async def steps(client: Client) -> None:
        path = asked(home)
        for _ in range(MAX_UPLOADS_PER_DEVICE):
            await invited(client, pump, path)
        more = await client.secure(identity=pump)
        more[1].write(head(path, 0, len(_DATA)))
        assert 503 == (await answer(more))[0]
        assert await is_served(client)

    against(home, limits(), steps)


def test_a_body_is_not_read_for_whoever_has_no_business_here(home: AdminHome, pump: IdentityFiles) -> None:
    """A stranger has the service read what it will throw away."""

    async def steps(client: Client) -> None:
        streams = await client.secure()
        streams[1].write(head(asked(home), 0, len(_DATA)))
        assert 401 == (await answer(streams))[0]
        streams = await client.secure(identity=pump)
        streams[1].write(head(path_of("a" * 16), 0, len(_DATA)))
        assert 404 == (await answer(streams))[0]

    against(home, limits(linger=SHORT), steps)
