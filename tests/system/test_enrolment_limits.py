"""What one stranger may take up of the enrollment service's listener: real sockets against small limits."""

from __future__ import annotations

import asyncio
import base64
import time
from pathlib import Path

import pytest

from enroll.registry import Registry
from enroll.slots import PER_CERTIFICATE, RESERVED_SHARE
from fleet import directory, est
from fleet.layout import AdminHome
from tests.deadlines import within
from tests.fleets import new_home
from tests.system.brokers import enrol
from tests.system.strangers import (
    HEALTH,
    PATIENT,
    SHORT,
    Client,
    against,
    ended,
    is_served,
    limits,
    line_with,
    write_on,
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> AdminHome:
    """One home; these tests enrol nobody."""
    path: Path = tmp_path_factory.mktemp("limits")
    return new_home(path / "fleet")


def test_a_handshake_that_is_not_finished_ends(home: AdminHome) -> None:
    """Whoever connects and says nothing holds a connection for ever."""

    async def steps(client: Client) -> None:
        reader, writer = await client.plain()
        writer.write(b"\x16\x03\x01\x02\x00")  # a record of 512 bytes is announced
        assert b"" == await ended(reader)

    against(home, limits(handshake=SHORT), steps)


@pytest.mark.parametrize("head", [b"", b"GET /healthz HTT", HEALTH + b"GET /healthz HTTP/1.1\r\nHost: "])
def test_a_head_that_is_not_finished_ends_the_connection(home: AdminHome, head: bytes) -> None:
    """A slow loris holds every connection, after a first good request too."""

    async def steps(client: Client) -> None:
        reader, writer = await client.secure()
        writer.write(head)
        answer = await ended(reader)
        assert head.startswith(HEALTH) == answer.startswith(b"HTTP/1.1 200 ")

    against(home, limits(head=SHORT), steps)


def test_a_head_that_drips_ends_the_connection(home: AdminHome) -> None:
    """A slow loris that keeps sending has no deadline."""

    async def steps(client: Client) -> None:
        reader, writer = await client.secure()
        writer.write(b"GET /healthz HTTP/1.1\r\n")
        ending = asyncio.ensure_future(ended(reader))
        while not ending.done():
            writer.write(b"x: y\r\n")
            await asyncio.wait([ending], timeout=SHORT / 5)
        assert not ending.result().startswith(b"HTTP/1.1 200")

    against(home, limits(head=SHORT), steps)


def test_a_body_that_is_not_finished_gets_408(home: AdminHome) -> None:
    """A client that stops in the middle holds a connection, and what it was counted against."""

    async def steps(client: Client) -> None:
        reader, writer = await client.secure()
        writer.write(f"POST {est.SIMPLE_ENROLL} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc".encode())
        assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
        await ended(reader)

    against(home, limits(body=SHORT, linger=PATIENT), steps)


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"GET /healthz HTT",
        HEALTH,
        HEALTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
        HEALTH.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"),
        b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
        f"POST {est.SIMPLE_ENROLL} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc".encode(),
        f"POST {est.SIMPLE_ENROLL} HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\nabc".encode(),
        b"\x00" * 100,
    ],
    ids=("silent", "head", "idle", "closing", "upgrade", "connect", "body", "upgraded-body", "garbage"),
)
def test_a_peer_that_never_says_goodbye_is_not_waited_for(home: AdminHome, said: bytes) -> None:
    """A silent peer holds its slot for as long again as TLS waits for its farewell."""

    async def steps(client: Client) -> None:
        reader = await client.mute(said)
        async with asyncio.timeout(within(5)):
            await ended(reader)

    against(home, limits(head=SHORT, body=SHORT, goodbye=SHORT, linger=PATIENT), steps)


@pytest.mark.parametrize("said", [b"GET /healthz HTTP/1.1\r\nUpgrade: websocket", b"CONNECT x:1 HTTP/1.1"])
def test_who_asks_for_another_protocol_gets_an_answer_and_no_more(home: AdminHome, said: bytes) -> None:
    """What follows such a request is taken for requests, though whoever is between takes it for something else."""

    async def steps(client: Client) -> None:
        reader, writer = await client.secure()
        writer.write(said + b"\r\nHost: x\r\nConnection: upgrade\r\n\r\n" + HEALTH)
        assert 1 == (await ended(reader)).count(b"HTTP/1.1 ")

    against(home, limits(), steps)


