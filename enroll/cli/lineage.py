"""What an admin sees of an identity that two may use, and `enroll device resolve`, which decides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from enroll.cli.options import HomeOption, YesOption, admin_home, confirm, now, open_registry, user
from enroll.cli.output import ago, minute, say, time_or_none
from fleet.identity import DeviceId, Serial
from fleet.join import fingerprint

if TYPE_CHECKING:
    from enroll.registry import Transaction
    from enroll.registry.boots import BootRecord
    from enroll.registry.lineage import AlarmKind, AlarmRecord, Provenance
    from enroll.registry.records import CertificateRecord, PrincipalRecord
    from enroll.service.lineage import Decision

_FORKED = "forked"
_MEANING = {
    _FORKED: "two want to renew one identity; nobody is given a certificate until you decide",
    "two-agents": "two agents say hello in turn, and throw each other out",
    "other-hardware": "it says that it is another machine than before",
    "ended-certificate": "a certificate is shown that a later one has ended",
}


def mark(alarms: Sequence[AlarmKind]) -> str:
    """What stands behind the state of a device that an admin has to look at."""
    if not alarms:
        return ""
    return ", frozen" if _FORKED in alarms else ", alarm"


@dataclass(frozen=True, slots=True)
class Story:
    """The certificates of a principal, oldest first, and all that is known of who used them."""

    record: PrincipalRecord
    certificates: list[CertificateRecord]
    provenances: dict[Serial, Provenance]
    starts: list[BootRecord]
    alarms: list[AlarmRecord]

    def rows(self, moment: datetime) -> Iterator[tuple[str, str]]:
        """For people: one line a certificate, or the whole of it where there is an alarm."""
        for alarm in self.alarms:
            yield from _alarm_rows(alarm, moment)
        for certificate in self.certificates:
            yield (
                f"cert {certificate.generation}",
                f"{certificate.serial} {certificate.state}, until {minute(certificate.not_after)}",
            )
            if self.alarms and certificate.epoch == self.record.epoch:
                yield from self._history(certificate, moment)
        for each in self._candidates(moment):
            yield "decide", f"enroll device resolve {self.record.id} --keep {each.serial}"

    def _history(self, certificate: CertificateRecord, moment: datetime) -> Iterator[tuple[str, str]]:
        known = self.provenances[certificate.serial]
        asked = _who(known.address, known.hardware, known.model)
        yield "  key", fingerprint(certificate.key)
        yield "  issued", f"{minute(known.issued_at)}{asked and f', {asked}'}"
        if certificate.parent is not None:
            yield "  renews", certificate.parent
        if known.seen_at is not None:
            yield "  service", f"seen {ago(known.seen_at, moment)} from {known.seen_address or '?'}"
        for each in self.starts:
            if each.serial == certificate.serial:
                where = f" on {each.hardware}" if each.hardware else ""
                yield "  agent", f"start {each.boot}{where}, heard {ago(each.last_at, moment)}"

    def _candidates(self, moment: datetime) -> Iterator[CertificateRecord]:
        """What may be kept: what is live, and what an alarm is about."""
        about = {alarm.serial for alarm in self.alarms}
        for each in self.certificates:
            is_good = each.state in ("confirmed", "pending") or (each.state == "superseded" and each.serial in about)
            if self.alarms and is_good and each.epoch == self.record.epoch and each.not_after > moment:
                yield each

    def fields(self) -> dict[str, Any]:
        """For programs."""
        return {
            "alarms": [_alarm_fields(alarm) for alarm in self.alarms],
            "certificates": [self._certificate_fields(each) for each in self.certificates],
        }

    def _certificate_fields(self, certificate: CertificateRecord) -> dict[str, Any]:
        known = self.provenances[certificate.serial]
        return {
            "serial": certificate.serial,
            "state": certificate.state.value,
            "not_after": time_or_none(certificate.not_after),
            "enrolment": certificate.epoch,
            "generation": certificate.generation,
            "parent": certificate.parent,
            "key_sha256": certificate.key.hex(),
            "issued_at": time_or_none(known.issued_at),
            "issued_to": {"address": known.address, "hardware_serial": known.hardware, "model": known.model},
            "confirmed_at": time_or_none(known.confirmed_at),
            "seen_at": time_or_none(known.seen_at),
            "seen_address": known.seen_address,
            "starts": [_start_fields(each) for each in self.starts if each.serial == certificate.serial],
        }


def read_story(transaction: Transaction, record: PrincipalRecord) -> Story:
    """All that is known of a principal's certificates."""
    from enroll.registry import boots, identity, lineage

    return Story(
        record,
        identity.certificates_of(transaction, record.id),
        lineage.provenances_of(transaction, record.id),
        boots.boots_of(transaction, record.id),
        lineage.alarms_of(transaction, record.id, record.epoch),
    )


