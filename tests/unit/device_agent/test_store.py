"""The agent's files: whole at every moment, private, and one agent's at a time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from device_agent.store import PosixDisk, Store, check_private, only_one, replace_file
from fleet.errors import FleetError, InvalidInput, NotFound
from fleet.identity import DeviceId, Role, Serial
from fleet.layout import AgentHome, Credential

PUMP = DeviceId("pump-07")
URL = "https://gateway.local:8443"
NOW = datetime(2026, 11, 21, 8, tzinfo=UTC)


def credential(serial: str = "5f") -> Credential:
    return Credential(PUMP, Role.DEVICE, Serial(serial), NOW, NOW + timedelta(days=90), URL)


class PowerCut(BaseException):
    """The power goes: nothing may catch it."""


@dataclass
class Call:
    """One system call: what it does, and what is lost with the power unless a later one secured it."""

    name: str
    path: Path
    data: bytes = b""
    target: Path | None = None


@dataclass
class FailingDisk(PosixDisk):
    """The real disk, on which the power goes before call number `at`; it keeps what was called."""

    at: int = 1_000_000
    calls: list[Call] = field(default_factory=list)
    files: dict[int, Path] = field(default_factory=dict)

    def _count(self, call: Call) -> None:
        if len(self.calls) >= self.at:
            raise PowerCut
        self.calls.append(call)

    def make_folder(self, path: Path) -> None:
        self._count(Call("make_folder", path))
        super().make_folder(path)

    def create(self, path: Path) -> int:
        self._count(Call("create", path))
        file = super().create(path)
        self.files[file] = path
        return file

    def write(self, file: int, data: bytes) -> None:
        if len(self.calls) >= self.at:
            super().write(file, data[: len(data) // 2])
        self._count(Call("write", self.files[file], data))
        super().write(file, data)

    def sync(self, file: int) -> None:
        self._count(Call("sync", self.files[file]))

    def close(self, file: int) -> None:
        super().close(file)  # a process that dies closes its files too

    def sync_folder(self, path: Path) -> None:
        self._count(Call("sync_folder", path))

    def rename(self, source: Path, target: Path) -> None:
        self._count(Call("rename", source, target=target))
        super().rename(source, target)

    def link(self, target: str, path: Path) -> None:
        self._count(Call("link", path, data=target.encode()))
        super().link(target, path)

    def remove(self, path: Path) -> None:
        self._count(Call("remove", path))
        super().remove(path)

    def remove_folder(self, path: Path) -> None:
        self._count(Call("remove_folder", path))
        super().remove_folder(path)


def enrol(home: AgentHome, disk: PosixDisk, told: list[bytes]) -> None:
    """What `join` does with the disk. `told` are the keys that the service has heard of."""
    store = Store(home, disk)
    store.prepare()
    if store.recover() or store.is_enrolled_as(PUMP, URL):
        return
    pending = store.pending(PUMP, URL) or store.begin(PUMP, URL, f"key {len(told)}".encode())
    told.append(pending.key.read_bytes())
    store.complete(pending, b"certificate of " + pending.key.read_bytes(), b"root", credential())


def check_whole(home: AgentHome, told: list[bytes]) -> None:
    """The identity is complete, and its key is one that the service certified."""
    key = home.identity.key.read_bytes()
    assert key in told
    assert b"certificate of " + key == home.identity.certificate.read_bytes()
    assert b"root" == home.trust.read_bytes()
    assert credential() == Store(home, PosixDisk()).credential()


def number_of_calls(tmp_path: Path) -> int:
    disk = FailingDisk()
    enrol(AgentHome(tmp_path / "count"), disk, [])
    return len(disk.calls)


def test_killed_at_every_system_call_the_next_attempt_succeeds(tmp_path: Path) -> None:
    """A device whose power went during its first enrolment would have to be enrolled by hand, with another token."""
    total = number_of_calls(tmp_path)
    assert total > 20
    for at in range(total):
        home, told = AgentHome(tmp_path / f"killed-{at}"), list[bytes]()
        with pytest.raises(PowerCut):
            enrol(home, FailingDisk(at=at), told)
        enrol(home, PosixDisk(), told)
        check_whole(home, told)
        assert len(set(told)) == 1, "the service would refuse a second key for the same token"


def test_killed_again_while_it_recovers_it_still_succeeds(tmp_path: Path) -> None:
    """Power that comes and goes would leave what a single cut does not."""
    total = number_of_calls(tmp_path)
    for at in range(total):
        for again in range(0, total, 3):
            home, told = AgentHome(tmp_path / f"twice-{at}-{again}"), list[bytes]()
            with pytest.raises(PowerCut):
                enrol(home, FailingDisk(at=at), told)
            try:
                enrol(home, FailingDisk(at=again), told)
            except PowerCut:
                enrol(home, PosixDisk(), told)
            check_whole(home, told)
            shutil.rmtree(home.path)


def test_what_was_not_synced_may_be_lost_and_the_next_attempt_still_succeeds(tmp_path: Path) -> None:
    """The order of writes is the program's, not the disk's: after a power cut a renamed file may be empty."""
    disk = FailingDisk()
    told: list[bytes] = []
    first = AgentHome(tmp_path / "home")
    enrol(first, disk, told)
    for at in range(1, len(disk.calls) + 1):
        home = AgentHome(tmp_path / f"lost-{at}")
        after_power_cut(disk.calls[:at], first.path, home.path)
        heard = list(told) if _was_told(disk.calls[:at]) else []
        enrol(home, PosixDisk(), heard)
        check_whole(home, heard)
        assert len(set(heard)) == 1


def _was_told(calls: list[Call]) -> bool:
    """Whether the CSR had been sent: everything up to the home's sync after `begin` was called."""
    return any(call.path.name == "trust.pem.new" for call in calls)


