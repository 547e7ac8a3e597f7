"""The lock files: what everyone installs, file by file."""

import json
import re
from pathlib import Path

import pytest

DIRECTORY = Path(__file__).resolve().parents[2] / "requirements"
LOCKS = sorted(DIRECTORY.glob("*.txt"))


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_requirements_name_no_address(path: Path) -> None:
    """Everyone would install from the registry of whoever made the lock."""
    assert "://" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_every_requirement_is_pinned_and_hashed(path: Path) -> None:
    """An installation could get other files than those that were tested."""
    found = requirements(path)
    assert found
    for requirement in found:
        assert re.match(r"[a-z0-9-]+==\S+ ", requirement), requirement
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", requirement), requirement


def test_a_device_gets_the_versions_that_are_tested() -> None:
    """The tests would pass with one release of cryptography and devices run another."""
    tested, installed = (
        {requirement.split(" ")[0] for requirement in requirements(DIRECTORY / name)}
        for name in ("dev.txt", "agent.txt")
    )
    assert installed <= tested


@pytest.mark.parametrize("directory", ["tests/interop", "benchmarks/brokers"])
def test_what_npm_installs_is_hashed_and_of_no_registry(directory: str) -> None:
    """The MQTT.js that tests talk to could be another, or would come from one registry only."""
    path = DIRECTORY.parent / directory / "package-lock.json"
    asked = json.loads(path.with_name("package.json").read_text(encoding="utf-8"))["dependencies"]
    text = path.read_text(encoding="utf-8")
    packages = json.loads(text)["packages"]
    assert "://" not in text
    assert (
        asked
        == packages.pop("")["dependencies"]
        == {name: packages[f"node_modules/{name}"]["version"] for name in asked}
    )
    assert [] == [name for name, package in packages.items() if not package["integrity"].startswith("sha512-")]


def requirements(path: Path) -> list[str]:
    """Each requirement of a lock file on one line, with its options."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    return [line for line in text.splitlines() if line and not line.startswith("#")]
