"""The command line, without a fleet."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import device_agent
from device_agent.hardware import first_line
from fleet.join import JoinCode, JoinFile, new_token
from tests.processes import run

TOKEN = new_token(b"t" * 21)
HEAVY = ("cryptography", "fleet.pki", "fleet.est")
CODE = JoinCode("https://127.0.0.1:1", b"p" * 32, TOKEN)


def test_the_version_is_the_distributions() -> None:
    """A device would report a version that was never released."""
    assert metadata.version("mqtt-fleet") == device_agent.__version__


@pytest.mark.parametrize("modules", ["device_agent.cli", "device_agent.cli, device_agent.runner, device_agent.status"])
def test_run_and_status_load_no_cryptography(modules: str) -> None:
    """It costs a Pi 10 MB of memory for nothing."""
    code = f"import {modules}, sys; print([m for m in sys.modules if m.startswith({HEAVY!r})])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "[]\n" == done.stdout


@pytest.mark.parametrize(
    "args",
    [
        ["join"],
        ["join", str(CODE), "--url", "https://x"],
        ["join", "--url", "https://x"],
        ["join", "fleet1_nonsense"],
        ["join", str(CODE)[:-1]],
        ["join", str(CODE), "--id", "Pump 07"],
        ["join", "--url", "http://x", "--root-pin", "00" * 32, "--token", str(TOKEN)],
        ["join", "--url", "https://x", "--root-pin", "00", "--token", str(TOKEN)],
        ["join", "--url", "https://x", "--root-pin", "00" * 32, "--token", "secret"],
        ["join", "--file", "/nonexistent/fleet-join.toml"],
    ],
)
def test_what_cannot_be_used_is_said_in_two_lines(args: list[str], tmp_path: Path) -> None:
    """A person would read a traceback, or a script could not tell usage from failure."""
    done = run("device-agent", "--home", tmp_path / "home", *args)
    assert (2, "") == (done.returncode, done.stdout)
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")
    assert not (tmp_path / "home").exists()
    assert str(TOKEN) not in done.stderr
    assert str(CODE)[20:] not in done.stderr


@pytest.mark.parametrize("verb", ["run", "status", "explain"])
def test_without_an_identity_every_verb_says_how_to_get_one(verb: str, tmp_path: Path) -> None:
    """The first thing that a newcomer types would end in a traceback."""
    done = run("device-agent", verb, "--home", tmp_path)
    assert 3 == done.returncode
    assert "hint: enrol: device-agent join CODE" in done.stderr


def test_home_is_taken_before_and_after_the_verb_and_from_the_environment(tmp_path: Path) -> None:
    """DESIGN section 9: half of the commands that people paste would look at another home."""
    for args, env in (
        (("--home", tmp_path, "status"), {}),
        (("status", "--home", tmp_path), {}),
        (("--home", "/nonexistent", "status", "--home", tmp_path), {}),
        (("status",), {"DEVICE_AGENT_HOME": str(tmp_path)}),
    ):
        assert f"there is no identity in {tmp_path}" in run("device-agent", *args, env=env).stderr


def test_a_service_that_is_away_is_unreachable_and_leaves_nothing(tmp_path: Path) -> None:
    """A script could not tell "try later" from "ask for a new token"."""
    done = run("device-agent", "--home", tmp_path / "home", "join", "-", "--id", "pump-07", stdin=f"{CODE}\n")
    assert 5 == done.returncode
    assert "nothing answers at 127.0.0.1:1" in done.stderr
    assert not list((tmp_path / "home").glob("gen-*"))


def test_a_join_file_stays_until_it_has_succeeded(tmp_path: Path) -> None:
    """A Pi that boots before its network is there would never enrol."""
    file = tmp_path / "fleet-join.toml"
    file.write_text(JoinFile(CODE).encode())
    done = run("device-agent", "--home", tmp_path / "home", "join", "--file", file, "--id", "pump-07")
    assert 5 == done.returncode
    assert file.exists()


def test_a_home_that_others_can_read_is_refused(tmp_path: Path) -> None:
    """Whoever can write there can replace the identity."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "note").touch()
    home.chmod(0o755)
    done = run("device-agent", "--home", home, "join", str(CODE), "--id", "pump-07")
    assert 1 == done.returncode
    assert f"hint: chmod 700 {home}" in done.stderr


def test_a_reader_that_goes_away_gets_no_traceback(tmp_path: Path) -> None:
    """`device-agent --help | head -1` would look like a crash."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as gone:
        done = subprocess.run(
            [sys.executable, "-m", "device_agent.cli", "--help"], stdout=gone, stderr=subprocess.PIPE, text=True
        )
    assert "Traceback" not in done.stderr


def test_the_hardwares_own_words_are_read_as_firmware_writes_them(tmp_path: Path) -> None:
    """An admin who approves sees a NUL behind the serial, or a device without these files cannot join."""
    (tmp_path / "serial").write_bytes(b"10000000c1d2e3f4\0")
    (tmp_path / "model").write_bytes(b"Standard PC\n")
    missing = tmp_path / "missing"
    found = [first_line(paths) for paths in ((missing, tmp_path / "serial"), (tmp_path / "model",), (missing,), ())]
    assert ["10000000c1d2e3f4", "Standard PC", "", ""] == found
