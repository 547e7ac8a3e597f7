"""Uploads as a device, and whoever pretends to be one, sees them: requests and answers as values, real files."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import count
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from enroll.commands import Giver
from enroll.registry import messaging
from enroll.registry.uploads import UploadRecord
from enroll.upload_app import Incoming, UploadApp
from enroll.uploads import BEGINNINGS_PER_MINUTE, GRACE, MAX_WRONG, Uploads, uploads_of
from fleet.errors import Denied, InvalidInput, NotFound
from fleet.est import EstRequest, EstResponse
from fleet.identity import DeviceId
from fleet.messages import Envelope, ResultMessage, ResultState
from fleet.uploads import PIECE_BYTES, LogWanted, Order, Piece, UploadLimits, digest_header, path_of
from tests.fleets import NOW, Office, open_office

PUMP, VALVE = DeviceId("pump-07"), DeviceId("valve-1")
MINUTE = timedelta(minutes=1)
DATA = b"one line\nanother line\n"
LIMITS = UploadLimits(max_bytes=100_000)
_SEEDS = count()


@dataclass
class Desk:
    """A service that devices send files to."""

    office: Office
    limits: UploadLimits = LIMITS
    app: UploadApp = field(init=False)
    pump: x509.Certificate = field(init=False)
    valve: x509.Certificate = field(init=False)

    def __post_init__(self) -> None:
        self.pump, self.valve = self.office.enrolled("pump-07"), self.office.enrolled("valve-1")
        self.limit()

    def limit(self, **changes: int) -> None:
        self.limits = replace(self.limits, **changes)
        uploads = uploads_of(self.office.home, self.office.registry, self.limits)
        uploads.store.prepare()
        self.app = UploadApp(self.office.app, uploads, lambda: self.office.now)

    @property
    def uploads(self) -> Uploads:
        return self.app.uploads

    def ask(self, device: DeviceId = PUMP, max_bytes: int = 1000) -> UploadRecord:
        giver = Giver("test", self.office.now, lambda size: next(_SEEDS).to_bytes(size, "big"))
        return self.uploads.ask(device, Order(LogWanted(10), max_bytes), self.office.now + MINUTE, giver)

    def request(
        self, method: str, id: str, peer: x509.Certificate | None, headers: dict[str, str] | None = None
    ) -> EstRequest:
        der = None if peer is None else peer.public_bytes(Encoding.DER)
        return EstRequest(method, path_of(id), headers or {}, peer=der, address="192.0.2.7")

    def get(self, id: str, peer: x509.Certificate | None = None, method: str = "GET") -> EstResponse:
        answer = self.app.begin(self.request(method, id, peer or self.pump))
        assert isinstance(answer, EstResponse)
        return answer

    def put(
        self, id: str, first: int, data: bytes, whole: bytes = DATA, *, came: int | None = None, **changes: Any
    ) -> EstResponse:
        """The answer to a piece, of which `came` bytes came."""
        headers = {
            "content-range": Piece(first, len(data), len(whole)).header,
            "content-length": str(len(data)),
            "repr-digest": digest_header(hashlib.sha256(whole).digest()),
        }
        peer = changes.pop("peer", self.pump)
        named = {name.replace("_", "-"): value for name, value in changes.items()}
        begun = self.app.begin(self.request("PUT", id, peer, headers | named))
        return self.app.put(begun, data[:came]) if isinstance(begun, Incoming) else begun


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """For tests that leave clock, devices and limits alone."""
    with open_office(tmp_path_factory.mktemp("uploads") / "fleet") as office:
        yield Desk(office)


@pytest.fixture
def own(office: Office) -> Desk:
    """For a test alone."""
    return Desk(office)


def offset(answer: EstResponse) -> int:
    assert 200 == answer.status, answer
    return int(json.loads(answer.body)["offset"])


def is_whole(desk: Desk, upload: str, data: bytes = DATA) -> bool:
    return desk.uploads.finished(upload).total == len(data) and desk.uploads.store.path(upload).read_bytes() == data


def test_pieces_become_a_file(desk: Desk) -> None:
    """A file arrives in pieces and is none, or others can read it."""
    upload = desk.ask().id
    assert 0 == offset(desk.get(upload))
    assert 10 == offset(desk.put(upload, 0, DATA[:10]))
    assert 10 == offset(desk.get(upload))
    with pytest.raises(NotFound):
        desk.uploads.finished(upload)
    assert len(DATA) == offset(desk.put(upload, 10, DATA[10:]))
    assert is_whole(desk, upload)
    path = desk.uploads.store.path(upload)
    assert not desk.uploads.store.part(upload).exists()
    assert (0o600, 0o700) == (stat.S_IMODE(path.stat().st_mode), stat.S_IMODE(path.parent.stat().st_mode))


def test_what_came_of_a_piece_that_was_cut_is_kept(desk: Desk) -> None:
    """A device on a slow link begins anew for ever."""
    upload = desk.ask().id
    assert 4 == offset(desk.put(upload, 0, DATA, came=4))
    assert 4 == offset(desk.put(upload, 4, DATA[4:], came=0))
    desk.put(upload, 4, DATA[4:])
    assert is_whole(desk, upload)


_PIECES = st.lists(
    st.tuples(st.integers(0, 22), st.integers(0, 22), st.integers(0, 22), st.booleans()), max_size=BEGINNINGS_PER_MINUTE
)


@settings(max_examples=50, deadline=None)
@given(_PIECES)
def test_whatever_pieces_come_a_file_is_what_was_announced(
    desk: Desk, pieces: list[tuple[int, int, int, bool]]
) -> None:
    """Some order of pieces, cuts and other contents makes a file that no device ever had."""
    upload, other, now_there = desk.ask().id, DATA[::-1], b""
    for first, length, came, is_other in pieces:
        whole = other if is_other else DATA
        data = whole[first : first + length]
        if data:
            answer = desk.put(upload, first, data, whole, came=came)
            assert answer.status in (200, 409)
            if answer.status == 200:
                now_there = whole[: offset(answer)]
        assert len(now_there) == offset(desk.get(upload))
        if desk.uploads.find(upload).is_finished:
            assert desk.uploads.store.path(upload).read_bytes() == now_there in (DATA, other)
    desk.uploads.remove(desk.uploads.find(upload), NOW, "test")


def test_an_empty_file_is_a_file(desk: Desk) -> None:
    """A log that was just rotated cannot be fetched."""
    upload = desk.ask().id
    desk.put(upload, 0, b"", b"")
    assert is_whole(desk, upload, b"")


@pytest.mark.parametrize(("first", "length"), [(0, 10), (5, 10), (9, 5), (11, 5), (0, len(DATA))])
def test_a_piece_that_does_not_follow_is_refused(desk: Desk, first: int, length: int) -> None:
    """Pieces that overlap, or leave a hole, become a file that no device ever had."""
    upload = desk.ask().id
    desk.put(upload, 0, DATA[:10])
    assert 409 == desk.put(upload, first, DATA[first : first + length]).status
    assert 10 == offset(desk.get(upload))


def test_two_that_bring_the_same_piece_at_once_write_it_once(desk: Desk) -> None:
    """A connection that the service did not see end brings its piece again, behind that of the next one."""
    upload = desk.ask().id
    headers = {
        "content-range": Piece(0, 10, len(DATA)).header,
        "content-length": "10",
        "repr-digest": digest_header(hashlib.sha256(DATA).digest()),
    }
    both = [desk.app.begin(desk.request("PUT", upload, desk.pump, headers)) for _ in range(2)]
    answers = [desk.app.put(each, DATA[:10]).status for each in both if isinstance(each, Incoming)]
    assert [200, 409] == answers


def test_another_content_does_not_follow_the_first(desk: Desk) -> None:
    """A file that changed while it was sent is half the old one and half the new."""
    upload = desk.ask().id
    desk.put(upload, 0, DATA[:10])
    assert 409 == desk.put(upload, 10, DATA[10:], DATA[:-1] + b"!").status
    assert 409 == desk.put(upload, 10, DATA[10:], DATA + b"!").status
    assert 0 == offset(desk.get(upload, method="DELETE"))
    assert 200 == desk.put(upload, 0, b"other", b"other").status
    assert is_whole(desk, upload, b"other")


def test_a_content_that_is_not_what_was_announced_is_thrown_away(desk: Desk) -> None:
    """What was damaged on its way is shown as what the device has."""
    upload = desk.ask().id
    assert 422 == desk.put(upload, 0, b"x" * len(DATA)).status
    assert 0 == offset(desk.get(upload))
    assert upload not in desk.uploads.store.ids()
    desk.put(upload, 0, DATA)
    assert is_whole(desk, upload)


def test_who_sends_what_was_not_announced_again_and_again_is_done(own: Desk) -> None:
    """A device that is bad or broken has the service read, hash and commit for as long as its upload is open."""
    upload = own.ask().id
    assert [422] * MAX_WRONG == [own.put(upload, 0, b"x" * len(DATA)).status for _ in range(MAX_WRONG)]
    assert 404 == own.put(upload, 0, DATA).status
    assert (404, ()) == (own.get(upload).status, tuple(own.uploads.store.ids()))
    assert [] == own.uploads.listed()
    assert 200 == own.put(own.ask().id, 0, DATA).status


def test_an_upload_is_not_begun_at_any_pace(own: Desk) -> None:
    """One device drives the registry's disk with announcements of which nothing comes."""
    upload, other = own.ask().id, own.ask().id
    for attempt in range(BEGINNINGS_PER_MINUTE):
        assert 200 == own.put(upload, 0, DATA, DATA[:-1] + bytes([attempt]), came=0).status
    mark = own.office.registry.commit_mark()
    try:
        mark.has_moved()
        for answer in (own.put(upload, 0, DATA, came=0), own.get(upload, method="DELETE")):
            assert (429, "60") == (answer.status, answer.headers["Retry-After"])
        assert not mark.has_moved()
    finally:
        mark.close()
    assert 200 == own.put(other, 0, DATA).status
    own.office.wait(MINUTE)
    assert 200 == own.put(upload, 0, DATA).status


