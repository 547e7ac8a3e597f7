"""Tokens made many at once and ended with all that they let in, as real commands against a real service."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from enroll.registry import Registry
from enroll.service import principals, tokens
from fleet.identity import Role, State
from fleet.join import parse_join_code, parse_join_file
from tests.processes import Program, run
from tests.system.agents import LiveFleet, join, live_fleet


@pytest.fixture(scope="module", name="fleet")
def _fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveFleet]:
    with live_fleet(tmp_path_factory.mktemp("tokens"), with_broker=False) as fleet:
        yield fleet


def test_a_join_file_of_a_list_lets_its_device_in(fleet: LiveFleet, tmp_path: Path) -> None:
    """A thousand SD cards are written, and none of them works."""
    (tmp_path / "list.csv").write_text("id,groups\npump-01,cellar\npump-02,\n")
    made = fleet.enroll("token", "create", "--csv", tmp_path / "list.csv", "--to", tmp_path / "files").stdout
    file = tmp_path / "files" / "pump-01.toml"
    assert [str(file), str(file.with_name("pump-02.toml"))] == made.splitlines()
    home = fleet.new_agent_home()
    assert "enrolled pump-01" in run("device-agent", "join", "--file", file, "--home", home.path).check().stdout
    shown = json.loads(fleet.enroll("device", "list", "--group", "cellar", "-o", "json").stdout)
    assert ["pump-01"] == [device["id"] for device in shown]


def test_a_list_that_was_cut_short_is_finished_by_the_same_command(fleet: LiveFleet, tmp_path: Path) -> None:
    """After a power cut some files hold tokens that nobody knows, or devices are left out."""
    names = [f"valve-{number:04}" for number in range(900)]
    (tmp_path / "list.csv").write_text("\n".join(["id", *names]))
    command = ("token", "create", "--csv", tmp_path / "list.csv", "--to", tmp_path / "files")
    with Program("enroll", *command, "--home", fleet.home.path) as cut:
        cut.wait_for_line(r"valve-\d+\.toml")
        cut.kill()
    rest = fleet.enroll(*command).stderr
    assert "had a join file already" in rest
    files = {path.stem: parse_join_file(path.read_text()) for path in (tmp_path / "files").glob("*.toml")}
    assert set(names) == set(files)
    with Registry.open(fleet.home.registry) as registry:
        known = {record.id: record for record in tokens(registry, 10_000)}
    for name, file in files.items():
        assert (name, file.code.token.digest) == (file.device, known[file.code.token.id].digest)


def test_whom_a_stolen_token_let_in_is_revoked_with_it(fleet: LiveFleet) -> None:
    """The admin ends the token, and has to find the thief's devices one by one."""
    created = json.loads(fleet.enroll("token", "create", "--match", "bot-*", "--uses", "3", "-o", "json").stdout)
    code = parse_join_code(created["code"])
    for name in ("bot-1", "bot-2"):
        join(fleet.new_agent_home(), code, name).check()
    revoke = ("token", "revoke", created["id"], "--devices")
    assert "bot-1\nbot-2\n" == fleet.enroll(*revoke, "--dry-run").stdout
    assert 2 == run("enroll", *revoke, "--home", fleet.home.path).returncode, "nobody was asked"
    done = fleet.enroll(*revoke, "--yes")
    assert ["bot-1", "bot-2"] == sorted(done.stdout.split())
    assert "2 devices revoked" in done.stderr
    assert 4 == join(fleet.new_agent_home(), code, "bot-3").returncode
    with Registry.open(fleet.home.registry) as registry:
        states = {record.id: record.state for record in principals(registry, Role.DEVICE)}
    assert [State.REVOKED] * 2 == [states[name] for name in states if name.startswith("bot-")]
