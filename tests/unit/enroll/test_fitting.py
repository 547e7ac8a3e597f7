"""Commands checked by what devices have said that they take, before they are given."""

from __future__ import annotations

import logging
from datetime import timedelta

import pytest

from enroll.bookkeeping import Books
from enroll.cli.selected import check_fit
from enroll.fitting import catalogue_of, misfits
from enroll.reports import CatalogueSeen, read_report
from enroll.sifting import sift
from fleet.arguments import Schema, parse
from fleet.catalogue import Catalogue, CatalogueMessage
from fleet.errors import InvalidInput
from fleet.identity import DeviceId
from fleet.messages import Envelope
from fleet.topics import DeclaredCommands
from tests.fleets import NOW, Office
from tests.unit.enroll.test_sifting import PUMP, VALVE, Aside
from tests.unit.enroll.test_sifting import _incoming as incoming

SECONDS = parse({"properties": {"seconds": {"type": "number"}}, "required": ["seconds"]})


def message(device: DeviceId, **taken: Schema | None) -> bytes:
    return CatalogueMessage(Envelope(device, NOW, "boot-1", 1), taken).encode()


def said(office: Office, device: DeviceId, **taken: Schema | None) -> None:
    """As dispatch reads and enters it."""
    topic = DeclaredCommands(device).format()
    Books(office.registry).enter([read_report(topic, message(device, **taken), is_retained=False)], [], office.now)


def known(office: Office, device: DeviceId) -> Catalogue | None:
    with office.registry.read() as transaction:
        return catalogue_of(transaction, device)


def test_what_a_device_says_is_known_until_it_says_otherwise(office: Office) -> None:
    """Commands would be checked by what was true once, or by nothing."""
    office.enrolled(PUMP)
    assert known(office, PUMP) is None
    said(office, PUMP, wait=SECONDS, echo=None)
    assert {"wait": SECONDS, "echo": None} == known(office, PUMP)
    said(office, PUMP, echo=None)
    assert {"echo": None} == known(office, PUMP)


def test_what_is_known_is_not_written_again(office: Office, caplog: pytest.LogCaptureFixture) -> None:
    """Ten thousand devices that come back at once would each cost a write, and a line of the log."""
    office.enrolled(PUMP)
    with caplog.at_level(logging.INFO):
        said(office, PUMP, wait=SECONDS)
        office.wait(timedelta(minutes=2))
        said(office, PUMP, wait=SECONDS)
    assert 1 == sum("device.commands" in record.getMessage() for record in caplog.records)
    with office.registry.read() as transaction:
        (changed,) = transaction.exec_driver_sql("SELECT changed_at FROM catalogues").scalars()
    assert NOW.timestamp() * 1e6 == changed


def test_whoever_takes_over_an_id_has_said_nothing_yet(office: Office) -> None:
    """New hardware would be judged by what the old one took."""
    office.enrolled(PUMP)
    said(office, PUMP, echo=None)
    office.enrolled(PUMP, replace=True)
    assert known(office, PUMP) is None
    assert {} == misfits(office.registry, [PUMP], "wait", {})
    said(office, PUMP, echo=None)
    assert {"echo": None} == known(office, PUMP)


def test_of_a_group_those_that_would_not_do_it_are_told(office: Office) -> None:
    """An admin would have half of a group do something, and learn it from failures."""
    for device in (PUMP, VALVE, DeviceId("silent")):
        office.enrolled(device)
    said(office, PUMP, wait=SECONDS)
    said(office, VALVE, echo=None)
    everybody = [PUMP, VALVE, DeviceId("silent"), DeviceId("nobody")]
    assert {PUMP: "seconds is missing", VALVE: "it takes no wait, but: echo"} == misfits(
        office.registry, everybody, "wait", {}
    )
    assert {VALVE} == misfits(office.registry, everybody, "wait", {"seconds": 1}).keys()


def test_an_admin_is_told_of_the_first_of_many_and_how_many(office: Office, capsys: pytest.CaptureFixture[str]) -> None:
    """Ten thousand lines would hide what to do about it."""
    devices = [DeviceId(f"pump-{number}") for number in range(13)]
    for device in devices:
        office.enrolled(device)
        said(office, device, echo=None)
    check_fit(office.registry, devices, "echo", {})
    with pytest.raises(InvalidInput, match="13 of 13 would not do it, so none is asked") as refusal:
        check_fit(office.registry, devices, "wait", {})
    assert "--no-check sends it all the same" == refusal.value.hint
    lines = capsys.readouterr().err.splitlines()
    assert ("pump-0: it takes no wait, but: echo", "and 3 more", 11) == (lines[0], lines[-1], len(lines))
    with pytest.raises(InvalidInput, match="pump-3: it takes no wait, but: echo"):
        check_fit(office.registry, devices[3:4], "wait", {})


def test_of_one_turn_the_last_that_can_be_read_counts() -> None:
    """A device that says it over and over would have each time written."""
    topic, aside = DeclaredCommands(PUMP).format(), Aside()
    arrived = [incoming(topic, message(PUMP, **{f"c{number}": None})) for number in range(5)]
    hostile = [incoming(topic, b'{"commands": {"a": {"pattern": "(a+)+"}}}'), incoming(topic, b"{")]
    (report,) = sift([*arrived, *hostile], aside).reports({}, aside)
    assert CatalogueSeen(PUMP, {"c4": None}) == report
    assert [PUMP] * 2 == aside.devices
