"""What a broker trusts is verified before it is used, and what is wrong is said with the file's name."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from broker.trust import load_client_trust, load_trust
from fleet.errors import FleetError
from fleet.identity import Role, Server
from fleet.layout import IdentityFiles
from tests.certificates import Identity, TestFleet

NOW = datetime.now(UTC)


@pytest.fixture
def fleet(tmp_path: Path) -> TestFleet:
    return TestFleet(tmp_path)


@pytest.fixture
def server(fleet: TestFleet) -> Identity:
    return fleet.server(Server.BROKER)


def test_the_servers_context_takes_nothing_less_than_mutual_tls(fleet: TestFleet, server: Identity) -> None:
    """A default of the library would let someone in."""
    context = load_trust(fleet.trust_file, server.files, NOW).context
    assert (ssl.CERT_REQUIRED, ssl.TLSVersion.TLSv1_2) == (context.verify_mode, context.minimum_version)
    assert 0 == context.num_tickets
    for option in (ssl.OP_NO_TICKET, ssl.OP_NO_RENEGOTIATION):
        assert context.options & option
    assert context.verify_flags & ssl.VERIFY_X509_STRICT


def test_issuers_are_the_cas_for_clients_alone(fleet: TestFleet, server: Identity) -> None:
    """The root, or the servers' CA, could name devices."""
    issuers = load_trust(fleet.trust_file, server.files, NOW).issuers
    assert ["CN=acme.example devices"] == [issuer.rfc4514_string() for issuer in issuers]


def readable(files: IdentityFiles, _fleet: TestFleet) -> None:
    files.key.chmod(0o640)


def no_key(files: IdentityFiles, _fleet: TestFleet) -> None:
    files.key.unlink()


def broken_key(files: IdentityFiles, _fleet: TestFleet) -> None:
    files.key.write_bytes(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")


def anothers_key(files: IdentityFiles, fleet: TestFleet) -> None:
    files.key.write_bytes(fleet.client("other").files.key.read_bytes())


def broken_certificate(files: IdentityFiles, _fleet: TestFleet) -> None:
    files.certificate.write_bytes(b"not PEM")


def device_certificate(files: IdentityFiles, fleet: TestFleet) -> None:
    device = fleet.client("pump-07").files
    files.certificate.write_bytes(device.certificate.read_bytes())
    files.key.write_bytes(device.key.read_bytes())


def enroll_certificate(files: IdentityFiles, fleet: TestFleet) -> None:
    other = fleet.server(Server.ENROLL).files
    files.certificate.write_bytes(other.certificate.read_bytes())
    files.key.write_bytes(other.key.read_bytes())


def no_trust(_files: IdentityFiles, fleet: TestFleet) -> None:
    fleet.trust_file.unlink()


def only_the_root(_files: IdentityFiles, fleet: TestFleet) -> None:
    fleet.trust_file.write_bytes(fleet.root_file.read_bytes())


def mixed_trust(_files: IdentityFiles, fleet: TestFleet) -> None:
    other = TestFleet(fleet.root_file.parent / "other")
    of_the_other = other.trust_file.read_bytes().removeprefix(other.root_file.read_bytes())
    fleet.trust_file.write_bytes(fleet.root_file.read_bytes() + of_the_other)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (readable, "can be read by others"),
        (no_key, "is missing"),
        (broken_key, "is not a private key"),
        (anothers_key, "is not the key of"),
        (broken_certificate, "does not hold certificates"),
        (device_certificate, "is not a broker's certificate"),
        (enroll_certificate, "is not a broker's certificate"),
        (no_trust, "is missing"),
        (only_the_root, "does not hold a root and a CA for clients"),
        (mixed_trust, "does not hold a root and a CA for clients"),
    ],
)
def test_a_file_that_is_wrong_is_named(
    fleet: TestFleet, server: Identity, spoil: Callable[[IdentityFiles, TestFleet], None], words: str
) -> None:
    """An admin would have to guess; or the broker would start and refuse everyone."""
    spoil(server.files, fleet)
    with pytest.raises(FleetError, match=words) as raised:
        load_trust(fleet.trust_file, server.files, NOW)
    assert raised.value.hint
    assert str(fleet.root_file.parent) in raised.value.message


@pytest.mark.parametrize(
    ("then", "words"), [(timedelta(days=100), "expired at"), (timedelta(days=-31), "is not valid before")]
)
def test_a_certificate_out_of_its_time_is_said_at_the_start(
    fleet: TestFleet, server: Identity, then: timedelta, words: str
) -> None:
    """Every client would fail, each with its own riddle."""
    with pytest.raises(FleetError, match=words):
        load_trust(fleet.trust_file, server.files, NOW + then)


def test_a_client_of_the_service_takes_roots_alone_and_checks_the_host(fleet: TestFleet) -> None:
    """A device's CA could sign a server that we believe."""
    broker = fleet.client("broker", Role.BROKER)
    trust = load_client_trust(fleet.trust_file, broker.files, Server.ENROLL, NOW)
    assert ("broker", True, ssl.CERT_REQUIRED) == (trust.name, trust.context.check_hostname, trust.context.verify_mode)
    assert 1 == trust.context.cert_store_stats()["x509_ca"]
