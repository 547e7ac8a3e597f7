"""`enroll export` over a real fleet: what the broker acknowledged to a device is in the sink."""

from __future__ import annotations

import json
import os
import random
import re
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.dataset
import pytest

from tests.processes import Program, command_line, run
from tests.system.agents import Agent, Application, LiveFleet, live_fleet
from tests.system.exports import Device, connected, export, joined_service, lift_rates, ready, rows, until
from tests.unit.enroll.export.lines import parse

(ENROLL,) = command_line("enroll")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveFleet]:
    with live_fleet(tmp_path_factory.mktemp("export"), with_broker=False) as live:
        lift_rates(live.home.path)
        live.start_broker()
        joined_service(live)
        yield live


def killed_again_and_again(fleet: LiveFleet, devices: list[Device], times: int, *args: object) -> None:
    """Publish while the export runs, is killed and started again."""
    draw = random.Random(8)
    assert 0 == ready(export(fleet, *args)).stop()  # from here on the broker keeps what comes
    for _ in range(times):
        with export(fleet, *args) as program:
            ready(program)
            for device in devices:
                device.publish(draw.randint(20, 300))
            program.kill()
        devices[0].publish(draw.randint(0, 30))


def test_killed_at_any_moment_everything_is_in_sqlite_exactly_once(fleet: LiveFleet, tmp_path: Path) -> None:
    """A crash of the export loses what the broker had acknowledged to a device, or counts it twice."""
    path = tmp_path / "telemetry.db"
    with connected(fleet, "sqlite-1") as one, connected(fleet, "sqlite-2") as other:
        killed_again_and_again(fleet, [one, other], 5, "sqlite", path)
        expected = [(d.id, d.boot, seq, "load") for d in (one, other) for seq in sorted(d.acknowledged)]
    with export(fleet, "sqlite", path) as program:
        until(lambda: len(rows(path)) >= len(expected), program.describe)
    assert 0 == program.returncode
    assert expected == rows(path, order="device, seq")


def test_killed_at_any_moment_everything_is_in_parquet(fleet: LiveFleet, tmp_path: Path) -> None:
    """A file is cut off, or what was in none yet is lost."""
    folder = tmp_path / "telemetry"
    with connected(fleet, "parquet-1") as device:
        killed_again_and_again(fleet, [device], 3, "parquet", folder, "--every", "1s")
        with export(fleet, "parquet", folder, "--every", "1s") as program:
            ready(program)
            device.publish(1, "last")
            until(lambda: device.acknowledged[-1] in _seqs(folder, device), program.describe)
    assert 0 == program.returncode
    assert set(device.acknowledged) == set(_seqs(folder, device))


def _seqs(folder: Path, device: Device) -> list[int]:
    if not list(folder.glob("*.parquet")):
        return []
    table = pyarrow.dataset.dataset(folder, format="parquet").to_table()
    return [row["seq"] for row in table.to_pylist() if row["device"] == device.id]


def test_killed_at_any_moment_everything_is_in_whole_lines(fleet: LiveFleet, tmp_path: Path) -> None:
    """A line is cut off and believed, or a reading is lost."""
    path = tmp_path / "telemetry.lp"
    with connected(fleet, "influx-1") as device:
        killed_again_and_again(fleet, [device], 3, "influx", path)
        with export(fleet, "influx", path) as program:
            until(lambda: f"n={device.acknowledged[-1]} " in path.read_text(), program.describe)
    points = {parse(line) for line in path.read_text().splitlines()}
    found = [int(point.field("n")) for point in points if point.tags["device"] == device.id]
    assert sorted(device.acknowledged) == sorted(found)  # what was written twice is the same point


