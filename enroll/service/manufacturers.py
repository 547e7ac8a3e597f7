"""Manufacturers that a fleet trusts, and which of their hardware is which device. `by` is who asked, for the log."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from enroll import audit
from enroll import manufacturers as rules
from enroll.registry import Registry, Transaction, identity
from enroll.registry import manufacturers as rows
from enroll.registry.records import ClaimRecord, ManufacturerCa
from enroll.tokens import TokenOrder, check_order
from fleet.errors import Denied, FleetError, NotFound
from fleet.identity import DeviceId, Role

PAGE: Final = 500


@dataclass(frozen=True, slots=True)
class Manufacturer:
    """A manufacturer's CA, and how many claims there are on the manufacturer's hardware."""

    ca: ManufacturerCa
    claims: int


def add_manufacturer(
    registry: Registry,
    name: str,
    certificates: Sequence[x509.Certificate],
    ours: Sequence[x509.Certificate],
    *,
    by: str,
    now: datetime,
) -> None:
    """Trust the CAs for the hardware of a manufacturer; those that are trusted for it already stay.

    Raises: InvalidInput, Denied (a CA of ours, or of another manufacturer), RegistryUnavailable.
    """
    rules.check_name(name)
    for certificate in certificates:
        rules.check_authority(certificate, ours, now)
    with registry.write() as transaction:
        known = {ca.fingerprint: ca for ca in rows.authorities(transaction)}
        for certificate in certificates:
            fingerprint = rules.fingerprint_of(certificate)
            if (found := known.get(fingerprint)) is None:
                der = certificate.public_bytes(Encoding.DER)
                rows.add_authority(transaction, ManufacturerCa(fingerprint, name, der, now))
                fields = {"manufacturer": name, "fingerprint": fingerprint.hex()}
                audit.record(transaction, now, "manufacturer.trusted", **fields, by=by)
            elif found.manufacturer != name:
                raise Denied(f"that is a CA of {found.manufacturer}", hint="enroll manufacturer list")


def remove_manufacturer(registry: Registry, name: str, *, by: str, now: datetime) -> None:
    """Trust a manufacturer no more; its claims stay. Whom it let in stays too. Raises: NotFound."""
    with registry.write() as transaction:
        if not rows.remove_authorities(transaction, name):
            raise NotFound(f"there is no manufacturer {name[:40]!r}", hint="enroll manufacturer list")
        audit.record(transaction, now, "manufacturer.removed", manufacturer=name, by=by)


def trusted_manufacturers(registry: Registry) -> list[Manufacturer]:
    """Every trusted CA, by manufacturer."""
    with registry.read() as transaction:
        return [
            Manufacturer(ca, rows.count_claims(transaction, ca.manufacturer)) for ca in rows.authorities(transaction)
        ]


def check_claims(registry: Registry, claims: Iterable[ClaimRecord]) -> list[str]:
    """What is wrong with each claim that could not be added, in words; the same claim as one that is there is right."""
    problems = []
    with registry.read() as transaction:
        for claim in claims:
            try:
                _is_new(transaction, claim)
            except FleetError as error:
                problems.append(error.message)
    return problems


def add_claims(registry: Registry, claims: Sequence[ClaimRecord], *, by: str, now: datetime) -> int:
    """Add claims, all or none; how many were new.

    Raises: InvalidInput, NotFound (the manufacturer), Denied (hardware or id are claimed otherwise, or the id is
    taken), RegistryUnavailable.
    """
    count = 0
    with registry.write() as transaction:
        for claim in claims:
            if _is_new(transaction, claim):
                rows.add_claim(transaction, claim)
                fields = {"manufacturer": claim.manufacturer, "hardware_serial": claim.hardware_serial}
                audit.record(transaction, now, "hardware.claimed", **fields, device=claim.device, by=by)
                count += 1
    return count


def _is_new(transaction: Transaction, claim: ClaimRecord) -> bool:
    rules.check_serial(claim.hardware_serial)
    check_order(TokenOrder(claim.device, groups=claim.groups, profile=claim.profile))
    found = rows.find_claim(transaction, claim.manufacturer, claim.hardware_serial)
    if found is not None and found.device == claim.device:
        return False
    if found is not None:
        raise Denied(f"{claim.hardware_serial} is claimed for {found.device}", hint="enroll manufacturer unclaim")
    other = rows.claim_of_device(transaction, claim.device)
    if other is not None:
        raise Denied(f"{claim.device} is claimed for {other.hardware_serial}", hint="enroll manufacturer unclaim")
    principal = identity.find_principal(transaction, claim.device)
    if principal is not None and principal.principal.role is not Role.DEVICE:
        raise Denied(f"{claim.device} is of role {principal.principal.role}", hint="take another id")
    if principal is not None and not claim.replace:
        raise Denied(f"{claim.device} has an identity already", hint="add --replace to give it a new key")
    return True


def allow_once_more(registry: Registry, manufacturer: str, serial: str, *, by: str, now: datetime) -> ClaimRecord:
    """Let hardware that was set up anew, or whose device was revoked, come once more. Raises: NotFound."""
    with registry.write() as transaction:
        found = _find(transaction, manufacturer, serial)
        rows.set_replace(transaction, found, replace=True)
        fields = {"manufacturer": manufacturer, "hardware_serial": serial, "device": found.device}
        audit.record(transaction, now, "hardware.reclaimed", **fields, by=by)
        return found


def remove_claim(registry: Registry, manufacturer: str, serial: str, *, by: str, now: datetime) -> ClaimRecord:
    """Let hardware have its id no more; the identity that it has by now stays. Raises: NotFound."""
    with registry.write() as transaction:
        found = _find(transaction, manufacturer, serial)
        rows.remove_claim(transaction, manufacturer, serial)
        fields = {"manufacturer": manufacturer, "hardware_serial": serial, "device": found.device}
        audit.record(transaction, now, "hardware.unclaimed", **fields, by=by)
        return found


def claims(registry: Registry) -> Iterator[ClaimRecord]:
    """Every claim, by manufacturer and serial, read a page at a time."""
    manufacturer = serial = ""
    while True:
        with registry.read() as transaction:
            page = rows.page_of_claims(transaction, manufacturer, serial, PAGE)
        yield from page
        if len(page) < PAGE:
            return
        manufacturer, serial = page[-1].manufacturer, page[-1].hardware_serial


def new_claim(
    manufacturer: str,
    serial: str,
    device: DeviceId,
    now: datetime,
    *,
    groups: tuple[str, ...] = (),
    profile: str = "client",
    replace: bool = False,
) -> ClaimRecord:
    """A claim as an admin makes it."""
    return ClaimRecord(manufacturer, serial, device, groups, profile, replace, now)


def check_known(registry: Registry, name: str) -> None:
    """Raises: NotFound unless some CA is trusted for that manufacturer."""
    with registry.read() as transaction:
        if not any(ca.manufacturer == name for ca in rows.authorities(transaction)):
            raise NotFound(f"there is no manufacturer {name[:40]!r}", hint="enroll manufacturer add")


def _find(transaction: Transaction, manufacturer: str, serial: str) -> ClaimRecord:
    found = rows.find_claim(transaction, manufacturer, serial)
    if found is None:
        raise NotFound(
            f"nobody has claimed {serial[:64]!r} of {manufacturer[:40]!r}", hint="enroll manufacturer claims"
        )
    return found
