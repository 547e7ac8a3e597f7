"""A broker that is killed under load, twenty times: `./dev soak broker-kill` does it five hundred times."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from fleet.layout import AdminHome
from soak import broker_kill
from soak.broker_kill import Stage
from tests.fleets import new_home
from tests.processes import run
from tests.system.brokers import connected_once


@pytest.fixture(scope="module")
def known_home(tmp_path_factory: pytest.TempPathFactory) -> AdminHome:
    """A home whose broker has a snapshot of the devices. Read only."""
    home = new_home(tmp_path_factory.mktemp("known") / "fleet")
    broker_kill.prepare(home)
    connected_once(home)
    return home


@pytest.mark.parametrize("seed", range(4))
def test_nothing_acknowledged_is_lost_and_nothing_of_qos_2_comes_twice(
    known_home: AdminHome, tmp_path: Path, seed: int
) -> None:
    """A device would believe that its alarm arrived, or a command would be carried out twice."""
    run("cp", "-a", known_home.path, tmp_path / "fleet").check()
    stage = Stage.of(AdminHome(tmp_path / "fleet"), seed)
    assert [] == asyncio.run(stage.run(5))
    assert 5 == stage.kills
    assert stage.account.acknowledged