def test_a_peer_that_does_not_read_its_answers_loses_its_connection(home: AdminHome) -> None:
    """Whoever asks and does not read holds a slot, and the answers in memory, for ever."""

    async def steps(client: Client) -> None:
        reader, writer = await client.secure()
        assert isinstance(reader, asyncio.StreamReader)
        writer.transport.pause_reading()  # type: ignore[attr-defined] # this transport can read
        many = f"GET {est.CACERTS} HTTP/1.1\r\nHost: x\r\n\r\n".encode() * 100
        async with asyncio.timeout(within(10)):
            with pytest.raises(ConnectionError):
                await write_on(writer, many)

    against(home, limits(answer=SHORT, goodbye=SHORT), steps)


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"GET /healthz HTTP/1.1\r\nX: y",
        HEALTH,
        f"POST {est.SIMPLE_ENROLL} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc".encode(),
    ],
    ids=("silent", "head", "idle", "body"),
)
def test_strangers_that_hold_every_connection_do_not_keep_others_out(home: AdminHome, said: bytes) -> None:
    """A thousand silent connections stop every enrolment for half a minute."""

    async def steps(client: Client) -> None:
        for _ in range(20):
            _, writer = await client.secure()
            writer.write(said)
            await writer.drain()
        assert await is_served(client)
        assert await is_served(client, "127.0.0.2")

    against(home, limits(connections=20, grace=0.1), steps)


def test_strangers_that_do_not_even_shake_hands_do_not_keep_others_out(home: AdminHome) -> None:
    """Connections without TLS are cheaper still."""

    async def steps(client: Client) -> None:
        for _ in range(20):
            await client.plain()
        assert await is_served(client)

    against(home, limits(connections=20, grace=0.1), steps)