def test_what_a_device_says_cannot_stop_it(fleet: LiveFleet, tmp_path: Path) -> None:
    """One poison message would end the export of all others, or be written as another's."""
    path = tmp_path / "telemetry.db"
    hostile = [
        b"[" * 100_000,
        b'{"a": NaN}',
        b'{"a": 1, "a": 2}',
        b'{"a": "\\ud800"}',
        b"9" * 5000,
        b"\x00\xff",
        b"",
    ]
    with connected(fleet, "hostile-1") as device, export(fleet, "sqlite", path, "--device", "hostile-1") as program:
        ready(program)
        for payload in hostile:
            device.say("raw", payload)
        device.say("load", json.dumps(device.envelope(1) | {"id": "hostile-2", "data": 1}).encode())
        device.say("load", b'{"c": 21.5}')
        device.publish(1)
        device.say_again(1)
        device.publish(1, "last")
        until(lambda: any("last" == row[0] for row in rows(path, "stream")), program.describe)
    assert [(payload,) for payload in hostile] == rows(path, "payload")[: len(hostile)]
    assert [('{"c":21.5}', None), ('{"n":1}', 1), ('{"n":2}', 2)] == rows(path, "data, seq")[len(hostile) :]
    program.wait_for_line(r"message.set_aside .*hostile-2.*the topic says hostile-1", stream="stderr")
    assert "10 messages exported, 1 seen before, 1 set aside" == program.stderr.splitlines()[-1]
    assert 0 == program.returncode


def test_it_waits_for_a_broker_that_is_away(fleet: LiveFleet, tmp_path: Path) -> None:
    """A restart of the broker would end the export, or cost what was acknowledged before it."""
    path = tmp_path / "telemetry.db"
    assert fleet.broker is not None
    with export(fleet, "sqlite", path, "--device", "away-1") as program:
        ready(program)
        with connected(fleet, "away-1") as device:
            device.publish(5)
        fleet.broker.stop()
        program.wait_for_line("export.offline", stream="stderr")
        fleet.start_broker()
        program.wait_for_line("export.online", stream="stderr", after=program.line_count("stderr"))
        with connected(fleet, "away-2") as other:
            other.publish(1)
        until(lambda: 5 == len(rows(path)), program.describe)
    assert 0 == program.returncode
    # What the export had not acknowledged yet when the broker ended comes again, and is known.
    assert re.fullmatch(r"5 messages exported(, [1-5] seen before)?", program.stderr.splitlines()[-1])