def after_power_cut(calls: list[Call], old: Path, new: Path) -> None:
    """Play `calls` again below `new`, where data never synced is gone and names never synced are gone too."""

    def moved(path: Path) -> Path:
        return new / path.relative_to(old)

    secured = [at for at, call in enumerate(calls) if call.name == "sync_folder"]
    new.mkdir(mode=0o700)
    for at, call in enumerate(calls):
        folder = call.path.parent
        is_named = any(later > at and calls[later].path == folder for later in secured)
        if call.path == old or not call.path.is_relative_to(old):
            continue
        path = moved(call.path)
        if call.name == "make_folder":
            path.mkdir(mode=0o700, exist_ok=True)
            os.utime(path)
        elif call.name == "write":
            is_synced = any(later.name == "sync" and later.path == call.path for later in calls[at:])
            path.write_bytes(call.data if is_synced else b"")
            path.chmod(0o600)
        elif call.name == "rename" and is_named:
            assert call.target is not None
            path.replace(moved(call.target))
        elif call.name == "link":
            path.symlink_to(call.data.decode())
        elif call.name == "remove" and is_named:
            path.unlink()


def test_a_key_is_private_from_its_first_byte(tmp_path: Path) -> None:
    """Another user of the machine could read it in the moment before a chmod."""
    modes: list[int] = []

    class Watching(PosixDisk):
        def write(self, file: int, data: bytes) -> None:
            modes.append(os.fstat(file).st_mode & 0o777)
            super().write(file, data)

    old = os.umask(0)
    try:
        enrol(AgentHome(tmp_path / "home"), Watching(), [])
    finally:
        os.umask(old)
    assert {0o600} == set(modes)
    assert 0o700 == (tmp_path / "home").stat().st_mode & 0o777


@pytest.mark.parametrize(("make", "hint"), [(lambda path: path.chmod(0o750), "chmod 700")])
def test_a_home_that_others_can_read_is_refused(make: Callable[[Path], None], hint: str, tmp_path: Path) -> None:
    """Whoever can replace `current` can replace the identity."""
    home = AgentHome(tmp_path / "home")
    Store(home, PosixDisk()).prepare()
    (home.path / "something").touch()
    make(home.path)
    with pytest.raises(FleetError) as caught:
        Store(home, PosixDisk()).prepare()
    assert hint in caught.value.hint


def test_an_empty_folder_of_ours_is_made_private(tmp_path: Path) -> None:
    """`mkdir home; device-agent join --home home` would fail for no good reason."""
    (tmp_path / "home").mkdir(mode=0o755)
    Store(AgentHome(tmp_path / "home"), PosixDisk()).prepare()
    assert 0o700 == (tmp_path / "home").stat().st_mode & 0o777


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    """The agent would go on with a key that is not its own any more."""
    key = tmp_path / "key.pem"
    key.touch(mode=0o640)
    key.chmod(0o640)
    with pytest.raises(FleetError, match="open to others"):
        check_private(key)


def test_a_second_agent_on_one_home_is_refused(tmp_path: Path) -> None:
    """Two agents with one identity would take each other's connection for ever."""
    home = AgentHome(tmp_path)
    with only_one(home), pytest.raises(FleetError, match="another agent"), only_one(home):
        pass
    with only_one(home):
        pass


def test_a_home_that_cannot_be_written_is_said_so(tmp_path: Path) -> None:
    """An SD card that has become read-only ends in a traceback."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "agent.lock").mkdir()  # root may write anywhere, but not into a folder
    with pytest.raises(FleetError, match="cannot be written"), only_one(AgentHome(tmp_path)):
        pass


def test_no_identity_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    """A device that only needs to enrol would be reported as broken, or the other way round."""
    home = AgentHome(tmp_path / "home")
    with pytest.raises(NotFound):
        Store(home, PosixDisk()).credential()
    enrol(home, PosixDisk(), [])
    home.meta.write_bytes(b"{")
    with pytest.raises(InvalidInput):
        Store(home, PosixDisk()).credential()


def test_a_pending_key_belongs_to_one_id_and_one_service(tmp_path: Path) -> None:
    """Two identities would share one key."""
    store = Store(AgentHome(tmp_path / "home"), PosixDisk())
    store.prepare()
    pending = store.begin(PUMP, URL, b"key")
    assert pending == store.pending(PUMP, URL)
    assert store.pending(DeviceId("pump-08"), URL) is None
    assert store.pending(PUMP, "https://elsewhere:8443") is None


def test_replacing_a_file_leaves_nothing_behind(tmp_path: Path) -> None:
    """A file left by a crash would stop every later write."""
    (tmp_path / "f.new").write_bytes(b"half")
    replace_file(PosixDisk(), tmp_path / "f", b"whole")
    assert [b"whole"] == [path.read_bytes() for path in tmp_path.iterdir()]
