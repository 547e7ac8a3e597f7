"""What devices are to be, and are: what admins do about it, and what follows from what a device says. One transaction
each.

`hear` is all that a device's word can do: it changes no desired document, and its own reported one alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime

from enroll import audit
from enroll.registry import Registry, Transaction, identity
from enroll.registry import state as rows
from enroll.registry.records import PrincipalRecord
from enroll.registry.state import StateRecord
from fleet import state as rules
from fleet.errors import Denied, FleetError, InvalidInput, NotFound
from fleet.identity import DeviceId, Role, State
from fleet.messages import JsonObject
from fleet.state import Document, Mark, Part


@dataclass(frozen=True, slots=True)
class Outcome:
    """To whom of many it was a change, and who may not come back any more, or was never there: nothing was changed."""

    changed: list[DeviceId]
    left_out: list[DeviceId]


@dataclass(frozen=True, slots=True)
class Change:
    """What admins want: `value` as a merge patch, or as all there is to be.

    `if_version`: only if the desired state has that version, so that two admins do not undo each other's work unseen.
    """

    value: JsonObject
    replaces: bool = False
    if_version: int | None = None

    def applied(self, before: JsonObject) -> JsonObject:
        return rules.merge({} if self.replaces else before, self.value)


def hear(record: StateRecord, claim: Mark, reported: Part, now: datetime) -> tuple[StateRecord, Part]:
    """What is recorded once a device said what it has and is; and what of the desired state it has to be told.

    Raises: InvalidMessage for a claim that cannot be, or a state past its bounds.
    """
    desired, copy = rules.outrun(record.desired, claim), rules.take(record.reported, reported)
    known = record.known if record.known is not None and record.known.mark == claim else None
    if claim == desired.mark and desired.version:
        known = desired
    is_news = known is not None and (record.known is None or record.known.mark != known.mark)
    after = replace(
        record,
        desired=desired,
        known=known,
        known_at=now if is_news else record.known_at,
        sent_version=desired.version if known is desired else record.sent_version,
        reported=copy,
        reported_at=now if copy is not record.reported else record.reported_at,
    )
    return after, rules.offer(desired, claim, known)


def due_part(record: StateRecord) -> Part:
    """What a device is told unasked: what has changed since what it last said to have."""
    return rules.offer(record.desired, record.known.mark if record.known else rules.NONE_YET, record.known)


def set_desired(
    registry: Registry, device: DeviceId, change: Change, *, by: str, now: datetime
) -> tuple[StateRecord, bool]:
    """Change the desired state of one device: how it is now, and whether that was a change.

    Raises: NotFound, Denied (revoked), InvalidInput (no device, or the state too large), FleetError (another version).
    """
    with registry.write() as transaction:
        before = _state_of(transaction, _device(transaction, device))
        if change.if_version not in (None, before.desired.version):
            raise FleetError(
                f"the desired state of {device} has version {before.desired.version}, not {change.if_version}",
                hint=f"look at what changed: enroll state get {device}",
            )
        after = _set(transaction, before, change, by, now)
    return after, after is not before


def set_all(registry: Registry, devices: Iterable[DeviceId], change: Change, *, by: str, now: datetime) -> Outcome:
    """Change the desired state of all of these that may connect, or of none.

    Raises: InvalidInput (of one the state would be too large), RegistryUnavailable.
    """
    outcome = Outcome([], [])
    with registry.write() as transaction:
        for device in devices:
            found = identity.find_principal(transaction, device)
            if found is None or found.principal.role is not Role.DEVICE or found.state not in _MAY_COME_BACK:
                outcome.left_out.append(device)
                continue
            before = _state_of(transaction, found)
            if _set(transaction, before, change, by, now) is not before:
                outcome.changed.append(device)
    return outcome


def check_all(registry: Registry, devices: Iterable[DeviceId]) -> dict[DeviceId, FleetError]:
    """Who of these cannot be told what to be, and why."""
    found: dict[DeviceId, FleetError] = {}
    with registry.read() as transaction:
        for device in devices:
            try:
                _device(transaction, device)
            except (NotFound, Denied, InvalidInput) as error:
                found[device] = error
    return found


def find(registry: Registry, device: DeviceId) -> StateRecord:
    """Both documents of a device; empty if nobody has said anything yet. Raises: NotFound, InvalidInput."""
    with registry.read() as transaction:
        return _state_of(transaction, _known(transaction, device))


_MAY_COME_BACK = (State.ACTIVE, State.SUSPENDED)


def _set(transaction: Transaction, before: StateRecord, change: Change, by: str, now: datetime) -> StateRecord:
    value = change.applied(before.desired.value)
    if before.desired.version and not rules.diff(before.desired.value, value):
        return before
    after = replace(before, desired=_changed(before, value), desired_at=now)
    rows.put_state(transaction, after)
    fields = {"device": before.device, "version": after.desired.version, "by": by}
    audit.record(transaction, now, "state.replaced" if change.replaces else "state.merged", **fields)
    return after


def _changed(before: StateRecord, value: JsonObject) -> Document:
    try:
        return before.desired.changed(value)
    except InvalidInput as error:
        raise InvalidInput(
            f"{before.device}: {error.message}", hint="state is for settings; send data otherwise"
        ) from error


def _device(transaction: Transaction, device: DeviceId) -> PrincipalRecord:
    found = _known(transaction, device)
    if found.state not in _MAY_COME_BACK:
        raise Denied(f"{device} is {found.state}", hint=f"enroll device show {device}")
    return found


def _known(transaction: Transaction, device: DeviceId) -> PrincipalRecord:
    found = identity.find_principal(transaction, device)
    if found is None:
        raise NotFound(f"there is no {device}", hint="enroll device list")
    if found.principal.role is not Role.DEVICE:
        raise InvalidInput(f"{device} is of role {found.principal.role}", hint="state is what devices have")
    return found


def _state_of(transaction: Transaction, holder: PrincipalRecord) -> StateRecord:
    found = rows.find_states(transaction, (holder.id,))
    return found.get(holder.id, StateRecord(holder.id, holder.epoch))