@pytest.mark.parametrize("kind", ["sqlite", "influx"])
def test_a_full_disk_is_waited_for(fleet: LiveFleet, tmp_path: Path, kind: str) -> None:
    """What finds no room would be acknowledged and lost, or end the export."""
    path = tmp_path / "telemetry"
    with connected(fleet, f"full-{kind}") as device, export(fleet, kind, path) as program:
        ready(program)
        device.publish(1)
        lines = _lines_of(kind, path, device)
        until(lambda: 1 == len(lines()), program.describe)
        _, hard = resource.prlimit(program.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(program.pid, resource.RLIMIT_FSIZE, (40_000, hard))  # no file grows beyond: EFBIG for ENOSPC
        device.publish(1500)
        program.wait_for_line(rf"export.busy reason=.*{path} cannot be written", stream="stderr")
        before = len(lines())
        assert 0 < before < 1501
        resource.prlimit(program.pid, resource.RLIMIT_FSIZE, (hard, hard))
        program.wait_for_line("export.resumed", stream="stderr")
        until(lambda: 1501 <= len(lines()), program.describe)
        assert device.acknowledged == lines()
    assert 0 == program.returncode


def _lines_of(kind: str, path: Path, device: Device) -> Callable[[], list[int]]:
    """How to read what is in the sink of that device."""
    if kind == "sqlite":
        return lambda: [seq for name, _, seq, _ in rows(path) if name == device.id]
    return lambda: [int(parse(each).field("n")) for each in path.read_text().splitlines() if device.id in each]


def test_only_what_was_asked_for(fleet: LiveFleet, tmp_path: Path) -> None:
    """A database for one site would hold another's telemetry."""
    joined = {}
    for name, group in (("site-1", "north"), ("site-2", "south")):
        joined[name] = fleet.new_agent_home()
        created = fleet.enroll("token", "create", "--device", name, "--group", group, "-o", "json")
        code = json.loads(created.stdout)["code"]
        run("device-agent", "join", code, "--id", name, "--home", joined[name].path).check()
    path = tmp_path / "telemetry.db"
    with export(fleet, "sqlite", path, "--group", "north", "--stream", "load", "--stream", "last") as program:
        ready(program)
        for name in ("site-2", "site-1"):
            with Agent(joined[name]).wait_ready() as agent, Application(agent.home) as firmware:
                for stream in ("flow", "load", "last"):
                    firmware.say(type="telemetry", stream=stream, data={"from": name}, qos=1)
                if name == "site-1":
                    until(lambda: 2 == len(rows(path)), program.describe)
    assert [("site-1", "load", '{"from":"site-1"}'), ("site-1", "last", '{"from":"site-1"}')] == rows(
        path, "device, stream, data"
    )
    assert program.stderr.splitlines()[-1].startswith("2 messages exported, ")


def test_a_service_elsewhere_asks_where_the_broker_is(fleet: LiveFleet, tmp_path: Path) -> None:
    """An export would run on the fleet's own host and nowhere else."""
    joined_service(fleet, "elsewhere", tmp_path / "service")
    with (
        connected(fleet, "far-1") as device,
        Program("enroll", "export", "influx", "--identity", tmp_path / "service", "--count", 2) as program,
    ):
        program.wait_for_line("^export: ready stdout$", stream="stderr")
        device.publish(2)
        assert 0 == program.wait()
    assert [1, 2] == [int(parse(line).field("n")) for line in program.stdout.splitlines()]


def test_it_ends_after_as_many_as_were_asked_for(fleet: LiveFleet, tmp_path: Path) -> None:
    """A script would wait for ever, or what it did not ask for is acknowledged and lost to the next run."""
    path = tmp_path / "telemetry.db"
    with connected(fleet, "count-1") as device, export(fleet, "sqlite", path, "--count", 3) as program:
        ready(program)
        device.publish(5)
        assert 0 == program.wait()
    assert 3 == len(rows(path))
    with export(fleet, "sqlite", path, "--count", 2) as program:
        assert 0 == program.wait()
    assert [1, 2, 3, 4, 5] == [seq for (seq,) in rows(path, "seq")]
    assert f"export: ready {path}\n" == program.stdout
    log, last = program.stderr.splitlines()
    assert 'INFO export.online broker="127.0.0.1:' in log
    assert "2 messages exported" == last


def test_it_says_why_nothing_came(fleet: LiveFleet, tmp_path: Path) -> None:
    """A script would take a broker that was never there for a quiet fleet."""
    done = run(
        *("enroll", "export", "sqlite", tmp_path / "t.db", "--home", fleet.home.path),
        *("--broker", "mqtts://127.0.0.1:1", "--for", "1s"),
    )
    assert (5, "") == (done.returncode, done.stdout)
    *_, summary, error, hint = done.stderr.splitlines()
    assert "0 messages exported" == summary
    assert "error: 127.0.0.1:1: connection refused" == error
    assert hint.startswith("hint: ")


def test_it_ends_while_nobody_reads_its_lines(fleet: LiveFleet, tmp_path: Path) -> None:
    """SIGTERM would not end an export whose reader hangs, or what nobody read is acknowledged."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    options = f"--home '{fleet.home.path}' --device hangs-1"
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with (
            connected(fleet, "hangs-1") as device,
            Program("bash", "-c", f"exec {ENROLL} export influx {options} > {pipe}") as program,
        ):
            program.wait_for_line("^export: ready stdout$", stream="stderr")
            device.publish(3000)  # more than a pipe holds
            program.terminate()
            assert 0 == program.wait()
        os.set_blocking(reader, True)
        read = b"".join(iter(lambda: os.read(reader, 65_536), b""))
    finally:
        os.close(reader)
    assert read.endswith(b"\n")
    assert len({int(parse(line).field("n")) for line in read.decode().splitlines()}) < 3000
    with export(fleet, "influx", "--device", "hangs-1") as program:
        program.wait_for_line(" n=3000 ")


def test_a_service_that_was_revoked_is_told(fleet: LiveFleet, tmp_path: Path) -> None:
    """It would try for ever, and nobody know why nothing comes."""
    service = joined_service(fleet, "revoked", tmp_path / "service")
    options = ("--identity", service.path, "--home", fleet.home.path)
    with Program("enroll", "export", "sqlite", tmp_path / "t.db", *options) as program:
        ready(program)
        fleet.enroll("device", "revoke", "revoked", "--yes")
        program.wait_for_line("export.offline", stream="stderr")
        program.wait_for_line("export.offline .*refuses: not authori", stream="stderr")
    assert 0 == program.returncode
    done = run("enroll", "export", "sqlite", tmp_path / "t.db", *options)
    assert 4 == done.returncode
    *_, summary, error, hint = done.stderr.splitlines()
    assert "0 messages exported" == summary
    assert "refuses: not authori" in error
    assert "hint: enroll device show says its state" == hint
