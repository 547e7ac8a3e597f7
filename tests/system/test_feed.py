"""What a broker makes of its feed, over real sockets: lines in any order, failed look-ups, a registry from a backup."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509

from fleet import directory, pki
from fleet.directory import Current, Entry
from fleet.identity import Serial, State
from fleet.layout import AdminHome, IdentityFiles
from tests import mqtt
from tests.fleets import new_home
from tests.processes import Program, run
from tests.system.brokers import enrol, peer, revoke, start_broker, start_service, wait_ready
from tests.system.feeds import FEED, Script, Stream, scripted

NOT_AUTHORIZED = b"\x20\x02\x00\x05"


@pytest.fixture
def home(tmp_path: Path) -> AdminHome:
    return new_home(tmp_path / "fleet")


@pytest.fixture
def script(home: AdminHome) -> Iterator[Script]:
    with scripted(home) as found:
        yield found


def answer_to(home: AdminHome, files: IdentityFiles, broker: Program, device: str) -> bytes:
    """What a CONNECT is answered with."""
    with peer(home, files, wait_ready(broker)) as found:
        return found.ask(mqtt.connect(device))


def begun(script: Script) -> Stream:
    """A broker that has its first snapshot."""
    stream = script.next_stream()
    assert {} == stream.asked
    stream.send(*script.snapshot())
    return stream


def wait_until_kept(broker: Program, entry: Entry) -> None:
    """Until the broker has the entry on its disk, and has told the engine."""
    broker.wait_for_line(rf"directory\.kept .*newest={entry.seq}$", stream="stderr")


def test_an_older_line_that_comes_later_lets_nobody_in_again(home: AdminHome, script: Script) -> None:
    """A line that was late, or a look-up that was slow, would undo a revocation."""
    pump = enrol(home, "pump-07")
    active = script.entry("pump-07")
    revoked = replace(active, seq=active.seq + 5, state=State.REVOKED)
    with start_broker(home) as broker:
        stream = begun(script)
        with peer(home, pump, wait_ready(broker)) as live:
            assert mqtt.ACCEPTED == live.ask(mqtt.connect("pump-07"))
            stream.send(revoked)
            assert live.is_closed()
        last = replace(script.entry("admin"), seq=revoked.seq + 1)
        stream.send(replace(active, seq=active.seq + 1), replace(active, seq=revoked.seq - 1), last)
        wait_until_kept(broker, last)
        assert NOT_AUTHORIZED == answer_to(home, pump, broker, "pump-07")


def test_a_look_up_that_failed_is_asked_again(home: AdminHome, script: Script) -> None:
    """A device that enrolled while the service had a hiccup would be locked out until the broker restarts."""
    with start_broker(home) as broker:
        begun(script)
        wait_ready(broker)
        pump = enrol(home, "pump-07")
        entry = script.entry("pump-07")
        (serial,) = entry.serials
        failures = [(503, b"busy"), (200, b"rubbish\n"), (404, b"")]
        script.answers[serial] = [*failures, (200, directory.encode(entry))]
        for _ in failures:
            assert NOT_AUTHORIZED == answer_to(home, pump, broker, "pump-07")
        assert mqtt.ACCEPTED == answer_to(home, pump, broker, "pump-07")
        assert 4 == len(script.looked_up)
        assert mqtt.ACCEPTED == answer_to(home, pump, broker, "pump-07")
        assert 4 == len(script.looked_up), "whoever is known is asked for again"


def test_a_look_up_does_not_let_in_who_is_known_as_revoked(home: AdminHome, script: Script) -> None:
    """A service that is behind, or another one in its place, would bring a thief back by an answer."""
    pump, other = enrol(home, "pump-07"), enrol(home, "pump-08")
    active = script.entry("pump-07")
    with start_broker(home) as broker:
        stream = begun(script)
        gone = replace(active, seq=active.seq + 5, state=State.REVOKED, serials=frozenset())
        stream.send(gone)
        wait_until_kept(broker, gone)
        script.answers = {serial: [(200, directory.encode(active))] for serial in active.serials}
        assert NOT_AUTHORIZED == answer_to(home, pump, broker, "pump-07")
        assert active.serials == {*script.looked_up}
        assert mqtt.ACCEPTED == answer_to(home, other, broker, "pump-08")


def test_nobody_waits_for_a_service_that_is_away(home: AdminHome) -> None:
    """Whoever is not listed would be kept at the door, and so would a broker's own start, which proves that one is."""
    with start_broker(home) as broker:
        with start_service(home):
            wait_ready(broker)
        broker.wait_for_line(r"directory\.not_followed", stream="stderr")
        assert NOT_AUTHORIZED == answer_to(home, enrol(home, "pump-08"), broker, "pump-08")
        broker.wait_for_line(r"directory\.look_up_failed .*the directory is not followed", stream="stderr")


