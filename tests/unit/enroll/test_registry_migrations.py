"""Registries of older releases with rows in them, brought up to date."""

from __future__ import annotations

from pathlib import Path

from enroll import service
from enroll.registry import Registry, revocations
from enroll.registry.database import _sqlite_engine, _upgrade
from enroll.registry.records import Reason
from enroll.registry.reserve import reserve_of
from fleet.identity import DeviceId, Serial
from tests.fleets import NOW

_YEAR_2030 = 1_893_456_000_000_000  # microseconds
_CERTIFICATES = (
    # number, serial, issuer, principal, state, shard
    (1, "a1", "servers", None, "revoked", 0),
    (2, "a2", "servers", None, "confirmed", 0),
    (3, "b1", "devices", "active", "superseded", 1),
    (4, "b2", "devices", "active", "confirmed", 1),
    (5, "c1", "devices", "suspended", "confirmed", 1),
    (6, "c2", "devices", "suspended", "pending", 1),
    (7, "d1", "devices", "revoked", "revoked", 1),
    (10_001, "d2", "devices", "revoked", "superseded", 2),
)
_INSERT = """
    INSERT INTO certificates (number, serial, issuer, principal, key, state, shard, not_after,
                              profile, epoch, generation, not_before, der, created_at)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'client', 1, 1, 0, x'00', 7)
"""


def _old_registry(path: Path) -> None:
    """A registry as it was before there were lists of revocations."""
    path.touch(mode=0o600)
    registry = Registry(_sqlite_engine(path), reserve_of(path))
    with registry.write() as transaction:
        _upgrade(transaction, "0007")
        for state in ("active", "suspended", "revoked"):
            transaction.exec_driver_sql(f"INSERT INTO principals VALUES ('{state}', 'device', '{state}', 1, '[]', 0)")
        for number, serial, issuer, principal, state, shard in _CERTIFICATES:
            key = number.to_bytes(32, "big")
            transaction.exec_driver_sql("INSERT INTO keys VALUES (?, ?, 0)", (key, principal))
            row = (number, serial, issuer, principal, key, state, shard, _YEAR_2030)
            transaction.exec_driver_sql(_INSERT, row)
    registry.close()


def _lines(registry: Registry, shard: int) -> dict[Serial, Reason | None]:
    with registry.read() as transaction:
        return {line.serial: line.reason for line in revocations.of_shard(transaction, shard, NOW)}


def test_what_had_ended_before_there_were_lists_is_on_them(tmp_path: Path) -> None:
    """After an upgrade a certificate that was revoked long ago passes `openssl verify -crl_check`."""
    path = tmp_path / "registry.db"
    _old_registry(path)
    with Registry.open(path) as registry:
        assert {Serial("a1"): None} == _lines(registry, 0)
        held = dict.fromkeys((Serial("c1"), Serial("c2")), Reason.CERTIFICATE_HOLD)
        assert {Serial("b1"): Reason.SUPERSEDED, **held, Serial("d1"): None} == _lines(registry, 1)
        assert {Serial("d2"): Reason.SUPERSEDED} == _lines(registry, 2)
        with registry.read() as transaction:
            assert {0: 1, 1: 1, 2: 1} == revocations.revisions(transaction)


def test_whoever_was_suspended_before_there_were_lists_comes_off(tmp_path: Path) -> None:
    """A device that is resumed after an upgrade stays on hold for everybody who reads lists."""
    path = tmp_path / "registry.db"
    _old_registry(path)
    with Registry.open(path) as registry:
        service.resume(registry, DeviceId("suspended"), by="test", now=NOW)
        assert {Serial("b1"), Serial("d1")} == _lines(registry, 1).keys()
        service.revoke(registry, DeviceId("active"), by="test", now=NOW, reason=Reason.KEY_COMPROMISE)
        assert Reason.KEY_COMPROMISE is _lines(registry, 1)[Serial("b2")]
