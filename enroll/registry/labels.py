"""Labels of principals, a name and a value each; within a caller's transaction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from sqlalchemy import Connection, bindparam, delete, select
from sqlalchemy.dialects.sqlite import insert as upsert

from enroll.registry.schema import labels
from fleet.identity import DeviceId

_OF: Final = select(labels.c.name, labels.c.value).where(labels.c.principal == bindparam("of")).order_by(labels.c.name)
_REMOVE: Final = delete(labels).where(labels.c.principal == bindparam("of"), labels.c.name == bindparam("called"))


def labels_of(transaction: Connection, id: DeviceId) -> dict[str, str]:
    """The labels of a principal, by name."""
    return dict(transaction.execute(_OF, {"of": id}).all())


def set_labels(transaction: Connection, id: DeviceId, values: Mapping[str, str]) -> None:
    """Give a principal that is there these labels, beside those it has."""
    for name, value in values.items():
        statement = upsert(labels).values(principal=id, name=name, value=value)
        transaction.execute(
            statement.on_conflict_do_update(index_elements=["principal", "name"], set_={"value": value})
        )


def remove_labels(transaction: Connection, id: DeviceId, names: Iterable[str]) -> None:
    """Take these labels from a principal; those it has."""
    for name in names:
        transaction.execute(_REMOVE, {"of": id, "called": name})
