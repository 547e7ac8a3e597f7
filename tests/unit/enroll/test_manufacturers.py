"""Devices that come with their manufacturer's certificate, and what else such a certificate is not good for."""

from __future__ import annotations

import dataclasses
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from enroll import manufacturers as rules
from enroll import service
from enroll.registry import identity
from enroll.service import manufacturers, new_claim
from fleet import directory, est
from fleet.errors import Denied, FleetError, InvalidInput, NotFound
from fleet.est import EstRequest, EstResponse
from fleet.identity import DeviceId, Role, State
from tests.contract.registries import check_invariants
from tests.fleets import NOW, Office, certificate_in, csr, new_key
from tests.makers import Hardware, Maker

PUMP = DeviceId("pump-07")


@pytest.fixture(name="maker")
def _maker(office: Office) -> Maker:
    """A manufacturer whom the fleet trusts."""
    maker = Maker("Pumps Ltd", NOW)
    trust(office, "pumps", maker)
    return maker


def ours(office: Office) -> list[x509.Certificate]:
    return list(office.authority.certificates)


def trust(office: Office, name: str, maker: Maker) -> None:
    service.add_manufacturer(office.registry, name, [maker.ca], ours(office), by="anna", now=office.now)


def claim(office: Office, serial: str = "SN-1", device: str = "pump-07", by: str = "pumps", **changes: object) -> None:
    wanted = dataclasses.replace(new_claim(by, serial, DeviceId(device), office.now), **changes)  # type: ignore[arg-type]
    service.add_claims(office.registry, [wanted], by="anna", now=office.now)


def ask(office: Office, hardware: Hardware, der: bytes, path: str = est.SIMPLE_ENROLL) -> EstResponse:
    """The answer to a request over a connection with the manufacturer's certificate."""
    headers = {"content-type": est.PKCS10}
    request = EstRequest("POST", path, headers, est.encode_body(der), peer=hardware.der, address="192.0.2.7")
    return office.app.handle(request)


def test_claimed_hardware_gets_its_id(office: Office, maker: Maker) -> None:
    """A device from the factory cannot enrol, or with a certificate for another key."""
    claim(office, groups=("cellar",))
    key = new_key()
    certificate = certificate_in(ask(office, maker.hardware("SN-1"), csr("pump-07", key)))
    assert key.public_key() == certificate.public_key()
    record = service.show(office.registry, PUMP).record
    assert (Role.DEVICE, ("cellar",)) == (record.principal.role, record.groups)
    check_invariants(office.registry)


def test_the_same_key_gets_the_same_certificate_again(office: Office, maker: Maker) -> None:
    """A lost answer, and the device has to be visited."""
    claim(office)
    hardware, der = maker.hardware("SN-1"), csr("pump-07")
    assert certificate_in(ask(office, hardware, der)) == certificate_in(ask(office, hardware, der))


def test_a_claim_is_used_once(office: Office, maker: Maker) -> None:
    """Whoever has the hardware's key, or steals the device, takes the name over and over."""
    claim(office)
    hardware = maker.hardware("SN-1")
    certificate_in(ask(office, hardware, csr("pump-07")))
    refused = ask(office, hardware, csr("pump-07"))
    assert 403 == refused.status
    assert b"--replace" in refused.body
    service.allow_once_more(office.registry, "pumps", "SN-1", by="anna", now=office.now)
    certificate_in(ask(office, hardware, csr("pump-07")))
    assert 403 == ask(office, hardware, csr("pump-07")).status
    check_invariants(office.registry)


def test_a_revoked_device_comes_back_only_when_an_admin_lets_it(office: Office, maker: Maker) -> None:
    """Its manufacturer's certificate lets it in again, a minute after it was revoked."""
    claim(office)
    hardware, der = maker.hardware("SN-1"), csr("pump-07")
    certificate_in(ask(office, hardware, der))
    service.allow_once_more(office.registry, "pumps", "SN-1", by="anna", now=office.now)
    office.revoke("pump-07")
    assert [403, 403] == [ask(office, hardware, each).status for each in (der, csr("pump-07"))]
    service.allow_once_more(office.registry, "pumps", "SN-1", by="anna", now=office.now)
    certificate_in(ask(office, hardware, csr("pump-07")))


@pytest.mark.parametrize("device", ["pump-08", "sn-1", "admin"])
def test_hardware_gets_no_other_id_than_its_own(office: Office, maker: Maker, device: str) -> None:
    """A pump of the same manufacturer takes the name of its neighbour, or of an operator."""
    claim(office)
    claim(office, "SN-2", "pump-08")
    assert 403 == ask(office, maker.hardware("SN-1"), csr(device)).status