def test_what_is_thrown_away_counts_as_begun(own: Desk) -> None:
    """A device drives the registry's disk with DELETE."""
    upload = own.ask().id
    answers = [own.get(upload, method="DELETE").status for _ in range(BEGINNINGS_PER_MINUTE + 1)]
    assert [200] * BEGINNINGS_PER_MINUTE + [429] == answers


def test_the_last_answer_may_be_lost(desk: Desk) -> None:
    """A device sends a file twice, or is told that it failed though it arrived."""
    upload = desk.ask().id
    desk.put(upload, 0, DATA)
    assert json.loads(desk.get(upload).body)["is_finished"]
    assert len(DATA) == offset(desk.put(upload, 0, DATA))
    assert 409 == desk.put(upload, len(DATA), b"more", DATA + b"more").status
    assert 409 == desk.get(upload, method="DELETE").status
    assert is_whole(desk, upload)


def test_a_service_that_ended_before_it_knew_of_the_file_finds_it(desk: Desk) -> None:
    """After a kill -9 at the wrong moment a file stays half done for ever."""
    upload = desk.ask().id
    desk.put(upload, 0, DATA[:10])
    assert desk.uploads.store.size(upload) == 10
    desk.uploads.store.append(upload, 10, DATA[10:])
    assert desk.uploads.store.seal(upload, hashlib.sha256(DATA).digest())  # and here it is killed
    assert len(DATA) == offset(desk.get(upload))
    assert 200 == desk.put(upload, len(DATA), b"").status
    assert is_whole(desk, upload)


