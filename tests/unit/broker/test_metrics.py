"""`/metrics` over real sockets: Prometheus is answered, and whoever else asks takes nothing from the broker."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from broker import metrics
from broker.engine import Stats
from broker.figures import LoopDelay, Readings
from broker.metrics import MetricsServer
from fleet.config import Address
from fleet.errors import FleetError
from tests.deadlines import within

START = datetime(2026, 11, 21, 8, 0, tzinfo=UTC)
ANYWHERE = Address("127.0.0.1", 0)


@dataclass(slots=True)
class Watched:
    """A server of metrics and the event loop that it asks."""

    server: MetricsServer
    loop: asyncio.AbstractEventLoop
    reads: list[str]

    def connect(self) -> socket.socket:
        address = self.server.address
        return socket.create_connection((address.host, address.port), within(10))

    def ask(self, method: str = "GET", path: str = "/metrics", **headers: str) -> tuple[int, str]:
        """Status and body of one proper request."""
        address = self.server.address
        with contextlib.closing(http.client.HTTPConnection(address.host, address.port, timeout=within(10))) as asking:
            asking.request(method, path, headers=headers)
            answer = asking.getresponse()
            return answer.status, answer.read().decode()

    def say(self, data: bytes) -> bytes:
        """Everything that is answered to those bytes and the end of them."""
        with self.connect() as peer:
            with contextlib.suppress(OSError):  # it may have heard enough
                peer.sendall(data)
                peer.shutdown(socket.SHUT_WR)
            return read_all(peer)


def read_all(peer: socket.socket) -> bytes:
    """What comes until the other side ends."""
    found = b""
    with contextlib.suppress(ConnectionError):
        while data := peer.recv(65_536):
            found += data
    return found


def readings() -> Readings:
    return Readings("0.1.0", START, START, Stats(connections=7), LoopDelay(), 0.0, 0, 0)


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    """A server for all tests: none of them may hurt it."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    reads: list[str] = []

    def read() -> Readings:
        reads.append(threading.current_thread().name)
        return readings()

    server = MetricsServer(ANYWHERE, read, loop, time.monotonic)
    yield Watched(server, loop, reads)
    server.stop()
    loop.call_soon_threadsafe(loop.stop)
    thread.join(within(5))
    loop.close()


def connections(text: str) -> float:
    families = {family.name: family for family in text_string_to_metric_families(text)}
    return float(families["mqtt_fleet_broker_connections"].samples[0].value)


def test_prometheus_is_answered(watched: Watched) -> None:
    """Nothing would be watched."""
    status, text = watched.ask()
    assert (200, 7.0) == (status, connections(text))
    assert "process_resident_memory_bytes" in text


def test_the_broker_is_read_on_its_own_loop(watched: Watched) -> None:
    """Another thread would walk over sessions that are being changed."""
    before = len(watched.reads)
    watched.ask()
    assert [name for name in watched.reads[before:] if name != "metrics"]
    assert not [name for name in watched.reads if "process_request" in name or name == "metrics"]


@pytest.mark.parametrize("path", ["/", "/metrics/", "/metrics/x", "/favicon.ico", "/metric", "/%2e%2e/x"])
def test_nothing_else_is_there(watched: Watched, path: str) -> None:
    """More would be answered than anyone thought of."""
    assert (404, "Not Found\n") == watched.ask(path=path)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "TRACE", "nonsense"])
def test_it_is_only_to_be_read(watched: Watched, method: str) -> None:
    """A request that changes something elsewhere would look as if it did so here."""
    assert 405 == watched.ask(method)[0]


def test_a_query_costs_no_more(watched: Watched) -> None:
    """prometheus_client picks metrics by `name[]`, of which there may be thousands."""
    assert 7.0 == connections(watched.ask(path="/metrics?" + "name[]=x&" * 500)[1])