def test_hardware_that_nobody_claimed_is_refused(office: Office, maker: Maker) -> None:
    """Everything that the manufacturer ever sold is let in."""
    claim(office)
    assert 403 == ask(office, maker.hardware("SN-9"), csr("pump-07")).status


def test_the_serial_counts_with_its_manufacturer(office: Office, maker: Maker) -> None:
    """Two manufacturers count from 1, and the one's device takes the other's claim."""
    other = Maker("Valves Ltd", NOW)
    trust(office, "valves", other)
    claim(office)
    assert 403 == ask(office, other.hardware("SN-1"), csr("pump-07")).status


def test_a_manufacturer_of_the_same_name_is_another(office: Office, maker: Maker) -> None:
    """Whoever calls a CA like the manufacturer's makes hardware serials as he likes."""
    claim(office)
    assert 401 == ask(office, Maker("Pumps Ltd", NOW).hardware("SN-1"), csr("pump-07")).status


def test_a_manufacturer_that_is_removed_lets_nobody_in(office: Office, maker: Maker) -> None:
    """A manufacturer whose CA was stolen goes on until the service is restarted."""
    claim(office)
    service.remove_manufacturer(office.registry, "pumps", by="anna", now=office.now)
    assert 401 == ask(office, maker.hardware("SN-1"), csr("pump-07")).status


@pytest.mark.parametrize(
    "serials", [(), ("SN-1", "SN-2"), (" SN-1",), ("x" * 64 + "y",)], ids=["none", "two", "space", "long"]
)
def test_a_certificate_without_one_plain_serial_proves_nothing(
    office: Office, maker: Maker, serials: tuple[str, ...]
) -> None:
    """The hardware is whatever comes first in an odd subject."""
    claim(office)
    assert 401 == ask(office, maker.hardware(*serials, common_name="x"), csr("pump-07")).status


def test_a_ca_below_the_manufacturers_is_no_device(office: Office, maker: Maker) -> None:
    """A CA's certificate is taken for a device's."""
    claim(office)
    assert 401 == ask(office, maker.hardware("SN-1", is_ca=True), csr("pump-07")).status


def test_an_expired_certificate_on_a_kept_alive_connection_proves_nothing(office: Office, maker: Maker) -> None:
    """TLS looked at the dates once, when the connection began."""
    claim(office)
    hardware = maker.hardware("SN-1", ends=NOW + timedelta(hours=1))
    office.wait(timedelta(hours=2))
    assert 401 == ask(office, hardware, csr("pump-07")).status


# What it is not good for -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["admin", "broker"])
def test_a_manufacturer_cannot_make_an_operator_or_a_broker(office: Office, maker: Maker, name: str) -> None:
    """A manufacturer's CA signs a leaf with the names, and even the serial, of somebody who matters here."""
    with office.registry.read() as transaction:
        [certificate] = identity.live_certificates_of(transaction, DeviceId(name))
    role = service.show(office.registry, DeviceId(name)).record.principal.role
    forged = maker.hardware(
        common_name=name, number=int(certificate.serial, 16), uri=f"spiffe://acme.example/{role.value}/{name}"
    )
    genuine = x509.load_der_x509_certificate(certificate.der)
    assert 200 == office.get(est.CONFIG, genuine).status
    for path in (est.CONFIG, directory.PATH):
        assert 403 == office.get(path, forged.certificate, serial=certificate.serial).status
    assert 403 == office.reenrol(forged.certificate, csr(name)).status
    assert isinstance(office.app.begin_stream(EstRequest("GET", directory.PATH, peer=forged.der)), EstResponse)
    assert 401 == ask(office, forged, csr(name)).status


def test_a_manufacturers_certificate_is_good_for_simpleenroll_alone(office: Office, maker: Maker) -> None:
    """Hardware renews, reads its configuration or the directory without an identity of this fleet."""
    claim(office)
    hardware = maker.hardware("SN-1")
    assert 403 == ask(office, hardware, csr("pump-07"), est.SIMPLE_REENROLL).status
    for path in (est.CONFIG, directory.PATH):
        assert 403 == office.get(path, hardware.certificate, serial="1").status


def test_the_fleets_own_certificate_does_not_enrol(office: Office, maker: Maker) -> None:
    """Every device can make more devices."""
    own = office.enrolled("valve-1")
    claim(office)
    request = EstRequest(
        "POST",
        est.SIMPLE_ENROLL,
        {"content-type": est.PKCS10},
        est.encode_body(csr("pump-07")),
        peer=own.public_bytes(Encoding.DER),
    )
    assert 401 == office.app.handle(request).status


