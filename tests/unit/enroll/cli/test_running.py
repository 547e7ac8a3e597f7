"""What is said where nobody is there to do what was asked for, and to who does not wait for it."""

from __future__ import annotations

import fcntl
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from enroll.cli.interrupted import going_on
from enroll.cli.running import does_run, say_if_away
from fleet.identity import Server
from fleet.layout import AdminHome, RunFile


@pytest.fixture
def home(tmp_path: Path) -> AdminHome:
    (tmp_path / "run").mkdir()
    return AdminHome(tmp_path)


@contextmanager
def running(home: AdminHome, server: Server) -> Iterator[None]:
    """Its run file, locked as it is while it runs; nobody listens there."""
    path = home.run_file(server)
    path.write_bytes(RunFile("https://127.0.0.1:1").encode())
    with path.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def test_who_runs_is_known_without_knocking(home: AdminHome) -> None:
    """Each command is noted by the broker as an attempt that it refused, or a killed service looks alive."""
    for server in Server:
        assert not does_run(home, server)
        with running(home, server):
            assert does_run(home, server)
        assert not does_run(home, server), "killed: its file is still there"


def test_who_listens_elsewhere_runs(home: AdminHome) -> None:
    """A broker on another host is said to be away for ever."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"mqtts://127.0.0.1:{listener.getsockname()[1]}"
        home.run_file(Server.BROKER).write_bytes(RunFile(url).encode())
        assert does_run(home, Server.BROKER)
    assert not does_run(home, Server.BROKER)


@pytest.mark.parametrize("damaged", [b"", b"{}", b'{"v": 1, "url": "https://[::1"}', b'{"v": 1, "url": "here"}'])
def test_a_damaged_run_file_is_nobody(home: AdminHome, damaged: bytes) -> None:
    """A traceback instead of what to start."""
    home.run_file(Server.ENROLL).write_bytes(damaged)
    assert not does_run(home, Server.ENROLL)


def test_what_waits_is_said_with_what_to_start(home: AdminHome, capsys: pytest.CaptureFixture[str]) -> None:
    """A command lies there until its deadline, and nobody knows why."""
    with running(home, Server.ENROLL):
        say_if_away(home, "it goes out")
        with running(home, Server.BROKER):
            say_if_away(home, "it goes out")
    assert ("", "the broker does not run; it goes out when it does\nhint: broker serve\n") == capsys.readouterr()


def test_ctrl_c_says_what_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    """An admin thinks that Ctrl-C took the command back."""
    with pytest.raises(KeyboardInterrupt), going_on("it goes on"):
        raise KeyboardInterrupt
    assert ("", "it goes on\n") == capsys.readouterr()
