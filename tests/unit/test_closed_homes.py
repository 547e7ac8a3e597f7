"""Every program, in a home that it may not enter."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import broker.cli
import device_agent.cli
from enroll.cli.app import app
from fleet.errors import Denied, FleetError

NOBODY = 65534


@pytest.fixture
def closed() -> Iterator[Path]:
    """A folder that nobody can enter but root, where everybody sees that it is there."""
    above = Path(tempfile.mkdtemp())
    above.chmod(0o755)
    home = above / "closed"
    home.mkdir(0o000)
    yield home
    home.chmod(0o700)
    shutil.rmtree(above)


@contextmanager
def not_root() -> Iterator[None]:
    """As a user without rights: root may enter everywhere."""
    if os.geteuid():
        yield
        return
    os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


@pytest.mark.parametrize("words", [["status"], ["device", "list"]])
def test_an_admin_who_may_not_enter_is_denied(closed: Path, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A script takes a wrong user for a wrong flag: 2 instead of 4."""
    monkeypatch.setenv("FLEET_HOME", "")  # what is set before the verb is undone with it
    with suppress(FleetError):
        app([*words, "--home", str(closed)], standalone_mode=False)  # loads what nobody may not read here
    for options in (["--home", str(closed), *words], [*words, "--home", str(closed)]):
        with pytest.raises(Denied, match="closed cannot be entered: permission denied"), not_root():
            app(options, standalone_mode=False)


def test_a_broker_that_may_not_enter_is_denied(closed: Path) -> None:
    """A unit with the wrong user is restarted for ever, as if a flag were wrong."""
    with pytest.raises(Denied, match="closed cannot be entered: permission denied"), not_root():
        broker.cli.app(["serve", "--home", str(closed)], standalone_mode=False)


@pytest.mark.parametrize("verb", ["status", "run", "renew", "doctor", "explain"])
def test_an_agent_that_may_not_enter_is_denied(closed: Path, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever looks at a device without sudo gets a traceback."""
    with not_root():
        assert 4 == device_agent.cli.main([verb, "--home", str(closed)])
    assert f"error: {closed} cannot be entered: permission denied\nhint: run this as its owner\n" == (
        capsys.readouterr().err
    )