def _alarm_rows(alarm: AlarmRecord, moment: datetime) -> Iterator[tuple[str, str]]:
    yield "alarm", f"{alarm.kind}: {_MEANING[alarm.kind]}"
    times = "once" if alarm.count == 1 else f"{alarm.count} times"
    who = _who(alarm.address, alarm.hardware, alarm.model)
    about = f"{alarm.serial}, " if alarm.serial else ""
    said = f"; {alarm.detail}" if alarm.detail else ""
    yield (
        "",
        f"{about}{times} since {minute(alarm.first_at)}, last {ago(alarm.last_at, moment)}{who and f', {who}'}{said}",
    )


def _who(address: str, hardware: str, model: str) -> str:
    parts = (f"at {address}" if address else "", f"serial number {hardware}" if hardware else "", model)
    return ", ".join(part for part in parts if part)


def _alarm_fields(alarm: AlarmRecord) -> dict[str, Any]:
    return {
        "kind": alarm.kind.value,
        "serial": alarm.serial,
        "first_at": time_or_none(alarm.first_at),
        "last_at": time_or_none(alarm.last_at),
        "count": alarm.count,
        "address": alarm.address,
        "hardware_serial": alarm.hardware,
        "model": alarm.model,
        "detail": alarm.detail,
    }


def _start_fields(start: BootRecord) -> dict[str, Any]:
    return {
        "boot": start.boot,
        "hardware_serial": start.hardware,
        "first_at": time_or_none(start.first_at),
        "last_at": time_or_none(start.last_at),
    }


def resolve(
    id: Annotated[str, typer.Argument(metavar="ID", help="Its id.")],
    keep: Annotated[str, typer.Option("--keep", metavar="SERIAL", help="The right one's, as device show tells.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    yes: YesOption = False,
    home: HomeOption = None,
) -> None:
    """Decide which of two devices with one identity goes on.

    Every other certificate of the identity is revoked for keyCompromise, and its connections end at once.
    """
    from enroll.service.lineage import plan
    from enroll.service.lineage import resolve as resolve_identity

    device, kept = DeviceId(id), Serial(keep.replace(":", "").lower().lstrip("0"))
    with open_registry(admin_home(home)) as registry:
        planned = plan(registry, device, kept, now=now())
        if not planned.closes:
            say(f"{device} has no alarm: nothing is to be decided")
            return
        if dry_run:
            _tell(planned, "would go on", "would be revoked")
            return
        confirm(_question(planned), yes=yes)
        _tell(resolve_identity(registry, device, kept, by=user(), now=now()), "goes on", "is revoked")


def _question(decision: Decision) -> str:
    others = len(decision.revoked)
    return f"keep {decision.kept.serial} of {decision.device}, and revoke {others or 'no'} other{'s' * (others != 1)}?"


def _tell(decision: Decision, goes_on: str, is_revoked: str) -> None:
    """One line a certificate on stdout; what else to do on stderr."""
    kept = decision.kept
    print(f"{kept.serial} {goes_on} (generation {kept.generation})")
    for each in decision.revoked:
        print(f"{each.serial} {is_revoked}: keyCompromise (generation {each.generation})")
    if decision.has_ended:
        say(f"{kept.serial} has ended: it cannot connect, but its holder may renew it once with device-agent renew")
    if any(each.parent == kept.serial for each in decision.revoked):
        say(f"whoever got what was revoked has the key of {kept.serial}, too: device-agent renew on the right one, now")
    if not decision.revoked:
        say(f"whoever has a copy of {kept.serial} goes on as well: device-agent renew on the right one ends that")
