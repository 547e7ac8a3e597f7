"""What a device installs, from the wheel and the hashed requirements, in an environment of its own."""

import json
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.deadlines import within

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"fleet", "enroll", "broker", "device_agent", "firmware_stub"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built with the back end that is installed here."""
    directory = tmp_path_factory.mktemp("dist")
    succeed([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(directory), str(ROOT)])
    (built,) = directory.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def device(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs' directory of an environment as on a device: the agent's requirements and the wheel, no extra."""
    home = tmp_path_factory.mktemp("device") / "venv"
    succeed([sys.executable, "-m", "venv", str(home)])
    install = [str(home / "bin" / "pip"), "install", "--quiet"]
    succeed([*install, "--require-hashes", "-r", str(ROOT / "requirements" / "agent.txt")])
    succeed([*install, "--no-deps", "--no-index", str(wheel)])
    return home / "bin"


def test_a_device_installs_cryptography_and_paho_and_nothing_more(device: Path) -> None:
    """A Pi would download, store and have to update what it never uses."""
    listed = succeed([str(device / "pip"), "list", "--format=json", "--exclude=pip", "--exclude=setuptools"])
    names = {package["name"].lower() for package in json.loads(listed)}
    assert {"cryptography", "cffi", "pycparser", "paho-mqtt", "mqtt-fleet"} == names


@pytest.mark.parametrize("program", ["device-agent", "firmware-stub"])
def test_the_device_programs_run_there(device: Path, program: str) -> None:
    """A device would import something that only an admin's machine has."""
    assert "usage: " in succeed([str(device / program), "--help"])


@pytest.mark.parametrize("program", ["enroll", "broker"])
def test_an_admin_program_without_its_extra_says_what_to_install(device: Path, program: str) -> None:
    """Whoever forgot the extra would read a traceback."""
    ended = subprocess.run([str(device / program), "--help"], capture_output=True, text=True, timeout=within(30))
    assert (1, "") == (ended.returncode, ended.stdout)
    error, hint = ended.stderr.splitlines()
    assert error.startswith(f"error: {program} needs the Python package ")
    assert f"hint: pip install 'mqtt-fleet[{program}]'" == hint


def test_the_wheel_holds_the_five_packages_typed_and_nothing_else(wheel: Path) -> None:
    """Tests or tools would be installed as top-level packages of everyone's environment."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert {name.partition("/")[0] for name in names} == PACKAGES
    assert {f"{package}/py.typed" for package in PACKAGES} <= names


def succeed(command: Sequence[str]) -> str:
    """What a command prints on stdout; fails the test with all that it printed if it fails."""
    ended = subprocess.run(command, capture_output=True, text=True, timeout=within(100))
    assert ended.returncode == 0, f"{' '.join(command)}\n{ended.stdout}{ended.stderr}"
    return ended.stdout
