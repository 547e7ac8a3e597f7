"""`enroll init` after one that was killed, and beside one that lives."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from tests.deadlines import within
from tests.processes import Finished, Program, run

PASSPHRASE = {"FLEET_CA_PASSPHRASE": "correct horse battery staple"}
INIT = ("init", "--trust-domain", "acme.example", "--host", "localhost", "--home")


def init(home: Path) -> Finished:
    return run("enroll", *INIT, home, env=PASSPHRASE)


def beside(home: Path) -> list[Path]:
    """What lies beside the home."""
    return sorted(path for path in home.parent.iterdir() if path != home)


def killed_while_building(home: Path) -> Path:
    """Kill an init with the first file in its directory; the directory."""
    until = time.monotonic() + within(20)
    with Program("enroll", *INIT, home, env=PASSPHRASE) as program:
        while not (found := list(home.parent.glob(f".{home.name}.init-*/*"))):
            assert time.monotonic() < until
            assert program.returncode is None, program.describe()
        program.kill()
    return found[0].parent


def test_an_init_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    """Keys of a fleet that never was lie about for ever."""
    home = tmp_path / "fleet"
    left = killed_while_building(home)
    assert left.is_dir()
    assert not home.exists()
    init(home).check()
    assert [] == beside(home)


def test_an_init_leaves_alone_what_is_not_its_own(tmp_path: Path) -> None:
    """It takes away the directory of an init that is at work, of another home, or what a link leads to."""
    home, elsewhere = tmp_path / "fleet", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").touch()
    (tmp_path / ".fleet.init-00000000").symlink_to(elsewhere)
    kept = [tmp_path / name for name in (".fleet.init-1", ".fleet.init-000000001", ".fleet2.init-00000000")]
    kept += [alive := tmp_path / ".fleet.init-00000001"]
    for path in kept:
        path.mkdir()
    descriptor = os.open(alive, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        before = beside(home)
        init(home).check()
        assert before == beside(home)
        assert (elsewhere / "file").exists()
    finally:
        os.close(descriptor)


def test_two_inits_at_once_make_one_fleet(tmp_path: Path) -> None:
    """One takes away what the other builds."""
    home = tmp_path / "fleet"
    with Program("enroll", *INIT, home, env=PASSPHRASE) as one, Program("enroll", *INIT, home, env=PASSPHRASE) as other:
        assert [0, 1] == sorted([one.wait(), other.wait()]), one.describe() + other.describe()
    assert [] == beside(home)
    assert (home / "fleet.toml").is_file()