def test_nobody_sends_or_sees_what_another_was_asked_for(desk: Desk) -> None:
    """A device writes another's log, or learns how much of it there is."""
    upload = desk.ask().id
    desk.put(upload, 0, DATA[:10])
    for answer in (
        desk.get(upload, desk.valve),
        desk.get(upload, desk.valve, "DELETE"),
        desk.put(upload, 10, DATA[10:], peer=desk.valve),
    ):
        assert (404, desk.get("a" * 16, desk.valve).body) == (answer.status, answer.body)
    assert 401 == desk.put(upload, 10, DATA[10:], peer=None).status
    assert 10 == offset(desk.get(upload))


@pytest.mark.parametrize(
    "upload", ["", ".", "..", "a" * 15, "A" * 16, "a" * 17, "../../registry.db", "a" * 16 + ".part"]
)
def test_what_was_not_asked_for_is_not_taken(desk: Desk, upload: str) -> None:
    """A device fills the service's disk, or writes where it likes."""
    before = set(desk.uploads.store.ids())
    assert 404 == desk.put(upload, 0, DATA).status
    assert before == set(desk.uploads.store.ids())


def test_after_its_time_nothing_is_taken(own: Desk) -> None:
    """An upload goes on long after the admin was told that it failed."""
    upload = own.ask().id
    own.office.wait(MINUTE + GRACE)
    assert 404 == own.put(upload, 0, DATA).status
    assert 404 == own.get(upload).status


def test_a_device_that_is_revoked_sends_nothing_more(own: Desk) -> None:
    """Whoever holds the key of a stolen device still writes into the fleet's home."""
    upload = own.ask().id
    begun = own.app.begin(
        own.request(
            "PUT",
            upload,
            own.pump,
            {
                "content-range": Piece(0, len(DATA), len(DATA)).header,
                "content-length": str(len(DATA)),
                "repr-digest": digest_header(hashlib.sha256(DATA).digest()),
            },
        )
    )
    own.office.revoke("pump-07")
    assert isinstance(begun, Incoming)
    assert 404 == own.app.put(begun, DATA).status  # it was revoked while its body came
    assert 403 == own.put(upload, 0, DATA).status
    with pytest.raises(Denied):
        own.ask()


