"""Every registry that the contract suite runs against, and what must hold in each after every step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Final

from enroll.audit import first_broken
from enroll.crl import EVERYTHING
from enroll.registry import Registry, Transaction, feed, identity, log, overview, revocations
from enroll.registry import tokens as token_rows
from enroll.registry.overview import Filter
from enroll.registry.records import LIVE, CertificateState, PrincipalRecord, Reason
from fleet.directory import Entry
from fleet.identity import DeviceId, Principal, Role, State
from tests.fleets import NOW

RegistryFactory = Callable[[Path], AbstractContextManager[Registry]]
"""Opens the registry that lives at (or is named after) a path: a second call opens the same one again."""


def sqlite(folder: Path) -> AbstractContextManager[Registry]:
    return Registry.open(folder / "registry.db")


PUMP: Final = DeviceId("pump-07")


def principal(id: DeviceId = PUMP, **changes: object) -> PrincipalRecord:
    record = PrincipalRecord(Principal(Role.DEVICE, id), State.ACTIVE, 1, ("north",), NOW)
    return replace(record, **changes)  # type: ignore[arg-type] # a test's own fields


REGISTRIES: Final[dict[str, RegistryFactory]] = {"sqlite": sqlite}


def check_invariants(registry: Registry) -> None:
    """Serials unique, tokens redeemed as often as they say, one live identity per device, nothing half done."""
    with registry.read() as transaction:
        principals = identity.list_principals(transaction)
        owned = {principal.id: identity.certificates_of(transaction, principal.id) for principal in principals}
        entries = {principal.id: feed.entry_of(transaction, principal.id) for principal in principals}
        tokens = token_rows.newest_tokens(transaction, 100_000)
        redemptions = token_rows.redemptions(transaction)
        assert first_broken(log.entries(transaction)) is None
        _check_revocations(transaction, principals)
        for group in {name for principal in principals for name in principal.groups}:
            members = overview.page(transaction, Filter(group=group), None, 1000)
            assert {each.record.id for each in members} == {p.id for p in principals if group in p.groups}
    every = [certificate for certificates in owned.values() for certificate in certificates]
    assert len(every) == len({certificate.serial for certificate in every}), "a serial was given twice"
    assert len(every) == len({certificate.key for certificate in every}), "a key was certified twice"
    for token in tokens:
        assert token.uses - token.uses_left == redemptions.get(token.id, 0), "uses and redemptions differ"
        assert 0 <= token.uses_left
    for principal in principals:
        live = [certificate for certificate in owned[principal.id] if certificate.state in LIVE]
        states = Counter(certificate.state for certificate in live)
        assert states[CertificateState.CONFIRMED] <= 1
        assert states[CertificateState.PENDING] <= 1
        assert {certificate.epoch for certificate in live} <= {principal.epoch}, "a predecessor may still connect"
        assert principal.state is not State.REVOKED or not live
        entry = entries[principal.id]
        assert isinstance(entry, Entry)
        assert {certificate.serial for certificate in live} == entry.serials
        assert (principal.state, principal.epoch) == (entry.state, entry.epoch)


def _check_revocations(transaction: Transaction, principals: list[PrincipalRecord]) -> None:
    """On CRLs stand those that ended and those of who is suspended, each once, in its shard; no others."""
    expected, held = set(), set()
    for principal in principals:
        for certificate in identity.certificates_of(transaction, principal.id):
            if certificate.state not in LIVE:
                expected.add(certificate.serial)
            elif principal.state is State.SUSPENDED:
                held.add(certificate.serial)
    shards = revocations.revisions(transaction)
    lines = [line for shard in shards for line in revocations.of_shard(transaction, shard, EVERYTHING)]
    assert sorted(expected | held) == sorted(line.serial for line in lines)
    assert held == {line.serial for line in lines if line.reason is Reason.CERTIFICATE_HOLD}
    of_issuer = revocations.of_issuer(transaction, "devices", EVERYTHING)
    assert sorted(expected | held) == sorted(line.serial for line in of_issuer)
