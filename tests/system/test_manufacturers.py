"""Hardware with a manufacturer's certificate over real TLS, with curl as its EST client."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509

from fleet import est, pki
from tests.deadlines import within
from tests.fleets import csr, new_key
from tests.makers import Hardware, Maker
from tests.processes import run
from tests.system.agents import LiveFleet, live_fleet


@pytest.fixture(scope="module", name="fleet")
def _fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveFleet]:
    with live_fleet(tmp_path_factory.mktemp("makers"), with_broker=False) as fleet:
        yield fleet


@pytest.fixture(name="maker")
def _maker() -> Maker:
    return Maker("Pumps Ltd", datetime.now(UTC))


def trust(fleet: LiveFleet, name: str, maker: Maker, folder: Path) -> None:
    """Trust a manufacturer while the service runs."""
    (folder / "ca.pem").write_bytes(maker.pem)
    fleet.enroll("manufacturer", "add", name, folder / "ca.pem")


def ask(fleet: LiveFleet, hardware: Hardware, der: bytes, folder: Path, path: str = est.SIMPLE_ENROLL) -> list[str]:
    """The answer's status, and its body; 000 where TLS came to nothing."""
    certificate, key = hardware.write(folder)
    (folder / "csr").write_bytes(est.encode_body(der))
    done = subprocess.run(
        [
            *("curl", "-sS", "--cacert", str(fleet.home.root.certificate), "--cert", str(certificate)),
            *("--key", str(key), "-H", f"Content-Type: {est.PKCS10}", "--data-binary", f"@{folder / 'csr'}"),
            *("-w", "\n%{http_code}", fleet.url + path),
        ],
        capture_output=True,
        text=True,
        timeout=within(20),
    )
    body, _, status = done.stdout.rpartition("\n")
    return [status, body]


def asked_until_trusted(fleet: LiveFleet, hardware: Hardware, der: bytes, folder: Path) -> list[str]:
    """As `ask`, once the running service has noticed the new manufacturer."""
    deadline = datetime.now(UTC).timestamp() + within(10)
    while (answer := ask(fleet, hardware, der, folder))[0] == "000":
        assert datetime.now(UTC).timestamp() < deadline, "the manufacturer was never trusted"
    return answer


def test_claimed_hardware_enrols_at_a_running_service(fleet: LiveFleet, maker: Maker, tmp_path: Path) -> None:
    """A manufacturer is trusted only after a restart, or its hardware cannot finish a handshake."""
    hardware, key = maker.hardware("SN-1", common_name="Pump Mk II"), new_key()
    assert "000" == ask(fleet, hardware, csr("pump-01", key), tmp_path)[0], "TLS lets in whom nobody trusts"
    trust(fleet, "pumps", maker, tmp_path)
    fleet.enroll("manufacturer", "claim", "pumps", "SN-1", "pump-01")
    status, body = asked_until_trusted(fleet, hardware, csr("pump-01", key), tmp_path)
    assert "200" == status, body
    [certificate] = est.decode_certificates(body.encode())
    assert ("pump-01", key.public_key()) == (pki.common_name_of(certificate.subject), certificate.public_key())


def test_one_that_is_removed_is_refused_by_tls_and_the_others_are_not(fleet: LiveFleet, tmp_path: Path) -> None:
    """Whoever holds a manufacturer's CA could go on shaking hands, and each costs, until somebody restarts."""
    gone, stays = (Maker(name, datetime.now(UTC)) for name in ("Gone Ltd", "Stays Ltd"))
    for name, maker in (("gone", gone), ("stays", stays)):
        trust(fleet, name, maker, tmp_path)
        assert "403" == asked_until_trusted(fleet, maker.hardware("SN-7"), csr("pump-07"), tmp_path)[0]
    fleet.enroll("manufacturer", "remove", "gone", "--yes")
    deadline = datetime.now(UTC).timestamp() + within(10)
    while "000" != ask(fleet, gone.hardware("SN-7"), csr("pump-07"), tmp_path)[0]:
        assert datetime.now(UTC).timestamp() < deadline, "the manufacturer is trusted for ever"
    assert "403" == ask(fleet, stays.hardware("SN-7"), csr("pump-07"), tmp_path)[0]


def test_over_tls_it_is_good_for_nothing_else(fleet: LiveFleet, tmp_path: Path) -> None:
    """A manufacturer signs a certificate with an operator's name and serial, and is an operator here."""
    maker = Maker("Valves Ltd", datetime.now(UTC))
    trust(fleet, "valves", maker, tmp_path)
    [admin] = x509.load_pem_x509_certificates(fleet.home.operator.identity.certificate.read_bytes())[:1]
    forged = maker.hardware(common_name="admin", number=admin.serial_number, uri="spiffe://acme.example/operator/admin")
    assert "401" == asked_until_trusted(fleet, forged, csr("admin"), tmp_path)[0]
    for path in (est.SIMPLE_REENROLL, est.CONFIG):
        assert ask(fleet, forged, csr("admin"), tmp_path, path)[0] in ("403", "405")


def test_the_fleets_own_devices_connect_as_before(fleet: LiveFleet, maker: Maker, tmp_path: Path) -> None:
    """Trusting a manufacturer breaks the verification of everybody else."""
    trust(fleet, "others", maker, tmp_path)
    home = fleet.joined("pump-02")
    done = run(
        *("curl", "-sS", "--cacert", home.trust, "--cert", home.identity.certificate, "--key", home.identity.key),
        *("-w", "%{http_code}", "-o", tmp_path / "config", fleet.url + est.CONFIG),
    )
    assert "200" == done.check().stdout
