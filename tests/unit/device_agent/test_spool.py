"""The file of messages that wait, with real files: whole, small, and never a reason to stop."""

from __future__ import annotations

import json
import os
import random
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from device_agent.core.effects import OpenSpool, ReadSpool, Removal, Row, Trim, WriteSpool
from device_agent.core.events import SpoolFailed, SpoolOpened, SpoolRead, SpoolWritten, Trimmed
from device_agent.core.shelf import Bounds, Shelf
from device_agent.outbox import Class, Losses, Outgoing
from device_agent.spool import SpoolFile
from fleet.identity import DeviceId
from fleet.layout import AgentHome

PUMP = DeviceId("pump-07")
TOPIC = "devices/pump-07/up/telemetry/pressure"
# What the reference firmware sends once a second, with the agent's envelope: 140 bytes.
PAYLOAD = (
    b'{"v":1,"id":"pump-07","ts":"2026-11-21T08:00:00.000Z","boot":"0123456789abcdef","seq":604800,'
    b'"data":{"pressure_bar":3.211,"simulated":true}}'
)
WEEK_SECONDS = 7 * 24 * 60 * 60


@pytest.fixture(name="spool")
def _spool(tmp_path: Path) -> Iterator[SpoolFile]:
    spool = SpoolFile(AgentHome(tmp_path), PUMP)
    yield spool
    spool.close()


def rows(first: int, count: int, kind: Class = Class.TELEMETRY, payload: bytes = PAYLOAD, at: int = 0) -> list[Row]:
    """Rows as the core numbers them, of one size each."""
    made = []
    for number in range(first, first + count):
        message = Outgoing(number, kind, TOPIC, payload)
        made.append(Row(kind, number, at, number * message.disk_bytes, message))
    return made


def write(
    spool: SpoolFile, *written: Row, removals: tuple[Removal, ...] = (), trims: tuple[Trim, ...] = ()
) -> tuple[Trimmed, ...]:
    event = spool.perform(WriteSpool(written, removals, trims, Losses()))
    assert isinstance(event, SpoolWritten), event
    return event.trimmed


def numbers(spool: SpoolFile, after: int = 0, kind: Class = Class.TELEMETRY, max_bytes: int = 1 << 20) -> list[int]:
    event = spool.perform(ReadSpool(kind, after, 50, max_bytes))
    assert isinstance(event, SpoolRead), event
    return [each.row for each in event.messages]


def reopened(spool: SpoolFile) -> SpoolOpened:
    """What the next run of the agent finds."""
    spool.close()
    event = spool.perform(OpenSpool())
    assert isinstance(event, SpoolOpened), event
    return event


