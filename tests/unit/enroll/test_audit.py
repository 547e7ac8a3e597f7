"""The tamper-evident log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from enroll import audit
from enroll.registry import log
from enroll.registry.records import AuditRecord
from tests.fleets import NOW, Office

Tampering = Callable[[list[AuditRecord]], list[AuditRecord]]


def entries(office: Office) -> list[AuditRecord]:
    with office.registry.read() as transaction:
        return list(log.entries(transaction))


TAMPERINGS: dict[str, Tampering] = {
    "a field": lambda log: [*log[:3], replace(log[3], fields=log[3].fields.replace("s", "z")), *log[4:]],
    "the event": lambda log: [*log[:3], replace(log[3], event="ca.created2"), *log[4:]],
    "the time": lambda log: [*log[:3], replace(log[3], at=NOW + timedelta(microseconds=1)), *log[4:]],
    "an entry dropped": lambda log: [*log[:3], *log[4:]],
    "the first dropped": lambda log: log[1:],
    "two swapped": lambda log: [*log[:3], log[4], log[3], *log[5:]],
    "dropped and renumbered": lambda log: [*log[:3], *(replace(entry, seq=entry.seq - 1) for entry in log[4:])],
}


def test_what_was_written_verifies(office: Office) -> None:
    """`enroll log verify` cries wolf."""
    office.enrolled("pump-07")
    assert audit.first_broken(entries(office)) is None


@pytest.mark.parametrize("name", TAMPERINGS)
def test_tampering_is_found(office: Office, name: str) -> None:
    """Whoever can write the registry hides what was done."""
    office.enrolled("pump-07")
    assert audit.first_broken(TAMPERINGS[name](entries(office))) is not None


def test_no_secret_is_logged(office: Office) -> None:
    """The log is the place to find a token in."""
    token = office.invite("pump-07")
    text = "".join(entry.fields for entry in entries(office))
    assert token.id in text
    assert str(token) not in text
    assert token.secret.hex() not in text
