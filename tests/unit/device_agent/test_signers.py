"""What a device remembers of whose signature it believes."""

from __future__ import annotations

from pathlib import Path

import pytest

from device_agent import signers
from device_agent.signers import Signers
from device_agent.store import PosixDisk
from device_agent.verdicts import Trust
from fleet.layout import AgentHome

CHAINS = ((b"leaf", b"issuer"), (b"next", b"issuer"))


def test_what_was_told_outlives_a_restart(tmp_path: Path) -> None:
    """A restart would open the device to whoever has the broker."""
    home = AgentHome(tmp_path)
    assert Signers(Trust.UNKNOWN) == signers.load(home)
    for found in (Signers().told(()), Signers().told(CHAINS)):
        signers.save(PosixDisk(), home, found)
        assert found == signers.load(home)


def test_that_there_are_any_cannot_be_taken_back() -> None:
    """A service that was made to forget its key would open every device."""
    known = Signers().told(CHAINS)
    assert known == known.told(())
    assert CHAINS[1:] == known.told(CHAINS[1:]).chains


@pytest.mark.parametrize("data", [b"", b"{}", b"x", b'{"v":1,"signers":[["*"]]}', b'{"v":1,"signers":null}'])
def test_a_file_that_is_damaged_trusts_nobody(tmp_path: Path, data: bytes) -> None:
    """A worn card would open the device."""
    (tmp_path / "signers.json").write_bytes(data)
    assert Signers(Trust.SIGNED) == signers.load(AgentHome(tmp_path))
