"""What each sink keeps, and what a crash at each of its steps leaves."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.dataset
import pyarrow.parquet
import pytest

from enroll.export.influx_sink import InfluxFile
from enroll.export.parquet_sink import SPOOL, ParquetSink, Portion
from enroll.export.readings import Reading, read
from enroll.export.sink import SinkBusy, Written
from enroll.export.sqlite_sink import SqliteSink
from fleet.errors import FleetError
from fleet.identity import DeviceId
from fleet.messages import Envelope, encode_object
from tests.unit.enroll.export.lines import parse

AT = datetime(2026, 11, 21, 8, 0, tzinfo=UTC)


def reading(seq: int, data: Any = 21, stream: str = "load", boot: str = "b1") -> Reading:
    """As the agent sends it."""
    fields = Envelope(DeviceId("pump-07"), AT, boot, seq).fields() | {"data": data}
    return read(f"devices/pump-07/up/telemetry/{stream}", encode_object(fields), AT)


def raw(payload: bytes) -> Reading:
    return read("devices/pump-07/up/telemetry/load", payload, AT)


def table(path: Path, columns: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as database:
        return database.execute(f"SELECT {columns} FROM telemetry ORDER BY n").fetchall()


def test_a_row_of_the_database(tmp_path: Path) -> None:
    """Queries that docs/sinks.md shows would find something else."""
    path = tmp_path / "t.db"
    with closing(SqliteSink(path)) as sink:
        assert Written(3) == sink.write([reading(7, {"cpu": 0.5}), raw(b"21"), raw(b"\x00\xff")])
    at = "2026-11-21T08:00:00.000Z"
    assert [
        ("pump-07", "load", "b1", 7, at, at, '{"cpu":0.5}', None),
        ("pump-07", "load", None, None, None, at, "21", None),
        ("pump-07", "load", None, None, None, at, None, b"\x00\xff"),
    ] == table(path, "device, stream, boot, seq, sent_at, received_at, data, payload")


def test_the_key_is_device_boot_seq_and_stream(tmp_path: Path) -> None:
    """A message that comes twice would be there twice, or another would be taken for it."""
    with closing(SqliteSink(tmp_path / "t.db")) as sink:
        assert Written(1, seen_before=1) == sink.write([reading(1), reading(1, "other")])
        assert Written(3) == sink.write([reading(2), reading(1, stream="flow"), reading(1, boot="b2")])
        assert Written(2) == sink.write([raw(b"1"), raw(b"1")])
    with closing(SqliteSink(tmp_path / "t.db")) as sink:
        assert Written(0, seen_before=1) == sink.write([reading(1)])


def test_what_somebody_locks_is_written_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long transaction of somebody else's would end the export, or lose a batch."""
    monkeypatch.setattr("enroll.export.sqlite_sink._BUSY_SECONDS", 0.01)
    path = tmp_path / "t.db"
    with closing(SqliteSink(path)) as sink:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(SinkBusy, match="locked"):
                sink.write([reading(1)])
            other.execute("ROLLBACK")
        assert Written(1) == sink.write([reading(1)])


def test_a_database_that_was_taken_away_is_not_written(tmp_path: Path) -> None:
    """What the broker need not send again would go into a file without a name."""
    path = tmp_path / "t.db"
    with closing(SqliteSink(path)) as sink:
        sink.write([reading(1)])
        path.rename(tmp_path / "archive.db")
        with pytest.raises(FleetError, match="was moved or removed meanwhile"):
            sink.write([reading(2)])


@pytest.mark.parametrize("content", [b"not a database, but long enough to be one of another kind" * 20, None])
def test_a_file_of_somebody_elses_is_not_touched(tmp_path: Path, content: bytes | None) -> None:
    """A slip of the hand would end in somebody's table or file."""
    path = tmp_path / "t.db"
    if content is None:
        with closing(sqlite3.connect(path)) as database:
            database.execute("CREATE TABLE telemetry (a)")
    else:
        path.write_bytes(content)
    with pytest.raises(FleetError, match="is not a database that an export made"):
        SqliteSink(path)


