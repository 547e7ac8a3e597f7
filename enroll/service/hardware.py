"""Hardware that its manufacturer's certificate proves, and the one id that an admin claimed it for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from cryptography import x509

from enroll import manufacturers as rules
from enroll.registry import Registry, Transaction, identity, manufacturers
from enroll.registry.records import CertificateRecord, ClaimRecord, PrincipalRecord
from enroll.service.admission import NotAllowed
from fleet.identity import DeviceId, Principal, Role, State

_ONCE_MORE: Final = "an admin lets it come once more: enroll manufacturer claim --replace"


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a manufacturer's certificate proves."""

    manufacturer: str
    serial: str


def hardware_of(registry: Registry, leaf: bytes, now: datetime) -> Hardware | None:
    """What hardware the certificate proves, verified against each trusted CA; None if it proves none."""
    with registry.read() as transaction:
        authorities = manufacturers.authorities(transaction)
    try:
        certificate = x509.load_der_x509_certificate(leaf)
        authority = rules.authority_of(certificate, authorities, now)
    except ValueError:
        return None
    serial = None if authority is None else rules.hardware_serial_of(certificate)
    return None if authority is None or serial is None else Hardware(authority.manufacturer, serial)


def claimed(transaction: Transaction, hardware: Hardware, device: DeviceId) -> ClaimRecord:
    """The claim of that hardware, if it is for `device`. Raises: NotAllowed."""
    found = manufacturers.find_claim(transaction, hardware.manufacturer, hardware.serial)
    if found is None:
        raise NotAllowed(
            f"nobody has claimed {hardware.serial} of {hardware.manufacturer}", hint="enroll manufacturer claim"
        )
    if found.device != device:
        raise NotAllowed(f"{hardware.serial} of {hardware.manufacturer} is not {device}", hint="ask for its own id")
    return found


def certificate_of_key(transaction: Transaction, claim: ClaimRecord, key: bytes) -> CertificateRecord | None:
    """What the claim gave, if it was for that key."""
    if claim.certificate is None:
        return None
    found = identity.certificate_by_number(transaction, claim.certificate)
    return found if found is not None and found.key == key else None


def claimant(transaction: Transaction, claim: ClaimRecord, now: datetime) -> PrincipalRecord:
    """The device as it will be once the claim was used. Raises: NotAllowed."""
    found = identity.find_principal(transaction, claim.device)
    if found is None and (claim.certificate is None or claim.replace):
        return PrincipalRecord(Principal(Role.DEVICE, claim.device), State.ACTIVE, 1, claim.groups, now)
    if found is None or not claim.replace:
        raise NotAllowed(f"{claim.device} has an identity already", hint=_ONCE_MORE)
    if found.principal.role is not Role.DEVICE:
        raise NotAllowed(f"{claim.device} is of role {found.principal.role}", hint="claim it for another id")
    if found.state is State.SUSPENDED:
        raise NotAllowed(f"{claim.device} is suspended", hint=f"enroll device resume {claim.device}")
    return replace(found, state=State.ACTIVE, epoch=found.epoch + 1, groups=claim.groups or found.groups)
