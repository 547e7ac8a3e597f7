"""An enrollment service that says what a test wants: `/v1/directory` over real TLS, and nothing else."""

from __future__ import annotations

import contextlib
import queue
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from enroll.registry import Registry, feed
from fleet import directory
from fleet.directory import Current, Entry, FeedLine, SnapshotStart
from fleet.identity import DeviceId, Serial, Server
from fleet.layout import AdminHome, RunFile
from tests.deadlines import within

FEED = "scripted"


@dataclass
class Stream:
    """One broker that follows; `asked` is its query."""

    asked: dict[str, str]
    _lines: queue.Queue[bytes] = field(default_factory=queue.Queue)

    def send(self, *lines: FeedLine) -> None:
        for line in lines:
            self._lines.put(directory.encode(line))

    def send_raw(self, data: bytes) -> None:
        """Bytes that are no line, and the end if there are none."""
        self._lines.put(data)

    def chunks(self) -> Iterator[bytes]:
        while data := self._lines.get():
            yield data


@dataclass
class Script:
    """What the service says: `streams` are those who follow, `answers` what the next look-ups of a serial get.

    Without an answer of its own a serial is unknown, and is not counted in `looked_up`.
    """

    home: AdminHome
    streams: queue.Queue[Stream] = field(default_factory=queue.Queue)
    answers: dict[Serial, list[tuple[int, bytes]]] = field(default_factory=dict)
    looked_up: list[Serial] = field(default_factory=list)

    def next_stream(self) -> Stream:
        return self.streams.get(timeout=within(20))

    def answer_to(self, serial: Serial) -> tuple[int, bytes]:
        """The next answer to a look-up."""
        if serial not in self.answers:
            return 404, b""
        self.looked_up.append(serial)
        return self.answers[serial].pop(0)

    def entries(self) -> list[Entry]:
        """What the registry says of everybody."""
        with Registry.open(self.home.registry) as registry, registry.read() as transaction:
            return feed.page(transaction, None)

    def entry(self, device: str) -> Entry:
        return next(each for each in self.entries() if each.principal.id == DeviceId(device))

    def snapshot(self) -> list[FeedLine]:
        known = self.entries()
        seq = max(each.seq for each in known)
        return [SnapshotStart(FEED, seq), *known, Current(FEED, seq)]


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        if "serial" in query:
            status, body = self.server.script.answer_to(Serial(query["serial"]))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        stream = Stream(query)
        self.server.follow(stream)
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):
            for chunk in stream.chunks():
                self.wfile.write(chunk)
                self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: what is said is the test's."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, script: Script) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = script
        self.opened: list[Stream] = []
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(script.home.enroll_server.certificate, script.home.enroll_server.key)
        context.load_verify_locations(script.home.broker_trust)
        context.verify_mode = ssl.CERT_REQUIRED
        self.socket = context.wrap_socket(self.socket, server_side=True)

    def follow(self, stream: Stream) -> None:
        self.opened.append(stream)
        self.script.streams.put(stream)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A broker that went away is no error."""


@contextmanager
def scripted(home: AdminHome) -> Iterator[Script]:
    """A service of that home which says what it is told; brokers find it by its run file."""
    script = Script(home)
    server = _Server(script)
    home.run_file(Server.ENROLL).parent.mkdir(mode=0o700, exist_ok=True)
    home.run_file(Server.ENROLL).write_bytes(RunFile(f"https://localhost:{server.server_address[1]}").encode())
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield script
    finally:
        for stream in server.opened:
            stream.send_raw(b"")
        server.shutdown()
        thread.join(within(10))
        server.server_close()
