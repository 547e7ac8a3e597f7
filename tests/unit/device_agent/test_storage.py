"""A file system that takes no more writing: how it is noticed, and what the agent still does."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from device_agent.application import ApplicationServer, is_of, socket_path, spare_path
from device_agent.core.effects import Log, OpenSpool, Renew, SaveJournal, Tell
from device_agent.core.events import SpoolFailed, SpoolOpened, StorageChanged, Tick
from device_agent.core.report import status_line
from device_agent.doctor import Doctor
from device_agent.renewal import Code
from device_agent.spool import MAX_FAILED_READS, SpoolFile
from device_agent.status import ask_agent
from device_agent.storage import LOOK_SECONDS, RETRY_SECONDS, StorageWatch, is_read_only
from device_agent.store import PosixDisk, Store, only_one
from firmware_stub.agent_client import Agent
from fleet.errors import FleetError
from fleet.layout import AgentHome
from tests.deadlines import within
from tests.unit.device_agent.clocks import real_clock
from tests.unit.device_agent.story import PUMP, SETTINGS, START, Story, of_kind, published


@pytest.fixture(name="card")
def _card(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system to write-protect")
    folder = tmp_path / "card"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(card: Path, mode: str) -> None:
    """`ro` or `rw`."""
    subprocess.run(["mount", "-o", f"remount,{mode}", str(card)], check=True)


def test_it_is_noticed_when_writing_ends_and_when_it_works_again(card: Path) -> None:
    """An agent would go on believing, or never come back without a restart."""
    told: list[bool] = []
    watch = StorageWatch(card, told.append)
    watch.look(100.0)
    remount(card, "ro")
    watch.look(100.0 + LOOK_SECONDS / 2)
    assert [] == told, "a look costs little, and is not had all the time"
    watch.look(100.0 + LOOK_SECONDS)
    assert ([True], RETRY_SECONDS) == (told, watch.pause_seconds)
    remount(card, "rw")
    watch.look(101.0 + LOOK_SECONDS)
    assert [True, False] == told


def test_what_was_not_written_has_it_looked_at_at_once(card: Path) -> None:
    """For a quarter of a minute an admin would wonder why commands fail."""
    told: list[bool] = []
    watch = StorageWatch(card, told.append)
    watch.look(100.0)
    remount(card, "ro")
    watch.look(100.0, is_doubtful=True)
    assert [True] == told


def test_a_disk_that_is_full_or_gone_is_not_taken_for_it(card: Path) -> None:
    """The agent would say of each trouble that it is this one."""
    assert not is_read_only(card, is_doubtful=True)
    assert not is_read_only(card / "gone", is_doubtful=True)


def test_one_agent_runs_on_a_read_only_home(card: Path) -> None:
    """Two agents with one identity would take each other's connection, or none would run at all."""
    home = AgentHome(card)
    remount(card, "ro")
    with only_one(home), pytest.raises(FleetError, match="another agent"), only_one(home):
        pass
    remount(card, "rw")
    with only_one(home):
        remount_is_refused = subprocess.run(["mount", "-o", "remount,ro", str(card)], check=False, capture_output=True)
    assert remount_is_refused.returncode
    remount(card, "ro")
    with only_one(home), pytest.raises(FleetError, match="another agent"), only_one(home):
        pass


def test_firmware_finds_an_agent_that_cannot_make_its_socket(card: Path) -> None:
    """What a Pi measures would be lost although its agent is connected."""
    home = AgentHome(card)
    (card / "run").mkdir()
    remount(card, "ro")
    server = ApplicationServer(home, lambda _event: None)
    server.start()
    try:
        assert is_of(home, spare_path(home))
        assert 0o600 == spare_path(home).lstat().st_mode & 0o777
        firmware, said = firmware_of(home)
        firmware.poll(0)
        assert [f"ready {spare_path(home)}"] == said
        firmware.close()
        remount(card, "rw")
        server.listen_at_home(is_writable=True)
        deadline = time.monotonic() + within(20)
        while f"ready {socket_path(home)}" not in said:
            assert time.monotonic() < deadline, said
            firmware.close()
            firmware.poll(0)
        firmware.close()
        remount(card, "ro")
    finally:
        server.close()
    assert not spare_path(home).exists()


def firmware_of(home: AgentHome) -> tuple[Agent, list[str]]:
    said: list[str] = []
    return Agent("test", path=socket_path(home), report=said.append), said


def test_a_socket_that_somebody_else_made_is_not_the_agents(card: Path) -> None:
    """Whoever may write into the shared folder would be told what a device measures, and command it."""
    home = AgentHome(card)
    spare_path(home).touch()
    try:
        os.chown(spare_path(home), 65_534, 65_534)
        with pytest.raises(FileNotFoundError):
            ask_agent(home)
        firmware, said = firmware_of(home)
        firmware.poll(0)
        assert [f"waiting for the agent: {socket_path(home)}: No such file or directory"] == said
    finally:
        spare_path(home).unlink()


