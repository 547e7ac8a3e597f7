"""Two agents with one identity, noticed by what each says when it is connected.

An agent draws the name of its start (`boot`) anew each time, and counts its messages within it. So one device's starts
follow each other: a b c. Two devices throw each other out, and their starts take turns: a b a b. That is an alarm, and
no refusal: all of it is what somebody says, and whoever holds the key may say anything.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from enroll.registry import Transaction, boots
from enroll.registry.boots import BootRecord
from enroll.registry.lineage import AlarmKind
from enroll.registry.records import PrincipalRecord
from enroll.service.lineage import raise_alarm

RETURNS: Final = 2
"""So often a start has to speak again after another one. Once could be a message that was long on its way."""
WITHIN: Final = timedelta(hours=1)
REMEMBERED: Final = 4
"""Starts of each device: more than two, so that a device that starts again and again is no stranger to itself."""


@dataclass(frozen=True, slots=True)
class Start:
    """What one start of an agent says of itself, in its message number `seq`."""

    boot: str
    seq: int
    serial: str = ""
    hardware: str = ""


def heard(transaction: Transaction, device: PrincipalRecord, start: Start, now: datetime) -> list[AlarmKind]:
    """Note that this start of the device's agent spoke; the alarms that were not known before."""
    known = [each for each in boots.boots_of(transaction, device.id) if each.epoch == device.epoch]
    found = next((each for each in known if each.boot == start.boot), None)
    if found is None:
        return _begun(transaction, device, known, start, now)
    if start.seq <= found.seq:
        return []  # a message that came twice says nothing of now
    return _spoke_again(transaction, device, known, found, start, now)


def _begun(
    transaction: Transaction, device: PrincipalRecord, known: list[BootRecord], start: Start, now: datetime
) -> list[AlarmKind]:
    """A new start, which is to be on the same machine as the last one that said where it is."""
    place = known[-1].place + 1 if known else 1
    added = BootRecord(start.boot, device.epoch, place, start.seq, start.serial, start.hardware, now, now)
    boots.put(transaction, device.id, added)
    _forget(transaction, device)
    before = next((each.hardware for each in reversed(known) if each.hardware), "")
    if not before or not start.hardware or before == start.hardware:
        return []
    return _alarm(transaction, device, AlarmKind.OTHER_HARDWARE, start, f"it was {before}", now)


def _spoke_again(
    transaction: Transaction,
    device: PrincipalRecord,
    known: list[BootRecord],
    found: BootRecord,
    start: Start,
    now: datetime,
) -> list[AlarmKind]:
    last, is_return = known[-1], known[-1].boot != found.boot
    returns = (found.returns if now - found.last_at < WITHIN else 0) + is_return
    spoke = replace(found, place=last.place + 1, seq=start.seq, serial=start.serial, last_at=now, returns=returns)
    boots.put(transaction, device.id, spoke)
    others = sum(each.returns for each in known if each.boot != found.boot and now - each.last_at < WITHIN)
    if not is_return or returns + others < RETURNS:
        return []
    detail = f"starts {found.boot} and {last.boot} take turns"
    return _alarm(transaction, device, AlarmKind.TWO_AGENTS, start, detail, now)


def _alarm(
    transaction: Transaction, device: PrincipalRecord, kind: AlarmKind, start: Start, detail: str, now: datetime
) -> list[AlarmKind]:
    """With no serial: the one that it names may be anybody's."""
    is_new = raise_alarm(transaction, device, kind, None, now, hardware=start.hardware, detail=detail)
    return [kind] if is_new else []


def _forget(transaction: Transaction, device: PrincipalRecord) -> None:
    """The oldest, and those of whoever had the name before."""
    known = boots.boots_of(transaction, device.id)
    of_others = [each for each in known if each.epoch != device.epoch]
    own = [each for each in known if each.epoch == device.epoch]
    for each in (*of_others, *own[:-REMEMBERED]):
        boots.remove(transaction, device.id, each.boot)
