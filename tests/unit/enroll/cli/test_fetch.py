"""`enroll fetch`, for what is there already and for what does not come."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import pytest

from enroll.cli import fetch
from enroll.cli.options import Output
from enroll.commands import Giver
from enroll.registry import identity, messaging
from enroll.uploads import Uploads, uploads_of
from fleet.errors import FleetError, InvalidInput, NotFound, TimedOut
from fleet.identity import DeviceId
from fleet.messages import Envelope, ResultMessage, ResultState
from fleet.uploads import FileWanted, LogWanted, Order, Piece, UploadLimits, Wanted
from tests.fleets import Office, open_office

PUMP = DeviceId("pump-07")
_SEEDS = count()


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    with open_office(tmp_path_factory.mktemp("fetch") / "fleet", datetime.now(UTC)) as opened:
        opened.enrolled("pump-07")
        yield opened


@pytest.fixture
def uploads(office: Office) -> Uploads:
    found = uploads_of(office.home, office.registry, UploadLimits())
    found.store.prepare()
    return found


def asked(uploads: Uploads, wanted: Wanted, seconds: float = 60.0) -> str:
    now = datetime.now(UTC)
    giver = Giver("test", now, lambda size: next(_SEEDS).to_bytes(size, "big"))
    return uploads.ask(PUMP, Order(wanted, 1000), now + timedelta(seconds=seconds), giver).id


def sent(uploads: Uploads, wanted: Wanted, data: bytes) -> str:
    """An upload that is whole."""
    upload = asked(uploads, wanted)
    with uploads.registry.read() as transaction:
        sender = identity.find_principal(transaction, PUMP)
    assert sender is not None
    piece, digest = Piece(0, len(data), len(data)), hashlib.sha256(data).digest()
    assert uploads.put(sender, upload, piece, digest, data, datetime.now(UTC)).is_finished
    return upload


def test_a_log_drives_no_terminal(office: Office, uploads: Uploads, capsys: pytest.CaptureFixture[str]) -> None:
    """A device clears the admin's screen, or types for him."""
    fetch.get(sent(uploads, LogWanted(5), b"first\n\x1b[2Jsecond \xff\n"), home=office.home.path)
    assert "first\n\\x1b[2Jsecond \ufffd\n" == capsys.readouterr().out


def test_a_file_is_what_was_sent(office: Office, uploads: Uploads, tmp_path: Path) -> None:
    """A file is escaped, open to others, or leaves half of itself behind."""
    upload, target = sent(uploads, FileWanted("/var/log/x"), b"\x00\xff\r\n"), tmp_path / "x"
    target.write_text("what was there")
    fetch.get(upload, str(target), office.home.path)
    assert (b"\x00\xff\r\n", 0o600) == (target.read_bytes(), target.stat().st_mode & 0o777)
    assert [target] == list(tmp_path.iterdir())
    for place, words in (
        (tmp_path / "nowhere" / "x", "is no folder"),
        (tmp_path, "is a folder"),
        (Path(), "is a folder"),
    ):
        with pytest.raises(InvalidInput, match=words):
            fetch.get(upload, str(place), office.home.path)


def test_only_files_are_replaced(office: Office, uploads: Uploads, tmp_path: Path) -> None:
    """As root, `--out /dev/null` takes a device away from the whole host."""
    upload, target = sent(uploads, FileWanted("/var/log/x"), b"abc"), tmp_path / "x"
    target.write_text("what was there")
    (tmp_path / "link").symlink_to(target)
    fetch.get(upload, str(tmp_path / "link"), office.home.path)
    assert (b"abc", True) == (target.read_bytes(), (tmp_path / "link").is_symlink())
    reader, writer = os.pipe()
    fetch.get(upload, f"/dev/fd/{writer}", office.home.path)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        assert b"abc" == pipe.read()


def test_a_file_is_not_shown_on_a_terminal(
    office: Office, uploads: Uploads, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device clears the admin's screen, or types for him."""
    upload = sent(uploads, FileWanted("/var/log/x"), b"\x1b[2J")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with pytest.raises(InvalidInput, match="terminal"):
        fetch.get(upload, home=office.home.path)
    assert "" == capsys.readouterr().out


def test_what_is_kept_is_listed_and_removed(
    office: Office, uploads: Uploads, capsys: pytest.CaptureFixture[str]
) -> None:
    """An admin cannot tell what is whole from what is not, nor make room."""
    whole, open_one = sent(uploads, FileWanted("/var/log/\x1b"), b"abc"), asked(uploads, LogWanted(5))
    fetch.list_("pump-07", Output.JSON, office.home.path)
    found = {each["upload"]: each for each in json.loads(capsys.readouterr().out)}
    assert ("whole", 3, "/var/log/\x1b") == tuple(found[whole][name] for name in ("state", "bytes", "name"))
    assert ("asked", 0, None) == tuple(found[open_one][name] for name in ("state", "bytes", "path"))
    fetch.list_(None, Output.TABLE, office.home.path)
    assert "\x1b" not in capsys.readouterr().out
    with pytest.raises(FleetError, match="not whole yet"):
        fetch.get(open_one, home=office.home.path)
    for upload in (whole, open_one):
        fetch.remove(upload, office.home.path)
        with pytest.raises(NotFound):
            fetch.get(upload, home=office.home.path)
    assert whole not in uploads.store.ids()


def test_what_is_damaged_since_is_not_delivered(office: Office, uploads: Uploads) -> None:
    """A disk that forgot a byte shows it as the device's."""
    upload = sent(uploads, LogWanted(5), b"abc\n")
    uploads.store.path(upload).write_bytes(b"abd\n")
    with pytest.raises(FleetError, match="no longer what the device sent"):
        fetch.get(upload, home=office.home.path)


def test_a_file_of_that_name_is_not_overwritten_unasked(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device's file takes the place of one that an admin has."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.log").symlink_to("nowhere")
    with pytest.raises(InvalidInput, match=r"x\.log is here already"):
        fetch.file("pump-07", "/var/log/x.log", home=office.home.path)


def test_what_does_not_come_is_said_why(office: Office, uploads: Uploads, capsys: pytest.CaptureFixture[str]) -> None:
    """An admin waits until the deadline for what has failed, or for ever."""
    failed, late = asked(uploads, LogWanted(5)), asked(uploads, LogWanted(5), seconds=-30.0)
    now = datetime.now(UTC)
    result = ResultMessage(Envelope(PUMP, now, "boot", 1), ResultState.FAILED, None, "the disk \x1b is broken")
    with office.registry.write() as transaction:
        messaging.record_result(transaction, PUMP, failed, result, now)
    for upload, kind, words in (
        (failed, FleetError, "pump-07 does not send it: the disk"),
        (late, TimedOut, "pump-07 has not sent it in time"),
    ):
        fetch.list_(None, Output.JSON, office.home.path)
        shown = {each["upload"]: each["state"] for each in json.loads(capsys.readouterr().out)}
        assert {failed: "refused", late: "asked"}[upload] == shown[upload]
        with pytest.raises(kind, match=words):
            fetch._wait(office.home, uploads, uploads.find(upload))
        assert upload not in {each.id for each in uploads.listed()}
