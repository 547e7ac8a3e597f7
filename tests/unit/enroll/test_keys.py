"""Key files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from enroll import keys
from fleet.errors import Denied, FleetError, NotFound


def test_a_key_file_is_its_owners_alone_whatever_the_umask(tmp_path: Path) -> None:
    """Another user of the host reads a CA's key."""
    before = os.umask(0)
    try:
        keys.write_private(tmp_path / "key.pem", b"x")
    finally:
        os.umask(before)
    assert 0o600 == (tmp_path / "key.pem").stat().st_mode & 0o777


def test_a_key_file_is_never_written_over(tmp_path: Path) -> None:
    """A second run destroys a CA."""
    keys.write_private(tmp_path / "key.pem", b"x")
    with pytest.raises(FileExistsError):
        keys.write_private(tmp_path / "key.pem", b"y")


@pytest.mark.parametrize("passphrase", [None, b"correct horse"])
def test_a_key_is_read_as_it_was_written(tmp_path: Path, passphrase: bytes | None) -> None:
    """A CA's key is lost."""
    key = keys.new_key()
    keys.write_private(tmp_path / "key.pem", keys.encode_key(key, passphrase))
    read = keys.read_key(tmp_path / "key.pem", passphrase)
    assert isinstance(read, ec.EllipticCurvePrivateKey)
    assert key.private_numbers() == read.private_numbers()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_that_others_can_read_is_not_used(tmp_path: Path, mode: int) -> None:
    """A leaked key goes on signing, and nobody hears of it."""
    path = tmp_path / "key.pem"
    keys.write_private(path, keys.encode_key(keys.new_key()))
    path.chmod(mode)
    with pytest.raises(Denied, match="can be read by others") as raised:
        keys.read_key(path)
    assert f"run: chmod 600 {path}" == raised.value.hint


@pytest.mark.parametrize("passphrase", [None, b"wrong"])
def test_a_wrong_passphrase_is_said_so(tmp_path: Path, passphrase: bytes | None) -> None:
    """The admin sees a traceback, or a key is taken for damaged."""
    keys.write_private(tmp_path / "key.pem", keys.encode_key(keys.new_key(), b"correct horse"))
    with pytest.raises(Denied):
        keys.read_key(tmp_path / "key.pem", passphrase)


def test_a_missing_or_damaged_key_is_said_so(tmp_path: Path) -> None:
    """The admin sees a traceback."""
    with pytest.raises(NotFound):
        keys.read_key(tmp_path / "key.pem")
    keys.write_private(tmp_path / "key.pem", b"rubbish")
    with pytest.raises(FleetError, match="not a private key"):
        keys.read_key(tmp_path / "key.pem")
