"""`enroll init`, without its command line."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from enroll import authority, keys
from enroll.audit import first_broken
from enroll.initialise import initialise
from enroll.registry import Registry, feed, identity, log
from enroll.registry.records import CertificateState
from fleet import config, layout, pki
from fleet.errors import Denied, FleetError, InvalidInput
from fleet.identity import DeviceId, Principal, Role, State
from fleet.layout import AdminHome
from tests.fleets import CRL_URL, DOMAIN, NOW, PASSPHRASE, new_home, plan


def files(path: Path) -> list[Path]:
    return sorted(found for found in path.rglob("*") if not found.is_symlink())


def test_nothing_in_a_home_is_for_others(tmp_path: Path) -> None:
    """Another user of the host reads a key or the registry."""
    before = os.umask(0)
    try:
        home = new_home(tmp_path / "fleet", NOW)
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in [home.path, *files(home.path)]}
    assert {0o600, 0o700} == modes


def test_the_roots_key_is_encrypted_and_no_other_needs_the_passphrase(tmp_path: Path) -> None:
    """Whoever copies the home has the root, or the service cannot run unattended."""
    home = new_home(tmp_path / "fleet", NOW)
    assert b"ENCRYPTED" in home.root.key.read_bytes()
    root = keys.KeySigner(keys.read_key(home.root.key, PASSPHRASE))
    loaded = authority.load(home, DOMAIN, CRL_URL)
    assert loaded.root.public_key() == root.public_key


def test_the_configuration_reads_back(tmp_path: Path) -> None:
    """The home cannot be served as it was made."""
    wanted = plan()
    read = config.load(new_home(tmp_path / "fleet", NOW).config.read_text())
    assert (wanted.trust_domain, wanted.hosts, wanted.crl_url) == (read.trust_domain, read.hosts, read.crl_url)
    assert (wanted.enroll_listen, wanted.broker_listen) == (read.enroll_listen, read.broker_listen)


def test_the_first_principals_are_in_registry_outbox_and_audit(tmp_path: Path) -> None:
    """Broker, dispatch or operator cannot connect to what was just made."""
    home = new_home(tmp_path / "fleet", NOW)
    with Registry.open(home.registry) as registry, registry.read() as transaction:
        records = identity.list_principals(transaction)
        entries = feed.changes(transaction, 0, 100).entries
        assert first_broken(log.entries(transaction)) is None
        assert 11 == len(list(log.entries(transaction)))
    expected = {
        Principal(Role.OPERATOR, DeviceId("admin")),
        Principal(Role.BROKER, DeviceId("broker")),
        Principal(Role.SERVICE, DeviceId("dispatch")),
    }
    assert expected == {record.principal for record in records} == {entry.principal for entry in entries}
    identities = (home.broker_client, home.dispatch, home.operator.identity)
    serials = {pki.serial_of(authority.read_certificate(files.certificate)) for files in identities}
    assert serials == {serial for entry in entries for serial in entry.serials if entry.state is State.ACTIVE}


def test_the_broker_has_an_identity_that_is_revoked(tmp_path: Path) -> None:
    """It could not prove that it keeps revoked clients out; or it would be one more key to the fleet."""
    home = new_home(tmp_path / "fleet", NOW)
    serial = pki.serial_of(authority.read_certificate(home.broker_revoked.certificate))
    with Registry.open(home.registry) as registry, registry.read() as transaction:
        certificate = identity.find_certificate(transaction, serial)
        entry = feed.entry_of(transaction, DeviceId("broker"))
    assert certificate is not None
    assert CertificateState.REVOKED is certificate.state
    assert entry is not None
    assert serial not in entry.serials


def test_each_identity_is_a_pair_with_its_chain(tmp_path: Path) -> None:
    """A server cannot load its key, or sends a leaf without its issuer."""
    from cryptography import x509

    home = new_home(tmp_path / "fleet", NOW)
    for pair, issuer in (
        (home.enroll_server, home.servers_ca),
        (home.broker_server, home.servers_ca),
        (home.broker_client, home.devices_ca),
        (home.broker_revoked, home.devices_ca),
        (home.dispatch, home.devices_ca),
        (home.operator.identity, home.devices_ca),
    ):
        leaf, above = x509.load_pem_x509_certificates(pair.certificate.read_bytes())
        assert leaf.public_key() == load_pem_private_key(pair.key.read_bytes(), None).public_key()
        assert authority.read_certificate(issuer.certificate) == above


def test_the_operator_has_an_agents_home(tmp_path: Path) -> None:
    """`mosquitto_pub` with HOME/operator/current does not work."""
    operator = new_home(tmp_path / "fleet", NOW).operator
    assert "gen-1" == os.readlink(operator.current)  # noqa: PTH115 - relative, as a home that is moved needs it
    credential = layout.decode_credential(operator.meta.read_bytes())
    assert (DeviceId("admin"), Role.OPERATOR) == (credential.device, credential.role)
    assert pki.serial_of(authority.read_certificate(operator.identity.certificate)) == credential.serial


def test_a_home_is_never_made_twice(tmp_path: Path) -> None:
    """A second init destroys a fleet."""
    home = new_home(tmp_path / "fleet", NOW)
    before = {path: path.read_bytes() for path in files(home.path) if path.is_file()}
    with pytest.raises(FleetError, match="holds a fleet already"):
        new_home(tmp_path / "fleet", NOW)
    assert before == {path: path.read_bytes() for path in files(home.path) if path.is_file()}


def test_an_empty_private_directory_will_do_and_no_other(tmp_path: Path) -> None:
    """A fleet lands among someone's files, or where others can read."""
    path = tmp_path / "fleet"
    path.mkdir(mode=0o755)
    path.chmod(0o755)
    with pytest.raises(Denied, match="can be entered by others"):
        new_home(path, NOW)
    path.chmod(0o700)
    (path / "notes.txt").touch()
    with pytest.raises(FleetError, match="is not empty"):
        new_home(path, NOW)
    (path / "notes.txt").unlink()
    assert new_home(path, NOW).config.is_file()


@pytest.mark.parametrize(
    "changes",
    [
        {"hosts": ()},
        {"hosts": ("no host",)},
        {"hosts": ("-x",)},
        {"hosts": ('a"b',)},
        {"hosts": ("gateway.local\n",)},
        {"crl_url": "ftp://x/y"},
        {"crl_url": "http://a b/"},
        {"passphrase": b"short"},
    ],
)
def test_a_bad_plan_makes_nothing(tmp_path: Path, changes: dict[str, Any]) -> None:
    """A typing error leaves half a fleet behind."""
    with pytest.raises(InvalidInput):
        initialise(AdminHome(tmp_path / "fleet"), plan(**changes), now=NOW, token_bytes=secrets.token_bytes)
    assert [] == list(tmp_path.iterdir())


def test_a_failure_on_the_way_makes_nothing(tmp_path: Path) -> None:
    """A crash of init leaves a home that neither works nor can be made again."""
    drawn: list[int] = []

    def running_dry(count: int) -> bytes:
        drawn.append(count)
        if len(drawn) > 6:
            raise OSError(28, "No space left on device")
        return secrets.token_bytes(count)

    with pytest.raises(FleetError, match="no space left on device"):
        initialise(AdminHome(tmp_path / "fleet"), plan(), now=NOW, token_bytes=running_dry)
    assert [] == list(tmp_path.iterdir())
    assert 7 == len(drawn)