def test_an_odd_certificate_is_refused_in_words(office: Office, maker: Maker) -> None:
    """A certificate that cannot be parsed, which TLS let through, ends in a traceback."""
    for path in (est.CONFIG, est.SIMPLE_ENROLL):
        request = EstRequest("GET" if path == est.CONFIG else "POST", path, {"content-type": est.PKCS10}, peer=b"0")
        assert office.app.handle(request).status in (401, 403)


# What admins may say -----------------------------------------------------------------------------------------------


def test_our_own_cas_are_no_manufacturers(office: Office) -> None:
    """Every certificate of the fleet is a claim, or the fleet's own cannot be verified any more."""
    for own in ours(office):
        with pytest.raises(Denied):
            service.add_manufacturer(office.registry, "we", [own], ours(office), by="anna", now=office.now)
        with pytest.raises(Denied):
            trust(office, "looks-alike", Maker(own.subject, NOW))


def test_what_is_no_ca_is_no_manufacturer(office: Office) -> None:
    """A device's certificate is trusted to make devices."""
    with pytest.raises(InvalidInput, match="not a CA"):
        trust(office, "x", Maker("x", NOW, is_ca=False))
    with pytest.raises(InvalidInput, match="not valid now"):
        trust(office, "x", Maker("x", NOW + timedelta(days=3)))


def test_one_ca_is_one_manufacturers(office: Office, maker: Maker) -> None:
    """Which manufacturer's hardware it is depends on which row is read first."""
    trust(office, "pumps", maker)
    with pytest.raises(Denied, match="a CA of pumps"):
        trust(office, "valves", maker)


def test_hardware_has_one_id_and_an_id_one_hardware(office: Office, maker: Maker) -> None:
    """Two devices have the claim to one name."""
    claim(office)
    claim(office)  # the same again changes nothing
    with pytest.raises(Denied, match="SN-1 is claimed for pump-07"):
        claim(office, "SN-1", "pump-08")
    with pytest.raises(Denied, match="pump-07 is claimed for SN-1"):
        claim(office, "SN-2", "pump-07")
    assert 1 == len(list(service.claims(office.registry)))


def test_an_id_that_is_taken_is_claimed_with_replace_alone(office: Office, maker: Maker) -> None:
    """An import takes the names of devices that run."""
    office.enrolled("pump-07")
    with pytest.raises(Denied, match="has an identity already"):
        claim(office)
    with pytest.raises(Denied, match="of role operator"):
        claim(office, "SN-2", "admin", replace=True)
    claim(office, replace=True)
    certificate_in(ask(office, maker.hardware("SN-1"), csr("pump-07")))
    assert 2 == service.show(office.registry, PUMP).record.epoch


def test_a_suspended_device_stays_out(office: Office, maker: Maker) -> None:
    """A device that an admin keeps out comes back by its hardware."""
    office.enrolled("pump-07")
    claim(office, replace=True)
    service.suspend(office.registry, PUMP, by="anna", now=office.now)
    assert 403 == ask(office, maker.hardware("SN-1"), csr("pump-07")).status
    assert State.SUSPENDED is service.show(office.registry, PUMP).record.state


def test_claims_come_all_or_none_and_in_pages(office: Office, maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a list is claimed; or a list of a million is held in memory."""
    monkeypatch.setattr(manufacturers, "PAGE", 2)
    wanted = [new_claim("pumps", f"SN-{number}", DeviceId(f"pump-{number}"), NOW) for number in range(7)]
    office.enrolled("pump-3")
    with pytest.raises(Denied):
        service.add_claims(office.registry, wanted, by="anna", now=office.now)
    assert [] == list(service.claims(office.registry))
    assert ["pump-3 has an identity already"] == service.check_claims(office.registry, wanted)
    del wanted[3]
    assert 6 == service.add_claims(office.registry, wanted, by="anna", now=office.now)
    assert 0 == service.add_claims(office.registry, wanted, by="anna", now=office.now)
    assert [claim.device for claim in wanted] == [claim.device for claim in service.claims(office.registry)]


@pytest.mark.parametrize("serial", ["", " a", "a ", "a\nb", "é", "x" * 65])
def test_what_is_no_serial_is_not_claimed(office: Office, maker: Maker, serial: str) -> None:
    """A claim that no certificate can ever match, or that drives a terminal."""
    with pytest.raises(FleetError):
        claim(office, serial)
    with pytest.raises(InvalidInput):
        rules.check_name(serial + "/")


def test_what_is_not_there_is_not_removed(office: Office) -> None:
    """A slip of the pen looks done."""
    with pytest.raises(NotFound):
        service.remove_manufacturer(office.registry, "x", by="anna", now=office.now)
    with pytest.raises(NotFound):
        service.remove_claim(office.registry, "x", "y", by="anna", now=office.now)
    with pytest.raises(NotFound):
        service.check_known(office.registry, "x")
