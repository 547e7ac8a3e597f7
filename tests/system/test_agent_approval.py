"""`device-agent join` where an admin has to approve: waiting, restarts, refusals, and pairing without a token."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from enroll.registry import Registry
from enroll.service import show
from fleet.config import parse_address
from fleet.identity import DeviceId
from fleet.layout import AgentHome
from tests.fleets import new_home
from tests.processes import Finished, Program, run
from tests.system.agents import LiveFleet, pin_of, serial_of

WAITS = r"^waiting for an admin's approval of (\S+): code (\w+), key ([0-9a-f ]+)$"


@pytest.fixture(scope="module", name="fleet")
def _fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveFleet]:
    with pairing_fleet(tmp_path_factory.mktemp("approval")) as fleet:
        yield fleet


@contextmanager
def pairing_fleet(folder: Path) -> Iterator[LiveFleet]:
    """A fleet whose service runs, with pairing switched on."""
    home = new_home(folder / "fleet", enroll_listen=parse_address("127.0.0.1:0"))
    home.config.write_text(home.config.read_text().replace("[enroll]\n", "[enroll]\npairing = true\n"))
    with ExitStack() as stack:
        service = stack.enter_context(serving(home.path, "127.0.0.1:0"))
        url = service.wait_for_line(r"^enroll: ready (\S+)$")[1]
        yield LiveFleet(home, folder / "agents", stack, service, url)


def serving(home: Path, listen: str) -> Program:
    return Program("enroll", "serve", "--home", home, "--listen", listen)


def manual(fleet: LiveFleet, device: str) -> str:
    """A join code whose request needs an admin's yes."""
    return fleet.enroll("token", "create", "--device", device, "--approval", "manual", "-o", "code").stdout.strip()


def joining(home: AgentHome, code: str, device: str) -> Program:
    return Program("device-agent", "join", code, "--id", device, "--home", home.path)


def waiting(agent: Program) -> tuple[str, str]:
    """The code and the fingerprint that the device shows."""
    found = agent.wait_for_line(WAITS, stream="stderr")
    return found[2], found[3]


def shown(fleet: LiveFleet, request: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(fleet.enroll("request", "show", request, "-o", "json").stdout)
    return found


def enrolled(agent: Program) -> None:
    assert 0 == agent.wait(), agent.describe()
    assert "certificate " in agent.stdout


def test_a_device_waits_for_the_admin_and_says_so(fleet: LiveFleet) -> None:
    """Whoever installs the device does not know what it waits for, or has to come back after the approval."""
    home = fleet.new_agent_home()
    with joining(home, manual(fleet, "pump-01"), "pump-01") as agent:
        code, key = waiting(agent)
        status = json.loads(run("device-agent", "status", "-o", "json", "--home", home.path).check().stdout)
        assert ("waiting-for-approval", code, key) == (status["state"], status["request"], status["key"])
        assert f"code {code}" in run("device-agent", "status", "--home", home.path).check().stdout
        assert shown(fleet, code)["key_sha256"].startswith(key.replace(" ", ""))
        fleet.enroll("request", "approve", code)
        enrolled(agent)
    assert not list((home.path / "run").glob("waiting*"))
    assert 1 == agent.stderr.count("waiting for an admin")


def test_a_restart_goes_on_waiting_with_the_same_key(fleet: LiveFleet) -> None:
    """A power cut while it waits makes another request, and the admin approves the one that nobody has."""
    home, code = fleet.new_agent_home(), manual(fleet, "pump-02")
    with joining(home, code, "pump-02") as agent:
        first = waiting(agent)
        agent.kill()
    with joining(home, code, "pump-02") as agent:
        assert first == waiting(agent)
        fleet.enroll("request", "approve", first[0])
        enrolled(agent)


def test_a_denied_device_says_why(fleet: LiveFleet) -> None:
    """Somebody stands before a device that waits for ever."""
    home = fleet.new_agent_home()
    with joining(home, manual(fleet, "pump-03"), "pump-03") as agent:
        code, _ = waiting(agent)
        fleet.enroll("request", "deny", code, "--reason", "this is not our pump")
        assert 4 == agent.wait()
    assert f"error: an admin denied request {code}: this is not our pump" in agent.stderr
    assert 3 == run("device-agent", "status", "--home", home.path).returncode


def test_who_does_not_want_to_wait_is_told_the_code(fleet: LiveFleet) -> None:
    """A script that installs devices hangs, or `status` knows nothing of the request."""
    home = fleet.new_agent_home().path
    done = run(
        *("device-agent", "join", manual(fleet, "pump-04"), "--id", "pump-04"),
        *("--no-wait", "--home", home),
    )
    assert 7 == done.returncode
    said = re.search(r"^error: an admin has to approve pump-04: code (\w+), key [0-9a-f ]+$", done.stderr, re.MULTILINE)
    assert said
    assert f"code {said[1]}" in run("device-agent", "status", "--home", home).check().stdout


@pytest.mark.parametrize("crashes", [1, 2])
def test_nothing_is_lost_when_the_service_is_killed(tmp_path: Path, crashes: int) -> None:
    """A request, its approval or the waiting does not survive a crash; or two crashes give two certificates."""
    with pairing_fleet(tmp_path) as fleet:
        listen = fleet.url.removeprefix("https://")
        with joining(fleet.new_agent_home(), manual(fleet, "pump-05"), "pump-05") as agent:
            code, _ = waiting(agent)
            fleet.service.kill()  # between request and approval
            agent.wait_for_line(r"^still waiting: ", stream="stderr")
            fleet.enroll("request", "approve", code)  # needs no service
            for _ in range(crashes - 1):
                with serving(fleet.home.path, listen) as service:
                    service.wait_for_line(r"^enroll: ready")
                    service.kill()  # between approval and issuance, or right behind it
            with serving(fleet.home.path, listen) as service:
                service.wait_for_line(r"^enroll: ready")
                enrolled(agent)
        with Registry.open(fleet.home.registry) as registry:
            assert 1 == len(show(registry, DeviceId("pump-05")).certificates)


# Pairing ---------------------------------------------------------------------------------------------------------


def pairing(fleet: LiveFleet, home: AgentHome, device: str, pin: str) -> list[object]:
    return ["join", "--url", fleet.url, "--root-pin", pin, "--id", device, "--home", home.path]


def test_a_device_is_paired_by_its_code_alone(fleet: LiveFleet) -> None:
    """Nobody can begin without a token, or what device and admin compare is not the same."""
    home = fleet.new_agent_home()
    with Program("device-agent", *pairing(fleet, home, "valve-1", pin_of(fleet).hex())) as agent:
        code, key = waiting(agent)
        found = shown(fleet, code)
        assert (None, "valve-1", "waiting") == (found["token"], found["device"], found["state"])
        assert found["key_sha256"].startswith(key.replace(" ", ""))
        assert 80 <= 4 * len(key.replace(" ", ""))
        fleet.enroll("request", "approve", code)
        enrolled(agent)
    assert serial_of(home)


def test_without_the_pin_nothing_is_sent(fleet: LiveFleet) -> None:
    """A device pairs itself with whoever answers first."""
    mark = fleet.service.line_count("stderr")
    done = run("device-agent", *pairing(fleet, fleet.new_agent_home(), "valve-2", "01" * 32))
    assert 5 == done.returncode
    assert not [line for line in fleet.service.stderr.splitlines()[mark:] if "valve-2" in line]
    assert 2 == without_pin(fleet).returncode


def without_pin(fleet: LiveFleet) -> Finished:
    return run("device-agent", "join", "--url", fleet.url, "--id", "valve-2", "--home", fleet.new_agent_home().path)
