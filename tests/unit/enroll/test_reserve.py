"""What is kept for revocations on a full disk: a small file system, really full."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from enroll import audit
from enroll.registry import Registry, RegistryFull, Transaction, log
from enroll.registry.reserve import RESERVE_BYTES, STEP_BYTES, Reserve

NOW = datetime(2026, 11, 21, 8, tzinfo=UTC)


@pytest.fixture(name="disk")
def _disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of three times what is kept."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system to fill")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={3 * RESERVE_BYTES}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def free(disk: Path) -> int:
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize


def fill(disk: Path, *, leave: int = 0) -> Path:
    """A file that takes all that is left but so much."""
    path = disk / "filler"
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free(disk) - leave)
    return path


def test_it_is_given_up_in_steps_and_what_nobody_used_is_taken_back(disk: Path) -> None:
    """One revocation would use it all up, or leave the room to whoever filled the disk."""
    reserve = Reserve(disk / "reserve")
    reserve.fill()
    filler = fill(disk)
    assert (RESERVE_BYTES, 0, False) == (reserve.size_bytes, free(disk), reserve.was_needed)
    assert reserve.give_up()
    assert (RESERVE_BYTES - STEP_BYTES, STEP_BYTES, True) == (reserve.size_bytes, free(disk), reserve.was_needed)
    (disk / "revoked").write_bytes(bytes(STEP_BYTES // 2))
    reserve.take_back(RESERVE_BYTES)
    assert (RESERVE_BYTES - STEP_BYTES // 2, 0) == (reserve.size_bytes, free(disk))
    reserve.fill()
    assert not reserve.is_whole
    filler.unlink()
    reserve.fill()
    assert reserve.is_whole


def test_it_has_an_end(disk: Path) -> None:
    """A revocation would be tried for ever."""
    reserve = Reserve(disk / "reserve")
    assert not reserve.give_up()
    reserve.fill()
    assert RESERVE_BYTES // STEP_BYTES == sum(iter(reserve.give_up, False))


def test_it_does_not_fill_the_disk_itself(disk: Path) -> None:
    """A gateway whose disk is nearly full would be stopped by what is to keep it going."""
    fill(disk, leave=2 * RESERVE_BYTES - 4096)
    reserve = Reserve(disk / "reserve")
    reserve.fill()
    assert 0 == reserve.size_bytes


def test_only_what_is_urgent_is_written_into_it(disk: Path) -> None:
    """Enrolments would use up what the next revocation needs."""
    with Registry.open(disk / "registry.db") as registry:
        registry.reserve.fill()
        fill(disk)
        with pytest.raises(RegistryFull):
            write_until_full(registry)
        assert registry.reserve.is_whole
        registry.urgently(lambda transaction: note(transaction, "urgent"))
        assert registry.reserve.was_needed
        assert 0 < registry.reserve.size_bytes < RESERVE_BYTES
    with Registry.open(disk / "registry.db", is_urgent=True) as registry, registry.read() as transaction:
        entries = list(log.entries(transaction))
        assert 1 == sum(each.event == "urgent" for each in entries), "what was tried in vain left a trace"
        assert audit.first_broken(entries) is None


def write_until_full(registry: Registry) -> None:
    """Raises: RegistryFull."""
    for _ in range(1000):
        with registry.write() as transaction:
            note(transaction, "filling")


def note(transaction: Transaction, name: str) -> None:
    audit.record(transaction, NOW, name, text="x" * 40_000)