def test_a_spool_that_cannot_be_opened_for_now_is_not_given_up(card: Path) -> None:
    """A week of measurements would be set aside as damaged, because the card was read-only at the start."""
    home = AgentHome(card)
    spool = SpoolFile(home, PUMP)
    spool.path.touch()
    remount(card, "ro")
    found = [spool.perform(OpenSpool()) for _ in range(MAX_FAILED_READS + 1)]
    assert all(isinstance(each, SpoolFailed) and "kept aside" not in each.error for each in found), found
    remount(card, "rw")
    assert isinstance(spool.perform(OpenSpool()), SpoolOpened)
    spool.close()
    assert not spool.damaged_path.exists()


def test_the_doctor_names_it(card: Path) -> None:
    """Who stands before the device would look for the network."""
    remount(card, "ro")
    home = AgentHome(card)
    findings = Doctor(home, Store(home, PosixDisk()), real_clock()).examine()
    assert ["storage-read-only"] == [each.code for each in findings if each.subject == "disk"]


def read_only() -> Story:
    """An agent that is online, and cannot write any more."""
    story = Story(disk_error="Read-only file system")
    story.go_online()
    story.feed(StorageChanged(is_read_only=True))
    return story


def statuses(effects: list[Any]) -> list[str]:
    return [json.loads(payload)["reason"] for topic, payload in published(effects) if topic == "status"]


def test_the_fleet_is_told_with_each_status() -> None:
    """An admin would see a device that is online and well."""
    story = Story()
    story.go_online()
    effects = story.feed(StorageChanged(is_read_only=True))
    assert ["storage is read-only"] == statuses(effects)
    assert [{"state": "read-only"}] == [
        json.loads(payload)["data"] for topic, payload in published(effects) if topic == "events/storage"
    ]
    assert status_line(story.state, story.now())["storage"] == {"is_read_only": True}
    story.confirm_all()
    assert [] == story.feed(StorageChanged(is_read_only=True)), "once"
    assert [""] == statuses(story.feed(StorageChanged(is_read_only=False)))


def test_a_command_whose_id_cannot_be_kept_is_not_begun() -> None:
    """After a restart it would be begun a second time."""
    story = read_only()
    story.application("echo")
    effects = story.command("c-1")
    assert not [tell for tell in of_kind(effects, Tell) if tell.line["type"] == "command"]
    [result] = [json.loads(payload) for topic, payload in published(effects) if topic == "results/c-1"]
    assert ("failed", "the device cannot remember it: Read-only file system") == (result["state"], result["error"])


def test_what_was_refused_is_written_down_once_it_can_be() -> None:
    """A command that was said to have failed would be taken for new after the next restart."""
    story = read_only()
    story.command("c-1")
    story.disk_error = ""
    effects = story.feed(StorageChanged(is_read_only=False), Tick())
    assert ["c-1"] == [entry.id for order in of_kind(effects, SaveJournal) for entry in order.journal.entries]
    assert "storage.works" in [log.name for log in of_kind(effects, Log)]


def test_no_key_is_asked_for_that_could_not_be_kept() -> None:
    """The service would certify one that nobody has, and end the certificate in use."""
    story = Story(settings=replace(SETTINGS, not_after=START + timedelta(seconds=7_200)))
    story.go_online()
    story.feed(StorageChanged(is_read_only=True))
    story.seconds = (story.settings.life.due - START).total_seconds() + 1
    assert [] == of_kind(story.feed(Tick()), Renew)
    problem = story.state.renewal.problem
    assert problem is not None
    assert Code.DISK == problem.code
    story.feed(StorageChanged(is_read_only=False))
    story.seconds = story.state.renewal.look_at
    assert [Renew(is_paced=False, is_fresh=False)] == of_kind(story.feed(Tick()), Renew)


def test_a_card_that_comes_and_goes_puts_no_renewal_off() -> None:
    """Each time it would be drawn anew, for a device that has not long to live."""
    story = Story(settings=replace(SETTINGS, not_after=START + timedelta(days=90)))
    story.go_online()
    story.feed(StorageChanged(is_read_only=True))
    story.seconds = (story.settings.life.due - START).total_seconds() + 1
    story.feed(Tick())
    next_look = story.state.renewal.look_at
    for is_read_only_now in (False, True, False):
        story.seconds += 1
        story.feed(StorageChanged(is_read_only=is_read_only_now))
        assert next_look == story.state.renewal.look_at
