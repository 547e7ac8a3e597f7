"""Kills the enrollment service at every system call on its registry while devices enrol and renew: `main` is all of it.

The service, the device and the broker are the real programs. After each kill the service is started again, and the
device asks again, with the key that it has: the registry is whole, the device ends with one certificate that connects,
no token is lost, and nothing was certified twice.
"""

from __future__ import annotations

import argparse
import secrets
import sqlite3
import ssl
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509

from enroll import audit, service
from enroll.registry import Registry, history, identity, log
from enroll.registry.records import LIVE, CertificateRecord
from enroll.tokens import TokenOrder
from fleet import pki
from fleet.identity import DeviceId
from fleet.join import JoinCode
from fleet.layout import AdminHome, AgentHome
from tests.deadlines import within
from tests.faults.cutting import Point, Traced, calls_of
from tests.faults.relay import Relay
from tests.fleets import new_home
from tests.mqtt import ACCEPTED, Peer, connect
from tests.processes import Finished, Program, run
from tests.system.agents import serial_of
from tests.system.brokers import start_broker, start_service, wait_ready

# What SQLite does to a database and its journal; it is unlocked (fcntl) behind each commit, before anybody is answered.
CALLS: Final = "pwrite64,fsync,fdatasync,ftruncate,fcntl,unlink"


@dataclass
class Office:
    """A fleet whose service comes and goes behind one address, and whose broker stays.

    `count` is how often the service was killed, `repeated` how often a commit was behind it whose answer was lost.
    """

    home: AdminHome
    folder: Path
    relay: Relay
    broker_port: int
    pin: bytes
    count: int = 0
    repeated: int = 0
    _tokens: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def log(self) -> Path:
        return self.folder / "strace.log"

    @property
    def registry_files(self) -> list[Path]:
        path = self.home.registry
        return [path, *(path.with_name(path.name + suffix) for suffix in ("-wal", "-shm"))]

    def invite(self, device: str) -> JoinCode:
        with Registry.open(self.home.registry) as registry:
            invitation = service.invite(
                registry,
                TokenOrder(device=DeviceId(device)),
                by="test",
                now=datetime.now(UTC),
                token_bytes=secrets.token_bytes,
            )
        self._tokens[device] = invitation.token.id
        return JoinCode(f"https://127.0.0.1:{self.relay.port}", self.pin, invitation.token)

    def uses_left(self, device: str) -> int:
        with Registry.open(self.home.registry) as registry:
            (left,) = (each.uses_left for each in service.tokens(registry, 10_000) if each.id == self._tokens[device])
        return left

    def certificates(self, device: str) -> list[CertificateRecord]:
        with Registry.open(self.home.registry) as registry, registry.read() as transaction:
            return identity.certificates_of(transaction, DeviceId(device))

    @contextmanager
    def serving(self, point: Point | None = None, *, traced: bool = True) -> Iterator[Program]:
        """`enroll serve`, ready unless it was killed before; if `point` is given, killed there if it comes there."""
        inject = point.kill if point else ""
        words = ("serve", "--home", self.home.path, "--listen", "127.0.0.1:0")
        program = (
            Traced(self.log, self.registry_files, inject, "enroll", *words, trace=CALLS)
            if traced
            else start_service(self.home)
        )
        with program:
            try:
                self.relay.point_to(("127.0.0.1", wait_ready(program)))
            except AssertionError:
                assert point is not None, program.describe()
            yield program
            program.terminate()
            program.wait()


@contextmanager
def office(folder: Path) -> Iterator[Office]:
    """A fleet with a broker that has its directory, and no service yet."""
    home = new_home(folder / "fleet")
    with ExitStack() as stack:
        relay = stack.enter_context(Relay(("127.0.0.1", 1)))
        with start_service(home) as first:
            wait_ready(first)
            broker = stack.enter_context(start_broker(home))
            port = wait_ready(broker)
        pin = pki.pin_of(x509.load_pem_x509_certificate(home.root.certificate.read_bytes()))
        yield Office(home, folder, relay, port, pin)
        assert "Traceback" not in broker.stderr


def numbered(path: Path) -> list[tuple[int, Point]]:
    """Each call with its thread, as strace counts them: each thread and name for itself."""
    counts, found = Counter[tuple[int, str]](), []
    for call in calls_of(path):
        counts[call.thread, call.name] += 1
        found.append((call.thread, Point(call.name, counts[call.thread, call.name])))
    return found


@dataclass(frozen=True, slots=True)
class Device:
    """A device, and what it asks of the service."""

    home: AgentHome
    ask: Callable[[], Finished]

    @property
    def name(self) -> str:
        return self.home.path.name


