"""Which files a device gives away: attacks on names and folders."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from device_agent.content import Changed, File
from device_agent.sharing import MAX_DEPTH, NotShared, Shares, check_shares
from fleet.errors import FleetError, InvalidInput
from tests.deadlines import within


@dataclass(frozen=True)
class Device:
    """A disk with a shared folder, the agent's home, and a secret beside them."""

    path: Path

    @property
    def shared(self) -> Path:
        return self.path / "logs"

    @property
    def home(self) -> Path:
        return self.path / "home"

    @property
    def shares(self) -> Shares:
        return Shares((self.shared,), self.home)

    def read(self, name: str) -> bytes:
        file = self.shares.open(f"{self.shared}/{name}")
        try:
            return os.read(file, 100)
        finally:
            os.close(file)


@pytest.fixture
def device(tmp_path: Path) -> Device:
    found = Device(tmp_path)
    for folder in (found.shared / "old", found.home):
        folder.mkdir(parents=True)
    (found.shared / "old" / "a b.log").write_text("line")
    (found.home / "key.pem").write_text("key")
    (tmp_path / "secret").write_text("secret")
    return found


def test_a_file_in_a_shared_folder_is_given(device: Device) -> None:
    """Nothing can be fetched."""
    assert b"line" == device.read("old/a b.log")


@pytest.mark.parametrize(
    "name",
    ["../secret", "old/../../secret", "./old/a b.log", "old//a b.log", "", "old/", "none", "old", "old/a b.log/x"],
)
def test_other_names_are_refused(device: Device, name: str) -> None:
    """A name leads out of the folder, or ends the agent in a traceback."""
    with pytest.raises(FleetError):
        device.read(name)


def test_what_lies_beside_is_refused(device: Device) -> None:
    """A folder whose name begins as a shared one's counts as shared."""
    (device.path / "logs-private").mkdir()
    (device.path / "logs-private" / "a").write_text("secret")
    for name in (device.path / "logs-private" / "a", device.path / "secret", device.shared):
        with pytest.raises(NotShared, match="no shared folder"):
            device.shares.open(str(name))
    with pytest.raises(NotShared, match="shares no folder"):
        Shares((), device.home).open("/a")


def _link(path: Path, target: Path) -> None:
    path.symlink_to(target)


