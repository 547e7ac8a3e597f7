"""One identity is one device: who may renew, when two want to, and what an admin decides then.

    1 confirmed ── 2 confirmed ── 3 pending        one line: each is the successor of the one before
         └──────── asks again                      a fork: 1 was succeeded, and somebody renews with it all the same

Whoever asks with a certificate whose successor is in use, or that has ended, holds a copy: of a card, or of a stolen
key. Which of the two is the right one cannot be known here, and the newer may be the owner as well as the thief. So
both are frozen: what may connect goes on, nobody is given a certificate, nothing ends by itself, and an admin decides.
docs/adr/0006-forked-lineage.md says why, and what is no fork.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Final

from enroll import audit
from enroll.registry import Registry, Transaction, endings, feed, identity, lineage, revocations
from enroll.registry.lineage import AlarmKind, AlarmRecord
from enroll.registry.records import LIVE, CertificateRecord, CertificateState, PrincipalRecord, Reason
from enroll.service.admission import NotAllowed, Peer, holder
from enroll.service.grace import plan_ends
from enroll.service.waiting import Asker
from fleet.errors import Denied, InvalidInput, NotFound
from fleet.identity import DeviceId, Serial

NOTED_EVERY: Final = timedelta(minutes=1)
"""A device that is refused asks again and again, and each note of it would be a write."""
_NOBODY_KNOWN: Final = Asker()


class Forked(NotAllowed):
    """Two hold this identity, and an admin has to decide: no certificate for either. `is_new`: nobody knew before."""

    def __init__(self, device: DeviceId, serial: Serial, *, is_new: bool = False) -> None:
        hint = f"an admin decides which one is right: enroll device show {device}"
        super().__init__(f"two devices use the identity of {device}", hint=hint)
        self.device = device
        self.serial = serial
        self.is_new = is_new


class Verdict(Enum):
    """What becomes of a wish to renew."""

    GOOD = "good"
    FROZEN = "frozen"  # this one does nothing wrong, but another did
    FORKS = "forks"


def judge(transaction: Transaction, peer: Peer) -> Verdict:
    """Whether the certificate may be renewed now."""
    if _is_succeeded(transaction, peer.certificate):
        return Verdict.FORKS
    return Verdict.FROZEN if is_frozen(transaction, peer) else Verdict.GOOD


def _is_succeeded(transaction: Transaction, certificate: CertificateRecord) -> bool:
    """Whether another took its place: one that is in use, or for one that never was, one that was given since."""
    if certificate.state is CertificateState.SUPERSEDED:
        return lineage.provenance_of(transaction, certificate.serial).kept_at is None
    assert certificate.principal is not None
    return any(
        each.generation > certificate.generation and each.state is CertificateState.CONFIRMED
        for each in identity.live_certificates_of(transaction, certificate.principal)
    )


def admit_to_renew(transaction: Transaction, serial: Serial, asker: Asker, now: datetime) -> Peer | Forked:
    """Who wants to renew and may, or the refusal, for the caller to raise once this transaction has committed.

    Raises: NotAdmitted.
    """
    peer = holder(transaction, serial)
    match judge(transaction, peer):
        case Verdict.GOOD:
            return peer
        case Verdict.FROZEN:
            return Forked(peer.record.id, serial)
        case Verdict.FORKS:
            return freeze(transaction, peer, asker, now)


def check_may_renew(registry: Registry, peer: Peer, asker: Asker, now: datetime) -> None:
    """Raises: Forked where `peer`, who is about to renew, may not. Writes only then. Raises: RegistryUnavailable."""
    with registry.read() as transaction:
        if judge(transaction, peer) is Verdict.GOOD:
            return
    with registry.write() as transaction:
        found = admit_to_renew(transaction, peer.certificate.serial, asker, now)
    if isinstance(found, Forked):
        raise found


def is_frozen(transaction: Transaction, peer: Peer) -> bool:
    """Whether an admin has to decide first whose the identity is."""
    return lineage.is_frozen(transaction, peer.record.id, peer.record.epoch)


def check_not_frozen(transaction: Transaction, peer: Peer) -> None:
    """Raises: Forked while an admin has to decide whose the identity is."""
    if is_frozen(transaction, peer):
        raise Forked(peer.record.id, peer.certificate.serial)


def was_replaced(transaction: Transaction, peer: Peer, key: bytes) -> bool:
    """Whether that key was given a successor of this certificate, and then another key was, before it was used.

    One device makes a new key only when it has thrown the last one away.
    """
    family = identity.certificates_of(transaction, peer.record.id)
    return any(
        each.key == key and each.parent == peer.certificate.serial and never_used(transaction, each) for each in family
    )


def never_used(transaction: Transaction, certificate: CertificateRecord) -> bool:
    """Whether it ended before its holder had said that it is in use, because another was given in its place."""
    if certificate.state is not CertificateState.SUPERSEDED or certificate.parent is None:
        return False
    found = lineage.provenance_of(transaction, certificate.serial)
    return found.confirmed_at is None and found.kept_at is None


def note_use(transaction: Transaction, used: CertificateRecord, asker: Asker, now: datetime) -> None:
    """The certificate is in use: its holder came to renew with it. One that had ended stays so."""
    if used.state in LIVE:
        identity.set_certificate_states(transaction, [used.serial], CertificateState.CONFIRMED)
    if used.state is not CertificateState.PENDING:
        lineage.seen(transaction, used.serial, asker.address, now)
        return
    lineage.confirmed(transaction, used.serial, asker.address, now)
    if used.parent is not None and lineage.provenance_of(transaction, used.parent).kept_at is not None:
        lineage.keep(transaction, used.parent, None)  # it has done what it was kept for


def note_origin(transaction: Transaction, peer: Peer, serial: Serial, asker: Asker, now: datetime) -> None:
    """Who was given the successor `serial`; that it is another machine than before is an alarm, not a refusal."""
    lineage.asked(transaction, serial, asker.address, asker.hardware_serial, asker.model)
    before = lineage.provenance_of(transaction, peer.certificate.serial).hardware
    if before and asker.hardware_serial and before != asker.hardware_serial:
        _alarm(transaction, AlarmKind.OTHER_HARDWARE, peer, asker, now, f"it was {before}")


def freeze(transaction: Transaction, peer: Peer, asker: Asker, now: datetime) -> Forked:
    """Nobody is given a certificate of this identity, and none of it ends, until an admin decides; the refusal."""
    is_new = _alarm(transaction, AlarmKind.FORKED, peer, asker, now)
    for each in identity.live_certificates_of(transaction, peer.record.id):
        endings.done(transaction, each.serial)  # the older may be the owner
    return Forked(peer.record.id, peer.certificate.serial, is_new=is_new)


def check_not_ended(registry: Registry, peer: Peer, asker: Asker, now: datetime) -> None:
    """Raises: Forked if a later certificate has ended the one that `peer` shows, which is an alarm.

    A packet that was long on its way can look like this, so nothing is frozen. Raises: RegistryUnavailable.
    """
    certificate = peer.certificate
    if certificate.state in LIVE:
        return
    with registry.read() as transaction:
        if not _is_succeeded(transaction, certificate):
            return
        alarms = lineage.alarms_of(transaction, peer.record.id, peer.record.epoch)
    about = [each for each in alarms if each.serial == certificate.serial]
    is_new = False
    if not any(now - each.last_at < NOTED_EVERY for each in about):
        with registry.write() as transaction:
            is_new = _alarm(transaction, AlarmKind.ENDED_CERTIFICATE, peer, asker, now)
    raise Forked(peer.record.id, certificate.serial, is_new=is_new)


def _alarm(
    transaction: Transaction, kind: AlarmKind, peer: Peer, asker: Asker, now: datetime, detail: str = ""
) -> bool:
    who = (asker.address, asker.hardware_serial, asker.model, detail)
    return raise_alarm(transaction, peer.record, kind, peer.certificate.serial, now, *who)


def raise_alarm(
    transaction: Transaction,
    record: PrincipalRecord,
    kind: AlarmKind,
    serial: Serial | None,
    now: datetime,
    address: str = "",
    hardware: str = "",
    model: str = "",
    detail: str = "",
) -> bool:
    """Note it for the admin, in the log the first time; whether it is new."""
    raised = AlarmRecord(record.id, kind, serial, record.epoch, now, now, 1, address, hardware, model, detail)
    is_new = lineage.raise_alarm(transaction, raised)
    if is_new:
        said = {"serial": serial or "", "address": address, "hardware": hardware, "model": model, "detail": detail}
        fields = {name: value for name, value in said.items() if value}
        audit.record(transaction, now, f"alarm.{kind}", principal=str(record.principal), **fields)
    return is_new


@dataclass(frozen=True, slots=True)
class Decision:
    """What an admin's choice comes to. `has_ended`: the kept one cannot connect, but may renew.

    `closes`: how many alarms are closed by it.
    """

    device: DeviceId
    kept: CertificateRecord
    revoked: tuple[CertificateRecord, ...]
    has_ended: bool
    closes: int


def plan(registry: Registry, id: DeviceId, keep: Serial, *, now: datetime) -> Decision:
    """What `resolve` would do. Raises: NotFound, InvalidInput, Denied."""
    with registry.read() as transaction:
        return _decide(transaction, id, keep, now)


def resolve(registry: Registry, id: DeviceId, keep: Serial, *, by: str, now: datetime) -> Decision:
    """The holder of the certificate `keep` is the right one: its line goes on, every other of this identity ends.

    A copy holds the keys of what came before as well, so nothing but the line itself stays: all else is revoked, for
    its key is compromised. One that had ended does not come back, but may be renewed once more.
    Raises: NotFound, InvalidInput, Denied, RegistryUnavailable.
    """
    with registry.write() as transaction:
        decision = _decide(transaction, id, keep, now)
        if not decision.closes and not decision.revoked:
            return decision
        for each in decision.revoked:
            revocations.revoke(transaction, [each.serial], Reason.KEY_COMPROMISE, now)
            fields = {"serial": each.serial, "id": id, "by": by, "reason": Reason.KEY_COMPROMISE.value}
            audit.record(transaction, now, "certificate.revoked", **fields)
        _go_on(transaction, decision, now)
        audit.record(transaction, now, "alarm.resolved", id=id, kept=keep, revoked=len(decision.revoked), by=by)
        return decision


def _go_on(transaction: Transaction, decision: Decision, now: datetime) -> None:
    lineage.clear(transaction, decision.device)
    live = identity.live_certificates_of(transaction, decision.device)
    in_use = max((each.generation for each in live if each.state is CertificateState.CONFIRMED), default=0)
    plan_ends(transaction, (each for each in live if each.generation < in_use), now)  # `freeze` had called it off
    if decision.has_ended:
        lineage.keep(transaction, decision.kept.serial, now)
    feed.announce(transaction, decision.device)


def _decide(transaction: Transaction, id: DeviceId, keep: Serial, now: datetime) -> Decision:
    record = identity.find_principal(transaction, id)
    if record is None:
        raise NotFound(f"there is no {id}", hint="enroll device list")
    family = [each for each in identity.certificates_of(transaction, id) if each.epoch == record.epoch]
    kept = _choice(family, id, keep, now)
    alarms = lineage.alarms_of(transaction, id, record.epoch)
    line = _line(family, kept, [each.serial for each in alarms if each.serial is not None])
    has_copy = any(each.kind in (AlarmKind.FORKED, AlarmKind.ENDED_CERTIFICATE) for each in alarms)
    states = (*LIVE, CertificateState.SUPERSEDED) if has_copy else LIVE  # what ended in order was not stolen, else
    others = [c for c in family if c.serial not in line and c.state in states and c.not_after > now]
    if not alarms and kept.state is CertificateState.SUPERSEDED:
        raise Denied(f"{id} has no alarm, and {keep} has ended", hint=f"enroll device show {id}")
    has_ended = kept.state is CertificateState.SUPERSEDED
    return Decision(id, kept, tuple(others) if alarms else (), has_ended, len(alarms))


def _choice(family: list[CertificateRecord], id: DeviceId, keep: Serial, now: datetime) -> CertificateRecord:
    kept = next((each for each in family if each.serial == keep), None)
    if kept is None:
        raise InvalidInput(f"{id} has no certificate {keep}", hint=f"enroll device show {id}")
    replace = f"give its name to a new key: enroll token create --device {id} --replace"
    if kept.state is CertificateState.REVOKED:
        raise Denied(f"{keep} is revoked, and that is for good", hint=replace)
    if kept.not_after <= now:
        raise Denied(f"{keep} has expired", hint=replace)
    return kept


def _line(family: list[CertificateRecord], kept: CertificateRecord, accused: Iterable[Serial]) -> set[Serial]:
    """`kept`, and what its holder made of it; but of one that two hold nothing else: its successor is the other's."""
    line, shared = {kept.serial}, set(accused)
    shared |= {each.parent for each in family if each.serial in shared and each.parent is not None}
    if kept.serial in shared:
        return line
    for each in family:  # oldest first: a parent comes before its children
        if each.parent in line and each.state in LIVE:
            line.add(each.serial)
    return line