def test_two_exports_do_not_share_a_target(tmp_path: Path) -> None:
    """Two would take each other's session, and lines of one would stand inside those of the other."""
    with closing(SqliteSink(tmp_path / "t.db")), pytest.raises(FleetError, match="another export writes to"):
        SqliteSink(tmp_path / "t.db")
    with closing(InfluxFile(tmp_path / "t.lp")), pytest.raises(FleetError, match="another export writes to"):
        InfluxFile(tmp_path / "t.lp")
    with closing(_parquet(tmp_path)), pytest.raises(FleetError, match="another export writes to"):
        _parquet(tmp_path)


def test_a_line_of_influx(tmp_path: Path) -> None:
    """InfluxDB would get other names, or a message without its time."""
    path = tmp_path / "t.lp"
    with closing(InfluxFile(path)) as sink:
        left_out = [raw(b"\x00"), reading(8, None), raw(b"[]")]
        assert Written(1, left_out=3) == sink.write([reading(7, {"cpu": {"load": 0.5}, "on": True}), *left_out])
    assert "load,device=pump-07 cpu.load=0.5,on=true 1795248000000000007\n" == path.read_text()


def test_a_time_that_influx_cannot_keep_is_the_time_of_arrival(tmp_path: Path) -> None:
    """A clock that is wrong by centuries would make InfluxDB refuse the batch."""
    fields = Envelope(DeviceId("pump-07"), AT.replace(year=9999), "b", 1).fields() | {"c": 1}
    with closing(InfluxFile(tmp_path / "t.lp")) as sink:
        sink.write([raw(encode_object(fields))])
    assert 1_795_248_000_000_000_000 == parse((tmp_path / "t.lp").read_text().strip()).nanoseconds


def test_a_line_that_a_crash_cut_is_removed(tmp_path: Path) -> None:
    """`value=2` of `value=21.5` would be believed."""
    path = tmp_path / "t.lp"
    whole = "load,device=pump-07 value=20 1\n" + f'load,device=pump-07 text="{"x" * 100_000}" 2\n'
    path.write_text(whole + f'load,device=pump-07 text="{"y" * 100_000}')
    InfluxFile(path).close()
    assert whole == path.read_text()
    path.write_text("load,device=pump-07 value=2")
    InfluxFile(path).close()
    assert "" == path.read_text()


def test_lines_of_somebody_elses_are_not_cut(tmp_path: Path) -> None:
    """A slip of the hand would cost the end of somebody's file."""
    path = tmp_path / "notes.txt"
    path.write_text("first line\nlast line, without an end")
    with pytest.raises(FleetError, match="is not a file that an export made"):
        InfluxFile(path)
    assert path.read_text().endswith("without an end")


def test_a_file_that_was_moved_away_is_made_anew(tmp_path: Path) -> None:
    """Rotation would need a restart, or lines go where nobody looks."""
    path = tmp_path / "t.lp"
    with closing(InfluxFile(path)) as sink:
        sink.write([reading(1)])
        path.rename(tmp_path / "t.lp.1")
        sink.write([reading(2)])
    assert (1, 1) == (len((tmp_path / "t.lp.1").read_text().splitlines()), len(path.read_text().splitlines()))


def _parquet(folder: Path, now: Sequence[datetime] = (AT,), **portion: Any) -> ParquetSink:
    """A sink whose clock shows the last of `now`."""
    return ParquetSink(folder / "out", Portion(**portion), lambda: now[-1])


def _seqs(folder: Path) -> list[int]:
    found = pyarrow.dataset.dataset(folder / "out", format="parquet").to_table().to_pydict()["seq"]
    return sorted(found)