def _pipe(path: Path, target: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path, target: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


@pytest.mark.parametrize("make", [_link, _pipe, _socket])
@pytest.mark.timeout(within(20))
def test_what_is_no_regular_file_is_refused(device: Device, make: Callable[[Path, Path], None]) -> None:
    """Whoever can write into the folder lends the fleet another's file, or stops the agent with a pipe."""
    make(device.shared / "x", device.path / "secret")
    with pytest.raises(NotShared):
        device.read("x")


def test_a_folder_that_is_a_link_is_refused(device: Device) -> None:
    """A link to a folder lends all that is in it."""
    (device.shared / "x").symlink_to(device.path)
    (device.shared / "y").symlink_to(device.home)
    for name in ("x/secret", "y/key.pem"):
        with pytest.raises(NotShared):
            device.read(name)


def test_a_link_that_takes_a_files_place_at_the_last_moment_is_not_followed(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at a name and its opening somebody swaps what it names."""
    file, look = device.shared / "x", os.stat
    file.write_text("harmless")

    def swap_after(path: Any, **kw: Any) -> os.stat_result:
        found = look(path, **kw)
        if path == "x":
            file.unlink()
            file.symlink_to(device.path / "secret")
        return found

    monkeypatch.setattr(os, "stat", swap_after)
    with pytest.raises(NotShared):
        device.read("x")


def test_the_agents_home_is_never_shared(device: Device) -> None:
    """`--share /` gives the device's key away, and so does a link that is made later."""
    for folder in (device.path, device.home, device.home / "current"):
        with pytest.raises(InvalidInput):
            check_shares([folder], device.home)
    assert (device.shared,) == check_shares([device.home / ".." / "logs"], device.home)
    for folder in (device.path, device.home):  # as if it had become so since
        with pytest.raises(NotShared):
            Shares((folder,), device.home).open(str(device.home / "key.pem"))
    lent = device.path / "lent"
    lent.symlink_to(device.home)
    with pytest.raises(NotShared):
        Shares((lent,), device.home).open(str(lent / "key.pem"))
    assert b"key.pem" not in Shares((device.path,), device.home).listing(100_000)


def test_a_shared_folder_may_come_later_and_be_a_link(device: Device) -> None:
    """A device stays offline because a disk is not mounted yet."""
    (mounted,) = check_shares([device.path / "mnt"], device.home)
    shares = Shares((mounted,), device.home)
    with pytest.raises(NotShared):
        shares.open(f"{mounted}/a b.log")
    both = Shares((mounted, device.shared), device.home)
    assert (["a b.log"], False) == listed(both)
    with pytest.raises(NotShared, match="no such file"):
        shares.listing(1000)
    mounted.symlink_to(device.shared / "old")
    os.close(shares.open(f"{mounted}/a b.log"))


def test_the_listing_names_what_can_be_fetched(device: Device) -> None:
    """An admin is shown a name that cannot be fetched, or a listing without an end."""
    (device.shared / "link").symlink_to(device.path / "secret")
    (device.shared / os.fsdecode(b"\xff")).touch()
    (entry,) = map(json.loads, device.shares.listing(100_000).splitlines())
    assert (f"{device.shared}/old/a b.log", 4) == (entry["name"], entry["bytes"])
    os.close(device.shares.open(entry["name"]))
    for number in range(50):
        (device.shared / f"{number}.log").touch()
    cut = device.shares.listing(2000)
    assert len(cut) <= 2000
    assert {"is_cut": True} == json.loads(cut.splitlines()[-1])


def listed(shares: Shares) -> tuple[list[str], bool]:
    """The names of the files, without their folders, and whether that is said not to be all."""
    entries = [json.loads(line) for line in shares.listing(100_000).splitlines()]
    is_cut = entries[-1:] == [{"is_cut": True}]
    return [Path(each["name"]).name for each in entries if "name" in each], is_cut


def test_a_listing_looks_at_so_many_files_and_folders(device: Device) -> None:
    """A tree of empty folders keeps the agent's thread, and its disk, busy for hours."""
    for name in "fed":
        (device.shared / name).touch()
    for number in range(5):
        (device.shared / f"new-{number}" / "empty").mkdir(parents=True)
    shares = [Shares((device.shared,), device.home, most) for most in (2, 3, 8, 9, 14, 15)]
    few, files = ["d", "e"], ["d", "e", "f"]
    some, everything = (files, True), ([*files, "a b.log"], False)
    assert [(few, True), some, some, some, some, everything] == [listed(each) for each in shares]


def test_a_listing_goes_so_deep(device: Device) -> None:
    """Whoever can write into a shared folder takes all descriptors of the agent, one a level."""
    at = device.shared
    for level in range(MAX_DEPTH + 3):
        at = at / "x"
        at.mkdir()
        (at / f"{level + 1}").touch()
    names, is_cut = listed(device.shares)
    assert (["a b.log", *map(str, range(1, MAX_DEPTH + 1))], True) == (names, is_cut)
    os.close(device.shares.open(str(at / str(MAX_DEPTH + 3))))


def test_a_file_is_what_it_was_when_it_was_first_read(device: Device) -> None:
    """A log that grows while it is sent is never sent; one that shrinks ends the agent's thread."""
    path = device.shared / "x"
    path.write_text("one\n")
    content = File(os.open(path, os.O_RDONLY), 100)
    with path.open("a") as file:
        file.write("two\n")
    assert (4, b"one\n") == (content.total, content.read(0, content.total))
    path.write_text("1")
    with pytest.raises(Changed):
        content.read(0, content.total)
    content.close()
    too_long = File(os.open(path, os.O_RDONLY), 0)
    assert (1, b"") == (too_long.total, too_long.digest)
    too_long.close()