def test_more_than_was_asked_for_is_refused_before_it_is_read(desk: Desk) -> None:
    """A device that was asked for a few lines fills the disk."""
    upload = desk.ask(max_bytes=20).id
    assert 413 == desk.put(upload, 0, DATA).status
    large = bytes(PIECE_BYTES + 1)
    assert 413 == desk.put(desk.ask(max_bytes=100_000).id, 0, large, large).status


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"content_length": ""}, 411),
        ({"content_length": "-1"}, 411),
        ({"content_length": "\u0662\u0662"}, 411),
        ({"content_length": "5"}, 400),
        ({"content_length": "9" * 5000}, 413),
        ({"transfer_encoding": "chunked"}, 411),
        ({"content_range": "bytes 0-21/*"}, 400),
        ({"repr_digest": "sha-256=:AAAA:"}, 400),
    ],
)
def test_a_piece_that_contradicts_itself_is_refused(desk: Desk, changes: dict[str, Any], status: int) -> None:
    """A body without an end is read for as long as it comes."""
    upload = desk.ask().id
    assert status == desk.put(upload, 0, DATA, **changes).status
    assert 0 == offset(desk.get(upload))


def test_a_full_disk_is_said_so_and_costs_nothing_that_was_there(own: Desk) -> None:
    """An upload takes the last of the disk, and the registry cannot be written any more."""
    upload = own.ask().id
    own.put(upload, 0, DATA[:10])
    own.limit(free_bytes=2**52)
    answer = own.put(upload, 10, DATA[10:])
    assert 507 == answer.status
    assert b"no space left on device" in answer.body
    own.limit(free_bytes=1)
    own.put(upload, 10, DATA[10:])
    assert is_whole(own, upload)


def test_what_is_kept_is_bounded(own: Desk) -> None:
    """Admins in a loop fill the disk with one device's logs, or with all of them."""
    own.limit(device_bytes=2500, total_bytes=4000)
    kept = own.ask()
    own.put(kept.id, 0, DATA)
    own.ask()
    own.ask()
    with pytest.raises(Denied, match="pump-07 would be more than 2500 bytes"):
        own.ask()
    own.ask(VALVE)
    with pytest.raises(Denied, match="more than 4000 bytes"):
        own.ask(VALVE)
    own.uploads.remove(kept, NOW, "test")
    own.ask(VALVE, 900)


def test_what_is_old_goes_and_what_nobody_knows_of(own: Desk) -> None:
    """A home fills up over the years."""
    whole, half, new = own.ask().id, own.ask().id, own.ask().id
    own.put(whole, 0, DATA)
    own.put(half, 0, DATA[:10])
    (own.uploads.store.folder / "stray.part").touch()
    assert ["stray"] == own.uploads.sweep(own.office.now)
    own.office.wait(MINUTE + GRACE)
    assert sorted([half, new]) == own.uploads.sweep(own.office.now)
    assert is_whole(own, whole)
    own.office.wait(timedelta(days=7))
    assert [whole] == own.uploads.sweep(own.office.now)
    assert [] == list(own.uploads.store.folder.iterdir())


def test_what_a_device_gave_up_makes_room(own: Desk) -> None:
    """After some failures nothing of a device can be fetched for as long as each might have taken."""
    upload, other = own.ask().id, own.ask().id
    result = ResultMessage(Envelope(PUMP, NOW, "boot", 1), ResultState.FAILED, None, "it is a link")
    with own.office.registry.write() as transaction:
        messaging.record_result(transaction, PUMP, upload, result, NOW)
    assert [upload] == own.uploads.sweep(own.office.now)
    assert [other] == [each.id for each in own.uploads.listed()]


def test_only_a_device_that_may_connect_is_asked(desk: Desk) -> None:
    """An admin waits for what cannot come."""
    with pytest.raises(NotFound):
        desk.ask(DeviceId("nobody"))
    with pytest.raises(InvalidInput):
        desk.ask(DeviceId("admin"))


def test_a_method_that_is_none_is_told_so(desk: Desk) -> None:
    """A client that posts is told that there is nothing."""
    assert (405, "GET, PUT, DELETE") == (
        (answer := desk.get(desk.ask().id, method="POST")).status,
        answer.headers["Allow"],
    )