def test_nothing_is_compressed(watched: Watched) -> None:
    """Whoever asks would have the broker's processor compute for it."""
    assert 7.0 == connections(watched.ask(**{"Accept-Encoding": "gzip"})[1])


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"\r\n",
        b"GET",
        b"GET /metrics HTTP/9.9\r\n\r\n",
        b"GET /metrics\0 HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 99999999\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 5000 + b"\r\n",
        b"GET /metrics HTTP/1.1\r\nX: " + bytes(100_000) + b"\r\n\r\n",
        b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\n\r\n",
    ],
    ids=range(11),
)
def test_garbage_hurts_nobody(watched: Watched, said: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    """One odd request would end the thread, fill the log or take the memory."""
    watched.say(said)
    assert 200 == watched.ask()[0]
    assert ("", "") == tuple(capfd.readouterr())


def test_whoever_leaves_before_the_answer_is_not_missed(watched: Watched, capfd: pytest.CaptureFixture[str]) -> None:
    """Each of them would leave a traceback."""
    for said in (b"GET /metrics HTTP/1.1\r\n\r\n", b"GET /metrics HT", b"POST /"):
        with watched.connect() as peer:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close is a reset
            peer.sendall(said)
    assert 200 == watched.ask()[0]
    assert ("", "") == tuple(capfd.readouterr())


REQUEST = st.builds(
    lambda *parts: b"".join(parts),
    st.sampled_from([b"GET ", b"POST ", b"", b"G\0 "]) | st.binary(max_size=8),
    st.sampled_from([b"/metrics", b"*", b"http://x/metrics", b""]) | st.binary(max_size=8),
    st.sampled_from([b" HTTP/1.1\r\n", b" HTTP/1.0\n", b" HTTP/-1.x\r\n", b"\r\n", b""]),
    st.sampled_from(
        [b"Host: x\r\n", b"Content-Length: -1\r\n", b"Transfer-Encoding: chunked\r\n", b" folded\r\n", b":"]
    )
    | st.binary(max_size=20),
    st.sampled_from([b"\r\n", b"\r\n\r\n", b""]),
)


@pytest.mark.fuzz
@settings(  # a fifth of what others have: connections are paced
    max_examples=settings().max_examples // 5, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(said=REQUEST)
def test_any_request_is_answered_or_ended(watched: Watched, said: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    """Somebody would find the bytes that stop the watching."""
    assert b"Traceback" not in watched.say(said)
    assert 200 == watched.ask()[0]
    assert ("", "") == tuple(capfd.readouterr())


def test_whoever_says_nothing_keeps_nobody_out(watched: Watched) -> None:
    """Eight open connections would blind Prometheus."""
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(watched.connect()) for _ in range(12)]
        silent[0].sendall(b"GET /met")
        assert 200 == watched.ask()[0]
        assert b"" == read_all(silent[0])  # the oldest has given way
        assert 13 - 8 <= sum(is_ended(peer) for peer in silent)


def is_ended(peer: socket.socket) -> bool:
    peer.setblocking(False)
    try:
        return not peer.recv(1)
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def test_a_request_in_drops_has_an_end(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then would hold a thread for ever, for no wait is ever long."""
    monkeypatch.setattr(metrics, "_REQUEST_SECONDS", 0.5)
    with watched.connect() as peer:
        peer.settimeout(0.05)
        began = time.monotonic()
        ended = False
        while not ended and time.monotonic() - began < within(10):
            try:
                peer.sendall(b"G")
                ended = not peer.recv(1)
            except TimeoutError:
                continue
            except ConnectionError:
                ended = True
    assert ended


def test_nobody_has_it_computed_without_a_pause(watched: Watched) -> None:
    """A loop of requests would take the processor from the broker's own thread."""
    began = time.monotonic()
    for _ in range(10):
        watched.ask()
    assert 0.4 < time.monotonic() - began


def test_a_loop_that_stands_still_is_told(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prometheus would wait, and threads pile up behind a broker that hangs."""
    monkeypatch.setattr(metrics, "_LOOP_SECONDS", 0.1)
    released = threading.Event()
    watched.loop.call_soon_threadsafe(released.wait, within(10))
    try:
        assert 503 == watched.ask()[0]
    finally:
        released.set()
    monkeypatch.undo()
    assert 200 == watched.ask()[0]


@pytest.mark.parametrize("host", ["no-such-host.invalid", "192.0.2.1"])
def test_an_address_that_is_not_here_is_named(watched: Watched, host: str) -> None:
    """An admin would read a traceback."""
    with pytest.raises(FleetError, match=r"cannot listen on .* for metrics"):
        MetricsServer(Address(host, 0), readings, watched.loop, time.monotonic)
