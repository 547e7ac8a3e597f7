"""What admins note of devices, to find them by: groups and labels. `by` is who asked, for the log."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from enroll import audit
from enroll.registry import Registry, Transaction, identity, labels
from enroll.selection import MAX_LABELS
from fleet.errors import InvalidInput, NotFound
from fleet.identity import DeviceId


@dataclass(frozen=True, slots=True)
class Change:
    """What is added and taken away: of groups their names, of labels names with their values."""

    groups: Sequence[str] = ()
    no_groups: Sequence[str] = ()
    labels: dict[str, str] = field(default_factory=dict)
    no_labels: Sequence[str] = ()


def mark(registry: Registry, ids: Iterable[DeviceId], change: Change, *, by: str, now: datetime) -> list[DeviceId]:
    """Make the change to all of these, or to none; those to whom it was one.

    Raises: NotFound, InvalidInput (too many labels), RegistryUnavailable.
    """
    with registry.write() as transaction:
        return [each for each in ids if _mark(transaction, each, change, by, now)]


def _mark(transaction: Transaction, id: DeviceId, change: Change, by: str, now: datetime) -> bool:
    found = identity.find_principal(transaction, id)
    if found is None:
        raise NotFound(f"there is no {id}", hint="enroll device list")
    kept = [group for group in found.groups if group not in change.no_groups]
    groups = tuple(dict.fromkeys((*kept, *change.groups)))
    before = labels.labels_of(transaction, id)
    after = {name: value for name, value in before.items() if name not in change.no_labels} | change.labels
    if len(after) > MAX_LABELS:
        raise InvalidInput(f"{id} would have {len(after)} labels", hint=f"{MAX_LABELS} at most")
    if groups == found.groups and after == before:
        return False
    if groups != found.groups:
        identity.update_principal(transaction, replace(found, groups=groups))
    labels.remove_labels(transaction, id, before.keys() - after.keys())
    labels.set_labels(transaction, id, {name: value for name, value in after.items() if before.get(name) != value})
    words = [f"{name}={value}" for name, value in sorted(after.items())]
    audit.record(
        transaction, now, "principal.marked", principal=str(found.principal), groups=list(groups), labels=words, by=by
    )
    return True