def newcomer(at: Office) -> Device:
    """A device with a token, that wants to enrol."""
    home = AgentHome(at.folder / f"home-{secrets.token_hex(4)}")
    code = at.invite(home.path.name)
    return Device(home, lambda: run("device-agent", "join", code, "--id", home.path.name, "--home", home.path))


def veteran(at: Office) -> Device:
    """A device that has enrolled, and wants to renew."""
    device = newcomer(at)
    with at.serving(traced=False):
        device.ask().check()
    return Device(device.home, lambda: run("device-agent", "renew", "--home", device.home.path))


Choice = Callable[[list[tuple[int, Point]]], list[Point]]


def all_points(calls: list[tuple[int, Point]]) -> list[Point]:
    """Each place to kill at: the thread that is the first to come that far is hit."""
    return list(dict.fromkeys(point for _, point in calls))


def around_the_commit(calls: list[tuple[int, Point]]) -> list[Point]:
    """Amid the writes of the first commit, and behind them: what was written outlives the process unsynced."""
    first = next(thread for thread, point in calls if point.name == "fdatasync")
    points = [point for thread, point in calls if thread == first]
    names = [point.name for point in points]
    sync = next(at for at, name in enumerate(names) if name == "fdatasync" and names[at + 1] == "fcntl")
    begin = max(at for at, name in enumerate(names[:sync]) if name != "pwrite64")
    return [points[(begin + sync) // 2], points[sync]]


def cut(at: Office, make: Callable[[Office], Device], certificates: int, chosen: Choice) -> None:
    """One device for each of the chosen points, which ends with so many certificates."""
    device = make(at)
    with at.serving() as program:
        device.ask().check()
        check(at, device, certificates, program)
    for point in chosen(numbered(at.log)):
        _cut(at, make(at), certificates, point)


def _cut(at: Office, device: Device, certificates: int, point: Point) -> None:
    with at.serving(point) as killed:
        first = device.ask()
    was_cut = killed.returncode == -9
    at.count += was_cut
    assert was_cut or first.returncode == 0, f"{point}: {first.stderr}"
    at.repeated += first.returncode != 0 and len(at.certificates(device.name)) == certificates
    with at.serving(traced=False) as again:
        if first.returncode:
            device.ask().check()
        check(at, device, certificates, again)
    assert "Traceback" not in again.stderr


def check(at: Office, device: Device, certificates: int, serving: Program) -> None:
    """The registry is whole, and the device has one certificate more, which connects."""
    with closing(sqlite3.connect(at.home.registry)) as connection:
        assert [("ok",)] == connection.execute("PRAGMA integrity_check").fetchall()
        assert [] == connection.execute("PRAGMA foreign_key_check").fetchall()
    with Registry.open(at.home.registry) as registry, registry.read() as transaction:
        assert None is audit.first_broken(log.entries(transaction))
    found = at.certificates(device.name)
    assert certificates == len(found), "it was certified twice"
    assert 0 == at.uses_left(device.name)
    assert serial_of(device.home) == found[-1].serial
    assert all(each.state in LIVE for each in found[-2:])
    serving.wait_for_line("dispatch.online", stream="stderr")  # or it hears of no session that has come and gone
    context = ssl.create_default_context(cafile=device.home.trust)
    context.load_cert_chain(device.home.identity.certificate, device.home.identity.key)
    with Peer(("127.0.0.1", at.broker_port), context) as peer:
        assert ACCEPTED == peer.ask(connect(device.name))
    _wait_until_offline(at, DeviceId(device.name))


def _wait_until_offline(at: Office, device: DeviceId) -> None:
    """Dispatch writes that down, and would do so amid the next one's enrolment."""
    until = time.monotonic() + within(30)
    with Registry.open(at.home.registry) as registry:
        while True:
            with registry.read() as transaction:
                found = history.last(transaction, device, 1)
            if found and not found[0].is_online:
                return
            assert time.monotonic() < until, "its session is not known to be over"


def main(arguments: Sequence[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="dev soak kill-service", description=__doc__)
    parser.add_argument("--step", type=int, default=1, help="kill at every STEP-th system call (default: at every one)")
    options = parser.parse_args(arguments)
    for what, make, certificates in (("enrolments", newcomer, 1), ("renewals", veteran, 2)):
        with tempfile.TemporaryDirectory() as folder, office(Path(folder)) as at:
            cut(at, make, certificates, lambda calls: all_points(calls)[:: options.step])
            print(
                f"{what}: killed {at.count} times, {at.repeated} of them behind the commit: "
                "0 devices lost, 0 tokens lost, 0 certified twice",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