def test_strangers_from_many_networks_end_no_connection_of_a_known_device(home: AdminHome) -> None:
    """A botnet, each of which has less than its share, lets every certificate of a fleet run out."""
    grace = 0.2

    async def steps(client: Client) -> None:
        began = time.monotonic()
        known = [await client.secure(identity=home.operator.identity) for _ in range(20 // RESERVED_SHARE)]
        honest = Client(client.address, home)
        while time.monotonic() - began <= grace:  # so that only what is reserved keeps them
            assert await is_served(honest)
        for number in range(40):  # a flood that is always in its first moment
            await client.plain(f"127.2.{number}.1")
        for reader, writer in [await honest.secure("127.0.0.2"), *known]:
            writer.write(HEALTH)
            assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        await honest.close()

    against(home, limits(connections=20, grace=grace), steps)


def test_a_flood_of_strangers_does_not_touch_a_brokers_feed(tmp_path: Path) -> None:
    """Strangers keep a gateway's broker from hearing of a revocation, from the same address at that."""
    home = new_home(tmp_path / "fleet")

    async def steps(client: Client) -> None:
        feed, writer = await client.secure(identity=home.broker_client)
        writer.write(f"GET {directory.PATH} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await line_with(feed, b"current")
        stranger = Client(client.address, home)
        for _ in range(30):
            await stranger.secure()
        await asyncio.to_thread(enrol, home, "pump-07")
        await line_with(feed, b"pump-07")
        await stranger.close()

    against(home, limits(connections=8, grace=0.0), steps)


def test_a_head_without_end_is_refused(home: AdminHome, caplog: pytest.LogCaptureFixture) -> None:
    """A stranger fills the memory with headers, or the log with tracebacks."""
    caplog.set_level("INFO")

    async def steps(client: Client) -> None:
        for _ in range(20):
            reader, writer = await client.secure()
            writer.write(b"GET /healthz HTTP/1.1\r\nX: " + b"x" * 100_000 + b"\r\n\r\n")
            assert b" 400 " in await reader.readline()

    against(home, limits(), steps)
    assert 9 == caplog.text.count("request.malformed")
    assert "Traceback" not in caplog.text


def test_connections_over_the_limit_wait_and_are_served_when_one_ends(home: AdminHome) -> None:
    """Strangers open connections until the service has no descriptors left, or a burst is turned away."""

    async def steps(client: Client) -> None:
        held = [await client.plain(), await client.secure()]
        waiting = asyncio.ensure_future(client.secure())
        done, _ = await asyncio.wait([waiting], timeout=SHORT)
        assert not done
        held[0][1].transport.abort()
        reader, writer = await waiting
        writer.write(HEALTH)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")

    against(home, limits(connections=2, grace=PATIENT), steps)


def test_a_connection_gives_its_slot_back_however_it_ends(home: AdminHome) -> None:
    """Each failed handshake takes a slot away, until the service takes nobody any more."""

    async def steps(client: Client) -> None:
        for _ in range(5):
            reader, writer = await client.plain()
            writer.write(b"this is no TLS at all\r\n\r\n")
            await ended(reader)
            reader, writer = await client.plain()
            writer.transport.abort()
            reader, writer = await client.secure()
            writer.write(HEALTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            assert (await ended(reader)).startswith(b"HTTP/1.1 200 ")

    against(home, limits(connections=2), steps)


GUESS = (
    f"POST {est.SIMPLE_ENROLL} HTTP/1.1\r\nHost: x\r\nAuthorization: Basic ".encode()
    + base64.b64encode(b"x:fleettok_" + b"a" * 34)
    + f"\r\nContent-Type: {est.PKCS10}\r\nContent-Length: 4\r\n\r\nAAAA".encode()
)


def test_a_network_that_floods_the_worker_leaves_room_for_others(home: AdminHome) -> None:
    """Requests of one stranger take the whole queue, and everybody else hears that the service is busy."""

    async def steps(client: Client) -> None:
        async def answer(source: str) -> bytes:
            reader, writer = await client.secure(source)
            writer.write(GUESS)
            return await reader.readline()

        with Registry.open(home.registry) as another, another.write():
            flood = [asyncio.ensure_future(answer("127.0.0.1")) for _ in range(6)]
            await asyncio.wait(flood, return_when=asyncio.FIRST_COMPLETED)
            other = asyncio.ensure_future(answer("127.0.0.2"))
            assert (await answer("127.0.0.1")).startswith(b"HTTP/1.1 503 ")
            assert not other.done()
        assert (await other).startswith(b"HTTP/1.1 401 ")
        assert {b"401", b"503"} == {line.split()[1] for line in await asyncio.gather(*flood)}

    against(home, limits(connections=10), steps)


def test_one_certificate_does_not_take_every_connection_and_keeps_its_feed(home: AdminHome) -> None:
    """A stolen certificate shuts strangers out, who are ended first; or a gateway's own tools end its broker's feed."""

    async def steps(client: Client) -> None:
        feed, writer = await client.secure(identity=home.broker_client)
        writer.write(f"GET {directory.PATH} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await line_with(feed, b"current")
        held = [await client.secure() for _ in range(PER_CERTIFICATE)]
        assert b"" == await ended(held[0][0])
        reader, writer = held[1]
        writer.write(HEALTH)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        assert not feed.at_eof()

    against(home, limits(grace=0.0), steps)


def test_a_request_that_is_worked_on_is_answered_whoever_comes(home: AdminHome) -> None:
    """A flood takes an enrolment's answer away when the token is spent already."""

    async def steps(client: Client) -> None:
        with Registry.open(home.registry) as another, another.write():
            reader, writer = await client.secure()
            writer.write(GUESS)
            for _ in range(12):
                assert await is_served(client)
        assert (await reader.readline()).startswith(b"HTTP/1.1 401 ")

    against(home, limits(connections=4, grace=0.0), steps)


def test_the_loop_answers_while_the_registry_is_locked(home: AdminHome) -> None:
    """A backup, or another command line, stops handshakes and health checks."""

    async def steps(client: Client) -> None:
        with Registry.open(home.registry) as another, another.write():
            reader, writer = await client.secure()
            writer.write(GUESS)
            waiting = asyncio.ensure_future(reader.readline())
            other_reader, other_writer = await client.secure()
            other_writer.write(HEALTH)
            assert (await other_reader.readline()).startswith(b"HTTP/1.1 200 ")
            assert not waiting.done()
        assert (await waiting).startswith(b"HTTP/1.1 401 ")

    against(home, limits(), steps)
