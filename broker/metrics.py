"""`GET /metrics` in Prometheus' text format, on a thread of its own: an address for this host, not for the network.

What is told is `broker.figures`, how it is written is prometheus_client's. Whoever asks slowly, too much, too often or
for something else loses its own connection and takes nothing from the broker: requests are read for five seconds and up
to 16 KB, the oldest of eight gives way, and twenty a second are taken.
"""

from __future__ import annotations

import asyncio
import io
import logging
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from http import HTTPStatus
from itertools import accumulate
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import CollectorRegistry, Metric, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from broker.engine import Reason
from broker.figures import (
    BY_REASON,
    DELAY_BOUNDS_SECONDS,
    DELAY_METRIC,
    FIGURES,
    INFO_METRIC,
    METRIC_PREFIX,
    Kind,
    Readings,
)
from fleet.config import Address
from fleet.errors import FleetError

_log = logging.getLogger(__name__)
PATH: Final = "/metrics"
_REQUEST_SECONDS: Final = 5.0
_REQUEST_BYTES: Final = 16_384
_LOOP_SECONDS: Final = 5.0
_AT_ONCE: Final = 8
_PAUSE_SECONDS: Final = 0.05
_POLL_SECONDS: Final = 0.2


class MetricsServer:
    """Serves what `read` gives, which is called on `loop`. Raises: FleetError where it cannot listen on `address`."""

    def __init__(
        self,
        address: Address,
        read: Callable[[], Readings],
        loop: asyncio.AbstractEventLoop,
        monotonic: Callable[[], float],
    ) -> None:
        self._read = read
        self._loop = loop
        self._process = ProcessCollector(registry=None)
        self._server = _bind(address, monotonic)
        self._server.set_app(self._answer)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_POLL_SECONDS,), name="metrics", daemon=True
        )
        self._thread.start()

    @property
    def address(self) -> Address:
        """Where it listens, with the real port."""
        host, port, *_ = self._server.socket.getsockname()
        return Address(host, port)

    def stop(self) -> None:
        """Listen no more. Blocks, for less than half a second: not for an event loop."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] != PATH:
            return _say(HTTPStatus.NOT_FOUND, start_response)
        try:
            readings = self._read_on_loop()
        except TimeoutError:
            return _say(HTTPStatus.SERVICE_UNAVAILABLE, start_response)
        except Exception:
            _log.exception("metrics.failed")
            return _say(HTTPStatus.INTERNAL_SERVER_ERROR, start_response)
        registry = CollectorRegistry()
        registry.register(_Figures(readings))
        registry.register(self._process)
        app: Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]] = make_wsgi_app(
            registry, disable_compression=True
        )
        return app({**environ, "QUERY_STRING": ""}, start_response)

    def _read_on_loop(self) -> Readings:
        answer: Future[Readings] = Future()

        def read() -> None:
            try:
                answer.set_result(self._read())
            except Exception as error:
                answer.set_exception(error)

        self._loop.call_soon_threadsafe(read)
        return answer.result(_LOOP_SECONDS)


def _say(status: HTTPStatus, start_response: StartResponse) -> Iterable[bytes]:
    start_response(f"{status.value} {status.phrase}", [("Content-Type", "text/plain; charset=utf-8")])
    return [f"{status.phrase}\n".encode()]


class _Figures(Collector):
    """One moment's readings as metrics."""

    def __init__(self, readings: Readings) -> None:
        self._readings = readings

    def collect(self) -> Iterator[Metric]:
        readings = self._readings
        name, says = INFO_METRIC
        yield InfoMetricFamily(METRIC_PREFIX + name, says, {"version": readings.version})
        for figure in FIGURES:
            family = CounterMetricFamily if figure.kind is Kind.COUNTER else GaugeMetricFamily
            yield family(METRIC_PREFIX + figure.metric, figure.help, figure.read(readings))
        for by_reason in BY_REASON:
            counts = by_reason.read(readings.stats)
            counter = CounterMetricFamily(METRIC_PREFIX + by_reason.metric, by_reason.help, labels=["reason"])
            for reason in Reason:  # those that never occurred too: a rate needs a zero to start from
                counter.add_metric([reason.value], counts[reason])
            yield counter
        yield self._delay()

    def _delay(self) -> Metric:
        delay, (name, says) = self._readings.delay, DELAY_METRIC
        bounds = [*map(str, DELAY_BOUNDS_SECONDS), "+Inf"]
        buckets = list(zip(bounds, accumulate(delay.counts), strict=True))
        return HistogramMetricFamily(METRIC_PREFIX + name, says, buckets, delay.sum_seconds)


def _bind(address: Address, monotonic: Callable[[], float]) -> _Server:
    """Raises: FleetError."""
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, where = found[0]
        return _Server(family, where, monotonic)
    except OSError as error:
        raise FleetError(
            f"cannot listen on {address} for metrics: {error.strerror}",
            hint="choose another address, port 0 for any free one: --metrics HOST:PORT",
        ) from error


class _Server(ThreadingMixIn, WSGIServer):
    """A thread for each connection, and few of them."""

    daemon_threads = True
    request_queue_size = 32  # as many wait for their turn, and have it within two seconds

    def __init__(self, family: socket.AddressFamily, where: tuple[Any, ...], monotonic: Callable[[], float]) -> None:
        self.address_family = family
        self.monotonic = monotonic
        self._open: dict[socket.socket, None] = {}
        self._open_lock = threading.Lock()
        self._pause = threading.Event()
        super().__init__((where[0], where[1]), _Request)

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # not HTTPServer's, which asks the DNS what this host is called
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def get_request(self) -> tuple[socket.socket, Any]:
        # Also where accept fails: with no descriptor left it would be tried again at once, for ever.
        self._pause.wait(_PAUSE_SECONDS)
        return super().get_request()

    def shutdown(self) -> None:
        self._pause.set()
        super().shutdown()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._open_lock:
            if len(self._open) >= _AT_ONCE:
                _end(next(iter(self._open)))
            self._open[request] = None
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._open_lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever asked has gone, or was too slow: that is nobody else's matter."""
        _log.debug("metrics.unanswered", exc_info=True)


def _end(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _Request(WSGIRequestHandler):
    """One request of one connection."""

    server: _Server

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(_BoundedReader(self.connection, self.server.monotonic))

    def handle(self) -> None:
        with suppress(OSError):
            super().handle()

    def log_message(self, format: str, *args: object) -> None:
        """Not a word: requests are Prometheus'."""


class _BoundedReader(io.RawIOBase):
    """What a peer sends, until it has sent enough or taken too long: then it is as if it had ended."""

    def __init__(self, connection: socket.socket, monotonic: Callable[[], float]) -> None:
        self._connection = connection
        self._monotonic = monotonic
        self._deadline = monotonic() + _REQUEST_SECONDS
        self._left_bytes = _REQUEST_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._deadline - self._monotonic()
        if left <= 0 or not self._left_bytes:
            return 0
        self._connection.settimeout(left)
        count = self._connection.recv_into(buffer, min(len(buffer), self._left_bytes))
        self._connection.settimeout(_REQUEST_SECONDS)  # for the answer, all of it
        self._left_bytes -= count
        return count