def test_a_row_of_parquet(tmp_path: Path) -> None:
    """Programs that read the files would find other columns than docs/sinks.md gives."""
    with closing(_parquet(tmp_path)) as sink:
        sink.write([reading(7, {"cpu": 0.5}), raw(b"\x00\xff")])
    (path,) = (tmp_path / "out").glob("*.parquet")
    assert "telemetry-20261121T080000Z-000000000002.parquet" == path.name
    common = {"device": "pump-07", "stream": "load", "received_at": AT}
    assert [
        common | {"boot": "b1", "seq": 7, "sent_at": AT, "data": '{"cpu":0.5}', "payload": None},
        common | {"boot": None, "seq": None, "sent_at": None, "data": None, "payload": b"\x00\xff"},
    ] == pyarrow.parquet.read_table(path).to_pylist()


@pytest.mark.parametrize("portion", [{"rows": 3}, {"size_bytes": 250}, {"span": timedelta(seconds=1)}])
def test_when_a_file_is_made(tmp_path: Path, portion: dict[str, Any]) -> None:
    """A file would wait for ever, or there would be one for each message."""
    now = [AT]
    with closing(_parquet(tmp_path, now, **portion)) as sink:
        sink.write([reading(1), reading(2)])
        sink.tend()
        assert [] == list((tmp_path / "out").glob("*.parquet"))
        sink.write([reading(3)])
        now.append(AT + timedelta(seconds=1))
        sink.tend()
        assert [1, 2, 3] == _seqs(tmp_path)
        sink.tend()
    assert 1 == len(list((tmp_path / "out").glob("*.parquet")))


@contextmanager
def _crash(folder: Path) -> Iterator[ParquetSink]:
    """A sink that ends as with kill -9: what is in the spool by then is all that there is."""
    sink, before = _parquet(folder, span=timedelta(days=1)), folder / "before"
    yield sink
    shutil.copytree(folder / "out", before)
    sink.close()
    shutil.rmtree(folder / "out")
    before.rename(folder / "out")


def test_what_is_in_the_spool_at_a_crash_is_in_the_next_file(tmp_path: Path) -> None:
    """What the broker need not send again would be gone."""
    with _crash(tmp_path) as sink:
        sink.write([reading(1), reading(2)])
    with closing(_parquet(tmp_path)) as again:
        assert Written(1, seen_before=1) == again.write([reading(2), reading(3)])
    assert [1, 2, 3] == _seqs(tmp_path)


@pytest.mark.parametrize("is_written", [False, True])
def test_a_file_that_a_crash_interrupted_is_made_once(tmp_path: Path, is_written: bool) -> None:
    """Its rows would be lost, or stand in two files."""
    name = "telemetry-20261121T075900Z-000000000002.parquet"
    with _crash(tmp_path) as sink:
        sink.write([reading(1), reading(2)])
    with closing(sqlite3.connect(tmp_path / "out" / SPOOL)) as spool, spool:
        spool.execute("UPDATE state SET rolling = 2, name = ?", (name,))
    (tmp_path / "out" / f".{name}.partial").write_bytes(b"PAR1 and no more")
    if is_written:
        (tmp_path / "out" / name).write_bytes(b"what was here before")
    with closing(_parquet(tmp_path)) as again:
        assert Written(0, seen_before=1) == again.write([reading(2)])
    assert [1, 2] == _seqs(tmp_path)
    assert [SPOOL, name] == sorted(path.name for path in (tmp_path / "out").iterdir())


def test_a_file_that_cannot_be_written_waits(tmp_path: Path) -> None:
    """A full disk would end the export, or what is in the spool be taken for written."""
    now = [AT]
    with closing(_parquet(tmp_path, now, rows=1)) as sink:
        sink.write([reading(1)])
        in_the_way = tmp_path / "out" / ".telemetry-20261121T080000Z-000000000001.parquet.partial"
        in_the_way.mkdir()
        for _ in range(2):
            with pytest.raises(SinkBusy, match="no file can be written in"):
                sink.tend()
        assert Written(1) == sink.write([reading(2)])
        in_the_way.rmdir()
        now.append(AT + timedelta(seconds=10))
        sink.tend()
        sink.tend()
        assert [1, 2] == _seqs(tmp_path)
