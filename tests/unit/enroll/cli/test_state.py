"""`enroll state`, without a process for each command; the transcript has what it looks like."""

from __future__ import annotations

import json
from typing import Any

import pytest
import typer

from enroll import service, states
from enroll.bookkeeping import SetAside
from enroll.cli import state
from enroll.cli.options import Output
from enroll.reports import StateSeen
from enroll.service.grouping import Change as Marking
from enroll.state_desk import StateBooks
from fleet.errors import FleetError, InvalidInput, NotFound
from fleet.identity import DeviceId
from fleet.messages import Envelope
from fleet.state import Mark, ReportedMessage, Whole
from tests.fleets import NOW, Office

PUMP, VALVE = DeviceId("pump-07"), DeviceId("valve-1")


@pytest.fixture(autouse=True)
def _devices(office: Office) -> None:
    for device in (PUMP, VALVE):
        office.enrolled(device)
    service.mark(office.registry, [VALVE], Marking(groups=("cellar",), labels={"site": "berlin"}), by="test", now=NOW)


def set_(office: Office, *words: str, **options: Any) -> None:
    state.set_(list(words), home=office.home.path, **options)


def wanted(office: Office, device: DeviceId = PUMP) -> tuple[int, object]:
    found = states.find(office.registry, device).desired
    return found.version, found.value


def test_one_is_merged_or_replaced_and_its_version_printed(office: Office, capsys: pytest.CaptureFixture[str]) -> None:
    """A script does not know what it has to wait for."""
    set_(office, PUMP, '{"a": 1, "b": {"c": 2}}')
    set_(office, PUMP, '{"b": {"c": null, "d": 3}}')
    set_(office, PUMP, '{"a": 1}')
    set_(office, PUMP, '{"a": 2}', replace=True)
    with pytest.raises(FleetError, match="version 3, not 1"):
        set_(office, PUMP, '{"a": 3}', if_version=1)
    assert (3, {"a": 2}) == wanted(office)
    away = "neither service nor broker runs; the device is told when both do\nhint: enroll serve; broker serve\n"
    said = f"{2 * away}pump-07 is to be that already\n{away}"
    assert ("1\n2\n2\n3\n", said) == capsys.readouterr()


def test_many_are_meant_by_name_group_or_selection(office: Office, capsys: pytest.CaptureFixture[str]) -> None:
    """A setting for one site goes to all, or to none."""
    service.suspend(office.registry, VALVE, by="test", now=NOW)
    set_(office, '{"a": 1}', where="site=berlin")
    set_(office, '{"b": 1}', group="cellar")
    assert ((2, {"a": 1, "b": 1}), (0, {})) == (wanted(office, VALVE), wanted(office))
    set_(office, PUMP, VALVE, '{"b": 1}', dry_run=True)
    assert 0 == wanted(office)[0]
    set_(office, VALVE, PUMP, VALVE, '{"b": 1}')
    assert ["valve-1", "valve-1", "pump-07", "valve-1", "pump-07"] == capsys.readouterr().out.split()
    assert (1, {"b": 1}) == wanted(office)


MISTAKES: tuple[tuple[tuple[str, ...], dict[str, Any], type[FleetError]], ...] = (
    (("pump-07", "[]"), {}, InvalidInput),
    (("pump-07", '{"a": NaN}'), {}, InvalidInput),
    (("pump-07", '{"a": 1, "a": 2}'), {}, InvalidInput),
    (("pump-07", json.dumps({"a": "x" * 9000})), {}, InvalidInput),
    (("pump-07",), {}, InvalidInput),
    (('{"a": 1}',), {}, InvalidInput),
    (("Pump 07", '{"a": 1}'), {}, InvalidInput),
    (("pump-07", '{"a": 1}'), {"group": "cellar"}, InvalidInput),
    (('{"a": 1}',), {"group": "cellar", "if_version": 1}, InvalidInput),
    (("admin", '{"a": 1}'), {}, InvalidInput),
    (("pump-99", '{"a": 1}'), {}, NotFound),
    (("pump-07", "pump-99", '{"a": 1}'), {}, NotFound),
    (('{"a": 1}',), {"where": "site=paris"}, NotFound),
)


def test_a_mistake_changes_nothing(office: Office) -> None:
    """Half of what was meant is done, or something else."""
    for words, options, kind in MISTAKES:
        with pytest.raises(kind):
            set_(office, *words, **options)
        assert (0, {}) == wanted(office) == wanted(office, VALVE)


def test_what_is_and_what_is_lacking_is_shown(office: Office, capsys: pytest.CaptureFixture[str]) -> None:
    """An admin cannot tell what a device has from what it was told, nor a script."""
    set_(office, PUMP, '{"interval": 5, "a": {"b c": 1}}')
    mark = states.find(office.registry, PUMP).desired.mark
    message = ReportedMessage(
        Envelope(PUMP, NOW, "boot", 1), mark, Whole(Mark(4, "x"), {"interval": 7, "t": "\x1b[0m"})
    )
    StateBooks(office.registry, SetAside()).enter([StateSeen(PUMP, message)], [], NOW)
    capsys.readouterr()
    state.get(PUMP, Output.JSON, office.home.path)
    found = json.loads(capsys.readouterr().out)
    assert {"interval": 7, "t": "\x1b[0m"} == found["reported"]["document"]
    assert (True, 1, 4) == (
        found["desired"]["is_acknowledged"],
        found["desired"]["known_version"],
        found["reported"]["version"],
    )
    with pytest.raises(typer.Exit) as ended:
        state.diff(PUMP, Output.JSON, office.home.path)
    assert 1 == ended.value.exit_code
    assert [
        {"path": ["a"], "desired": {"b c": 1}, "reported": None},
        {"path": ["interval"], "desired": 5, "reported": 7},
    ] == json.loads(capsys.readouterr().out)
    state.get(PUMP, Output.TABLE, office.home.path)
    shown = capsys.readouterr().out
    assert "the device said" in shown
    assert "\x1b" not in shown