@pytest.mark.parametrize("damage", [b"", b'{"type": "ent', b"{}\n", b"x" * 70_000])
def test_a_stream_that_breaks_is_followed_anew_from_where_it_was(
    home: AdminHome, script: Script, damage: bytes
) -> None:
    """One bad line would end the feed for good, or cost a whole snapshot."""
    pump = enrol(home, "pump-07")
    active = script.entry("pump-07")
    with start_broker(home) as broker:
        stream = begun(script)
        stream.send(Current(FEED, active.seq + 3, "7-ab"))
        stream.send_raw(damage)
        if damage:
            stream.send_raw(b"")
        again = script.next_stream()
        assert {"after": str(active.seq + 3), "feed": FEED, "log": "7-ab"} == again.asked
        with peer(home, pump, wait_ready(broker)) as live:
            assert mqtt.ACCEPTED == live.ask(mqtt.connect("pump-07"))
            again.send(replace(active, seq=active.seq + 4, state=State.SUSPENDED))
            assert live.is_closed()
    assert "Traceback" not in broker.stderr


def test_a_broker_that_is_revoked_says_so_and_goes_on_with_what_it_knows(home: AdminHome) -> None:
    """A mistyped id would end every connection of a site, or nobody would know why revocations do not arrive."""
    pump = enrol(home, "pump-07")
    with start_service(home) as service, start_broker(home) as broker:
        wait_ready(service)
        with peer(home, pump, wait_ready(broker)) as live:
            assert mqtt.ACCEPTED == live.ask(mqtt.connect("pump-07"))
            revoke(home, "broker")
            reason = "the enrollment service answered 403: broker/broker is revoked"
            broker.wait_for_line(rf'directory\.not_followed reason="{reason}"$', stream="stderr")
            live.sync()


def backup_of(home: AdminHome, to: Path) -> None:
    with closing(sqlite3.connect(home.registry)) as source, closing(sqlite3.connect(to)) as target:
        source.backup(target)
    to.chmod(0o600)


def restore(home: AdminHome, backup: Path) -> None:
    for suffix in ("-wal", "-shm"):
        home.registry.with_name(home.registry.name + suffix).unlink(missing_ok=True)
    backup.replace(home.registry)


def serial_in(files: IdentityFiles) -> Serial:
    return pki.serial_of(x509.load_pem_x509_certificate(files.certificate.read_bytes()))


def test_after_a_backup_was_restored_brokers_keep_what_they_know_until_an_admin_decides(
    home: AdminHome, tmp_path: Path
) -> None:
    """A backup from before a theft would let the thief in; or brokers would not hear what happens after it."""
    pump, valve, stolen = enrol(home, "pump-07"), enrol(home, "valve-1"), enrol(home, "meter-1")
    with start_broker(home) as broker:
        with start_service(home) as service:
            wait_ready(service)
            port = wait_ready(broker)
            backup_of(home, tmp_path / "backup.db")
            assert mqtt.ACCEPTED == answer_to(home, stolen, broker, "meter-1")
            run("enroll", "cert", "revoke", serial_in(stolen), "--yes", "--home", home.path).check()
            with peer(home, pump, port) as live:
                assert mqtt.ACCEPTED == live.ask(mqtt.connect("pump-07"))
                revoke(home, "pump-07")
                assert live.is_closed()
            lost = enrol(home, "pump-08")
            assert mqtt.ACCEPTED == answer_to(home, lost, broker, "pump-08")
            service.kill()
        restore(home, tmp_path / "backup.db")
        for number in range(10):  # it has gone on: its numbers are higher than those that the broker has seen
            enrol(home, f"new-{number}")
        with peer(home, valve, port) as live, start_service(home) as service:
            assert mqtt.ACCEPTED == live.ask(mqtt.connect("valve-1"))
            wait_ready(service)
            broker.wait_for_line(r"directory\.revocations_kept count=2 ids=.meter-1 pump-07", stream="stderr")
            live.sync()
            assert NOT_AUTHORIZED == answer_to(home, stolen, broker, "meter-1")
            assert NOT_AUTHORIZED == answer_to(home, pump, broker, "pump-07")
            assert NOT_AUTHORIZED == answer_to(home, lost, broker, "pump-08")
            for verb in ("suspend", "resume"):
                mark = broker.line_count("stderr")
                run("enroll", "device", verb, "pump-07", "--home", home.path).check()
                broker.wait_for_line(r"directory\.kept", stream="stderr", after=mark)
            assert mqtt.ACCEPTED == answer_to(home, pump, broker, "pump-07")
            revoke(home, "valve-1")
            assert live.is_closed()
    assert "Traceback" not in broker.stderr
