"""Whom the bridge takes for a device that is shown."""

from __future__ import annotations

import contextlib
from pathlib import Path

from enroll.cli.bridge import Roster
from enroll.registry.overview import Filter
from enroll.selection import parse
from fleet.identity import DeviceId, Role
from tests.fleets import csr, open_office

PUMP, VALVE = DeviceId("pump-07"), DeviceId("valve-1")


def test_who_is_gone_is_looked_for_again_in_what_another_broker_has_kept(tmp_path: Path) -> None:
    """A device that was revoked as the connection ended is back in Home Assistant, for as long as nobody writes."""
    with open_office(tmp_path / "fleet") as office:
        for device in (PUMP, VALVE):
            office.enrol(office.invite(device), csr(device))
        office.revoke(PUMP)
        wanted = Filter(Role.DEVICE, where=parse("not state=revoked"))
        with contextlib.closing(Roster(office.registry, wanted)) as roster:
            assert [PUMP] == roster.gone([PUMP, VALVE], is_new=True)
            assert [PUMP] == roster.gone([PUMP, VALVE], is_new=True), "its removal was lost"
            assert [] == roster.gone([PUMP, VALVE]), "each turn costs a look at all devices"