def test_without_messages_there_is_no_file_and_no_sqlite(tmp_path: Path) -> None:
    """Every start would wear the card, and every idle agent would carry two megabytes it does not use."""
    code = (
        "import sys; from pathlib import Path; from device_agent.spool import SpoolFile;"
        "from device_agent.core.effects import OpenSpool; from fleet.layout import AgentHome;"
        "from fleet.identity import DeviceId;"
        "SpoolFile(AgentHome(Path(sys.argv[1])), DeviceId('pump-07')).perform(OpenSpool());"
        "sys.exit('sqlite3' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert [] == list(tmp_path.iterdir())


def test_what_was_written_is_there_after_a_restart_in_its_order(spool: SpoolFile) -> None:
    """A power cut would lose what the firmware had measured, or mix it up."""
    write(spool, *rows(1, 3), *rows(1, 2, Class.ALARM, at=7))
    size = rows(1, 1)[0].message.disk_bytes
    expected = SpoolOpened(Shelf(3, 0, 3 * size, 3 * size), Shelf(2, 0, 2 * size, 2 * size), second=7)
    assert expected == reopened(spool)
    event = spool.perform(ReadSpool(Class.TELEMETRY, 0, 50, 1 << 20))
    assert isinstance(event, SpoolRead)
    assert [(1, TOPIC, PAYLOAD), (2, TOPIC, PAYLOAD), (3, TOPIC, PAYLOAD)] == [
        (each.row, each.topic, each.payload) for each in event.messages
    ]


def test_what_the_broker_has_is_gone(spool: SpoolFile) -> None:
    """It would be sent again after the next restart."""
    write(spool, *rows(1, 9))
    write(spool, removals=(Removal(Class.TELEMETRY, 3, (5, 6)),))
    assert [4, 7, 8, 9] == numbers(spool)
    assert (3, 9) == (reopened(spool).telemetry.loaded, reopened(spool).telemetry.last)


def test_a_page_is_bounded_in_messages_and_in_bytes(spool: SpoolFile) -> None:
    """An outage would come back into the memory whole."""
    write(spool, *rows(1, 60))
    assert list(range(1, 51)) == numbers(spool)
    assert [51, 52] == numbers(spool, after=50, max_bytes=2 * len(PAYLOAD) + 1)
    assert [60] == numbers(spool, after=59, max_bytes=1)


def test_the_oldest_are_dropped_by_size_and_counted_over_restarts(spool: SpoolFile) -> None:
    """The card would fill, or the fleet would never learn that something is missing."""
    write(spool, *rows(1, 10))
    size = rows(1, 1)[0].message.disk_bytes
    [trimmed] = write(spool, trims=(Trim(Class.TELEMETRY, 2, 0, 3 * size - 1),))
    assert Trimmed(Class.TELEMETRY, 5, 3, 3 * size) == trimmed
    assert [1, 2, 6, 7, 8, 9, 10] == numbers(spool)
    assert Losses(telemetry=3) == reopened(spool).losses


def test_what_is_too_old_is_dropped(spool: SpoolFile) -> None:
    """A device that was away for months would bury what matters under what nobody wants any more."""
    write(spool, *rows(1, 2, at=5), *rows(3, 2, at=9))
    [trimmed] = write(spool, trims=(Trim(Class.TELEMETRY, 0, 9, 0),))
    assert (2, 2) == (trimmed.upto, trimmed.count)
    assert () == write(spool, trims=(Trim(Class.TELEMETRY, 2, 9, 0),))


def test_a_week_of_one_message_a_second_fits(spool: SpoolFile) -> None:
    """The default bound would drop what it is there to keep: 7 x 86,400 s = 604,800 messages."""
    sample = 20_000
    for first in range(1, sample + 1, 1_000):
        write(spool, *rows(first, 1_000))
    spool.close()
    counted = rows(1, 1)[0].message.disk_bytes
    on_disk = sum(path.stat().st_size for path in spool.path.parent.iterdir())
    assert on_disk <= sample * counted, "the bound counts less than what is on disk"
    assert 604_800 == WEEK_SECONDS
    assert 209 == counted
    assert 126_403_200 == WEEK_SECONDS * counted
    assert WEEK_SECONDS * counted <= Bounds().max_bytes // 2, "and twice that, for larger messages"


def test_the_file_is_small_again_after_an_outage(spool: SpoolFile) -> None:
    """A week offline would take a quarter of a gigabyte of a small card for ever."""
    write(spool, *rows(1, 9_000))
    assert spool.path.stat().st_size + spool.path.with_name("spool.db-wal").stat().st_size > 1 << 20
    write(spool, removals=(Removal(Class.TELEMETRY, 9_000),))
    assert spool.path.stat().st_size < 64 * 1024
    write(spool, *rows(9_001, 1))
    assert [9_001] == numbers(spool, after=9_000)


def test_nobody_else_can_read_it(spool: SpoolFile) -> None:
    """Another user of the machine could read what the device measures."""
    old = os.umask(0)
    try:
        write(spool, *rows(1, 1))
    finally:
        os.umask(old)
    assert {0o600} == {path.stat().st_mode & 0o777 for path in spool.path.parent.iterdir()}


@pytest.mark.parametrize("damage", ["garbage", "header", "empty-schema", "other-version", "half", "text"])
def test_a_damaged_file_is_kept_aside_and_the_agent_goes_on(damage: str, spool: SpoolFile) -> None:
    """A worn card would keep the device offline in a loop of crashes."""
    write(spool, *rows(1, 400))
    spool.close()
    data = bytearray(spool.path.read_bytes())
    match damage:
        case "garbage":
            data = bytearray(random.Random(1).randbytes(len(data)))
        case "header":
            data[:16] = b"not a database!!"
        case "half":
            data = data[: len(data) // 2]
        case "text":
            data[200:] = random.Random(2).randbytes(len(data) - 200)
    spool.path.write_bytes(data)
    if damage in ("empty-schema", "other-version"):
        statement = "DROP TABLE alarm" if damage == "empty-schema" else "PRAGMA user_version = 99"
        with sqlite3.connect(spool.path) as database:
            database.execute(statement)
        database.close()
    event = spool.perform(OpenSpool())
    for _ in range(20):
        if isinstance(event, SpoolOpened) and event.problem:
            break
        event = spool.perform(ReadSpool(Class.TELEMETRY, 0, 50, 1 << 20))
    assert isinstance(event, SpoolOpened)
    assert str(spool.damaged_path) in event.problem
    assert spool.damaged_path.exists()
    write(spool, *rows(1, 1))
    assert [1] == numbers(spool)
    assert "" == reopened(spool).problem


def test_a_row_whose_bytes_changed_is_counted_and_never_sent(spool: SpoolFile) -> None:
    """The fleet would take noise for a measurement: SQLite has no checksum of what a page holds."""
    write(spool, *rows(1, 3))
    spool.close()
    data = spool.path.read_bytes()
    at = data.index(b"3.211", data.index(b"3.211") + 1)
    spool.path.write_bytes(data[:at] + b"9.999" + data[at + 5 :])
    event = spool.perform(ReadSpool(Class.TELEMETRY, 0, 50, 1 << 20))
    assert isinstance(event, SpoolRead)
    assert (2, 1, 3) == (len(event.messages), event.damaged, event.upto)


def test_a_log_without_its_file_is_not_taken_for_the_next_ones(spool: SpoolFile) -> None:
    """A crash while a damaged file is kept aside would damage its successor."""
    write(spool, *rows(1, 30))
    wal = spool.path.with_name("spool.db-wal")
    data = wal.read_bytes()
    spool.close()
    spool.path.unlink()
    wal.write_bytes(data)
    assert SpoolOpened() == spool.perform(OpenSpool())
    write(spool, *rows(1, 1))
    assert [1] == numbers(spool)


@pytest.mark.parametrize("cut", range(9))
def test_a_torn_end_of_the_log_costs_the_last_group_and_no_more(cut: int, spool: SpoolFile, tmp_path: Path) -> None:
    """A power cut in mid-write would cost what was on disk long before."""
    for first in (1, 11, 21):
        write(spool, *rows(first, 10))
    home = tmp_path / "after"
    home.mkdir()
    (home / "spool.db").write_bytes(spool.path.read_bytes())
    log = spool.path.with_name("spool.db-wal").read_bytes()
    frame = 4096 + 24
    end = len(log) - cut * frame // 4
    garbled = random.Random(cut).randbytes(min(frame, len(log) - end)) if cut % 2 else b""
    (home / "spool.db-wal").write_bytes(log[:end] + garbled)
    after = SpoolFile(AgentHome(home), PUMP)
    opened = reopened(after)
    assert "" == opened.problem
    assert opened.telemetry.last in (10, 20, 30)
    if not cut:
        assert 30 == opened.telemetry.last
    if opened.telemetry.last:
        assert list(range(1, opened.telemetry.last + 1)) == numbers(after)
    after.close()


def test_a_full_disk_is_an_answer_and_the_next_write_may_succeed(spool: SpoolFile) -> None:
    """A device with a full card would crash, or would never write again."""
    write(spool, *rows(1, 5))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, hard))
    try:
        event = spool.perform(WriteSpool(tuple(rows(6, 1, payload=b"x" * 200_000)), (), (), Losses()))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert isinstance(event, SpoolFailed)
    write(spool, *rows(6, 2))
    assert [1, 2, 3, 4, 5, 6, 7] == numbers(spool)


def test_a_file_that_cannot_be_read_for_long_is_given_up(spool: SpoolFile) -> None:
    """A device would wait for ever for old messages, and hold the new ones back."""
    write(spool, *rows(1, 5))
    spool.close()
    spool.path.unlink()
    spool.path.mkdir()
    events = [spool.perform(ReadSpool(Class.TELEMETRY, 0, 50, 1 << 20)) for _ in range(3)]
    assert [SpoolFailed, SpoolFailed, SpoolOpened] == [type(event) for event in events]
    write(spool, *rows(1, 1))


def test_losses_are_remembered_until_they_were_told(spool: SpoolFile) -> None:
    """A restart would make the fleet believe that nothing is missing."""
    spool.perform(WriteSpool((), (), (), Losses(4, 1)))
    assert Losses(4, 1) == reopened(spool).losses
    spool.perform(WriteSpool((), (), (), Losses()))
    assert Losses() == reopened(spool).losses


def test_the_payload_of_the_arithmetic_is_a_message() -> None:
    """The arithmetic would be about something that no device sends."""
    assert {"v", "id", "ts", "boot", "seq", "data"} == set(json.loads(PAYLOAD))
    assert 140 == len(PAYLOAD)
