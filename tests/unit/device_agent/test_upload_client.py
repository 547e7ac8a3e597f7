"""How the agent sends what was asked for, to services that cut, refuse, are busy, or forget: real TLS."""

from __future__ import annotations

import base64
import hashlib
import json
import queue
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from device_agent.core.effects import Upload
from device_agent.core.events import Event, UploadEnded
from device_agent.last_lines import LastLines
from device_agent.sharing import Shares
from device_agent.upload_client import BYTES_PER_SECOND, MAX_VERSIONS, Sources, Uploader
from fleet.layout import AgentHome
from fleet.uploads import PIECE_BYTES, FileWanted, Order, digest_header
from tests.deadlines import within
from tests.unit.device_agent.authority import new_authority
from tests.unit.device_agent.clocks import real_clock, still_clock
from tests.unit.device_agent.servers import http_answer, read_request, server_context, tls_server

AUTHORITY = new_authority()
DATA = bytes(range(256)) * 600  # three pieces
UPLOAD = "a" * 16
CUT = "cut"
Script = list[int | str]
"""What is done to one request after the other."""


@dataclass
class Service:
    """Keeps what it is sent, and answers as the script says: a status, a cut, or (at its end) as it should."""

    script: Script = field(default_factory=list)
    kept: bytes = b""
    digest: str = ""
    asked: list[str] = field(default_factory=list)
    was_asked: threading.Event = field(default_factory=threading.Event)

    def serve(self, connection: ssl.SSLSocket) -> None:
        while request := read_request(connection):
            head, _, body = request.partition(b"\r\n\r\n")
            method = head.split(b" ", 1)[0].decode()
            self.asked.append(method)
            self.was_asked.set()
            does = self.script.pop(0) if self.script else 200
            if does == CUT:
                self.kept += body[: len(body) // 2]
                return
            if does == 422:
                self.kept, self.digest = b"", ""
            if does != 200:
                connection.sendall(http_answer(f"{does} no", b"because of the test\nhint: none\n"))
                return
            self._take(method, head, body)
            connection.sendall(http_answer("200 OK", self._state()))

    def _take(self, method: str, head: bytes, body: bytes) -> None:
        if method == "DELETE":
            self.kept, self.digest = b"", ""
        for line in head.decode().split("\r\n"):
            if line.startswith("Repr-Digest: "):
                self.digest = line.removeprefix("Repr-Digest: ")
        self.kept += body

    def _state(self) -> bytes:
        raw = base64.b64decode(self.digest.removeprefix("sha-256=:").rstrip(":")) if self.digest else None
        fields = {"v": 1, "offset": len(self.kept), "sha256": raw.hex() if raw else None}
        return json.dumps(fields | {"is_finished": self.kept == DATA}).encode()


@dataclass
class Sender:
    """An agent that shares one file of DATA."""

    uploader: Uploader
    events: queue.SimpleQueue[Event]
    path: Path

    def send(self, seconds: float = 60.0, max_bytes: int = len(DATA)) -> None:
        until = time.monotonic() + within(seconds)
        self.uploader.perform(Upload(UPLOAD, Order(FileWanted(str(self.path)), max_bytes), until))

    def ended(self) -> UploadEnded:
        event = self.events.get(timeout=within(30))
        assert isinstance(event, UploadEnded)
        return event


@contextmanager
def sending(folder: Path, service: Service) -> Iterator[Sender]:
    home = AgentHome(folder / "home")
    AUTHORITY.client("pump-07").write(home.generation(1))
    home.current.symlink_to("gen-1")
    home.trust.write_text(AUTHORITY.roots_pem)
    shared = folder / "logs"
    shared.mkdir()
    (shared / "x").write_bytes(DATA)
    events = queue.SimpleQueue[Event]()
    sources = Sources(LastLines(), Shares((shared,), home.path))
    with tls_server(server_context(AUTHORITY.server("enroll"), folder / "server"), service.serve) as listener:
        uploader = Uploader(home, listener.url, real_clock(), lambda: 0.01, sources, events.put)
        try:
            yield Sender(uploader, events, shared / "x")
        finally:
            uploader.close()


def test_a_file_goes_in_pieces_over_one_connection(tmp_path: Path) -> None:
    """Every piece costs a handshake, or a file arrives otherwise than it is."""
    service = Service()
    with sending(tmp_path, service) as sender:
        sender.send()
        ended = sender.ended()
    assert (DATA, "") == (service.kept, ended.error)
    assert ended.output is not None
    assert len(DATA) == ended.output["bytes"]
    assert digest_header(bytes.fromhex(ended.output["sha256"])) == service.digest
    assert ["GET"] + ["PUT"] * (len(DATA) // PIECE_BYTES + 1) == service.asked


def test_after_a_cut_it_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """Over a bad link a long file never arrives; or what had come in part comes twice."""
    service = Service([200, 200, CUT, 503, 200, CUT, CUT, 429, 507, 409])
    with sending(tmp_path, service) as sender:
        sender.send()
        assert "" == sender.ended().error
    assert DATA == service.kept


def test_another_version_is_not_continued(tmp_path: Path) -> None:
    """The beginning of yesterday's log and the end of today's become one file."""
    service = Service(kept=b"other", digest=digest_header(bytes(32)))
    with sending(tmp_path, service) as sender:
        sender.send()
        assert "" == sender.ended().error
    assert ["GET", "DELETE", "PUT"] == service.asked[:3]
    assert DATA == service.kept


def test_what_is_whole_is_not_sent_again_though_the_file_has_changed(tmp_path: Path) -> None:
    """An agent that ended before it heard that all had come asks for ever to send another version."""
    digest = hashlib.sha256(DATA).digest()
    service = Service(kept=DATA, digest=digest_header(digest))
    with sending(tmp_path, service) as sender:
        sender.path.write_bytes(DATA + b"more")
        sender.send(max_bytes=2 * len(DATA))
        ended = sender.ended()
    assert (["GET"], DATA) == (service.asked, service.kept)
    assert ({"bytes": len(DATA), "sha256": digest.hex()}, "") == (ended.output, ended.error)


def test_who_is_told_no_does_not_ask_again(tmp_path: Path) -> None:
    """A device that is revoked asks for ever, and its admin is not told why nothing comes."""
    for status in (403, 404):
        service = Service([status])
        with sending(tmp_path / str(status), service) as sender:
            sender.send()
            assert "the service says: because of the test" == sender.ended().error
        assert ["GET"] == service.asked


def test_a_refusal_in_the_middle_is_asked_about_with_the_certificate_in_use_by_then(tmp_path: Path) -> None:
    """A renewal in the middle of a long file ends it."""
    service = Service([200, 200, 403])
    with sending(tmp_path, service) as sender:
        sender.send()
        assert "" == sender.ended().error


def test_what_changes_again_and_again_is_given_up(tmp_path: Path) -> None:
    """A device sends a file that grows in place until the command's end."""
    service = Service([200, 200, 200, 422] * MAX_VERSIONS)
    with sending(tmp_path, service) as sender:
        sender.send()
        assert "it changes while it is read" == sender.ended().error


def test_at_its_deadline_it_says_what_kept_it(tmp_path: Path) -> None:
    """An upload outlives the command that asked for it, or its admin learns nothing."""
    service = Service([503] * 1000)
    with sending(tmp_path, service) as sender:
        sender.send(seconds=0.3)
        assert "it was not sent in time: the service says: because of the test" == sender.ended().error
        sender.send(seconds=-1.0)
        assert sender.ended().error.startswith("it was not sent in time")


def test_what_arrived_as_its_time_was_over_has_arrived(tmp_path: Path) -> None:
    """The fleet has a file, and the command that asked for it has failed."""
    service = Service()
    with sending(tmp_path, service) as sender:
        sender.uploader.clock = still_clock(lambda: 0.0)
        until = (len(DATA) - 1) / BYTES_PER_SECOND  # between the last piece and the pause behind it
        sender.uploader.perform(Upload(UPLOAD, Order(FileWanted(str(sender.path)), len(DATA)), until))
        assert "" == sender.ended().error


def test_more_than_may_be_sent_is_not_even_offered(tmp_path: Path) -> None:
    """A device sends a piece of what will be refused."""
    service = Service()
    with sending(tmp_path, service) as sender:
        sender.send(max_bytes=len(DATA) - 1)
        assert f"it has {len(DATA)} bytes, {len(DATA) - 1} may be sent" == sender.ended().error
        sender.path.unlink()
        sender.send()
        assert "no such file" in sender.ended().error
    assert [] == service.asked


def test_an_agent_that_ends_leaves_no_word_for_a_core_that_is_gone(tmp_path: Path) -> None:
    """A thread that waits for its next attempt keeps posting into an agent that has ended."""
    service = Service([503] * 1000)
    with sending(tmp_path, service) as sender:
        sender.uploader.chance = lambda: 1.0
        sender.send()
        assert service.was_asked.wait(within(20))
        sender.uploader.close()
        for thread in threading.enumerate():
            if thread.name == "upload":
                thread.join(within(20))
        assert sender.events.empty()
