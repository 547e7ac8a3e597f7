"""Manufacturers' CAs and claims of hardware: reads and writes within a caller's transaction."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, Integer, bindparam, delete, func, or_, select, update

from enroll.registry.identity import decode_names, encode_names
from enroll.registry.records import ClaimRecord, ManufacturerCa
from enroll.registry.schema import claims, manufacturer_cas
from enroll.registry.statement import Row, Statement, insert_into
from fleet.identity import DeviceId

_CA_COLUMNS: Final = ("fingerprint", "manufacturer", "der", "created_at")
_COLUMNS: Final = (
    *("manufacturer", "hardware_serial", "device", "groups", "profile", "replace", "created_at", "certificate"),
)
_CLAIM = select(*(claims.c[name] for name in _COLUMNS))
_IS_THIS: Final = (claims.c.manufacturer == bindparam("by")) & (claims.c.hardware_serial == bindparam("serial"))
_AFTER: Final = or_(
    claims.c.manufacturer > bindparam("by"),
    (claims.c.manufacturer == bindparam("by")) & (claims.c.hardware_serial > bindparam("serial")),
)

_CAS = Statement(
    select(*(manufacturer_cas.c[name] for name in _CA_COLUMNS)).order_by(
        manufacturer_cas.c.manufacturer, manufacturer_cas.c.created_at
    )
)
_ADD_CA = insert_into(manufacturer_cas, *_CA_COLUMNS)
_REMOVE_CAS = Statement(delete(manufacturer_cas).where(manufacturer_cas.c.manufacturer == bindparam("of")))
_ADD = insert_into(claims, *_COLUMNS)
_REMOVE = Statement(delete(claims).where(_IS_THIS))
_FIND = Statement(_CLAIM.where(_IS_THIS))
_OF_DEVICE = Statement(_CLAIM.where(claims.c.device == bindparam("of")))
_PAGE = Statement(
    _CLAIM.where(_AFTER)
    .order_by(claims.c.manufacturer, claims.c.hardware_serial)
    .limit(bindparam("limit", type_=Integer))
)
_GIVEN = Statement(update(claims).where(_IS_THIS).values(certificate=bindparam("number"), replace=False))
_SET_REPLACE = Statement(update(claims).where(_IS_THIS).values(replace=bindparam("value")))
_END_REPLACE = Statement(
    update(claims).where(claims.c.device == bindparam("of"), claims.c.replace).values(replace=False)
)
_COUNT = Statement(select(func.count()).select_from(claims).where(claims.c.manufacturer == bindparam("of")))


def authorities(transaction: Connection) -> list[ManufacturerCa]:
    """Every manufacturer's CA."""
    return [ManufacturerCa(*row) for row in _CAS.all(transaction)]


def add_authority(transaction: Connection, ca: ManufacturerCa) -> None:
    """Add a CA that is not there yet."""
    _ADD_CA.run(
        transaction,
        fingerprint=ca.fingerprint,
        manufacturer=ca.manufacturer,
        der=ca.der,
        created_at=ca.created_at,
    )


def remove_authorities(transaction: Connection, manufacturer: str) -> int:
    """Remove a manufacturer's CAs; how many there were. Its claims stay."""
    return _REMOVE_CAS.run(transaction, of=manufacturer)


def add_claim(transaction: Connection, claim: ClaimRecord) -> None:
    """Add a claim; neither its hardware nor its device has one."""
    _ADD.run(
        transaction,
        manufacturer=claim.manufacturer,
        hardware_serial=claim.hardware_serial,
        device=claim.device,
        groups=encode_names(claim.groups),
        profile=claim.profile,
        replace=claim.replace,
        created_at=claim.created_at,
        certificate=claim.certificate,
    )


def remove_claim(transaction: Connection, manufacturer: str, serial: str) -> bool:
    """Remove a claim; whether it was there."""
    return _REMOVE.run(transaction, by=manufacturer, serial=serial) == 1


def find_claim(transaction: Connection, manufacturer: str, serial: str) -> ClaimRecord | None:
    """The claim of that hardware."""
    return _claim(_FIND.first(transaction, by=manufacturer, serial=serial))


def claim_of_device(transaction: Connection, device: DeviceId) -> ClaimRecord | None:
    """The claim for that id."""
    return _claim(_OF_DEVICE.first(transaction, of=device))


def page_of_claims(transaction: Connection, manufacturer: str, serial: str, limit: int) -> list[ClaimRecord]:
    """Up to `limit` claims behind that of `manufacturer` and `serial`, by both."""
    rows = _PAGE.all(transaction, by=manufacturer, serial=serial, limit=limit)
    return [claim for row in rows if (claim := _claim(row)) is not None]


def count_claims(transaction: Connection, manufacturer: str) -> int:
    """How many claims there are on a manufacturer's hardware."""
    row = _COUNT.first(transaction, of=manufacturer)
    assert row is not None
    return int(row[0])


def given(transaction: Connection, claim: ClaimRecord, certificate: int) -> None:
    """Note what the claim gave; it is used up."""
    _GIVEN.run(transaction, by=claim.manufacturer, serial=claim.hardware_serial, number=certificate)


def set_replace(transaction: Connection, claim: ClaimRecord, *, replace: bool) -> None:
    """Whether the hardware may come once more."""
    _SET_REPLACE.run(transaction, by=claim.manufacturer, serial=claim.hardware_serial, value=replace)


def end_replace(transaction: Connection, device: DeviceId) -> bool:
    """The claim for `device` gives it no new identity; whether it would have."""
    return 0 < _END_REPLACE.run(transaction, of=device)


def _claim(row: Row | None) -> ClaimRecord | None:
    if row is None:
        return None
    manufacturer, serial, device, groups, *rest = row
    return ClaimRecord(manufacturer, serial, DeviceId(device), decode_names(groups), *rest)
