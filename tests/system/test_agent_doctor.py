"""`device-agent doctor`: what keeps a device offline, in words and codes, and a bundle without a secret."""

from __future__ import annotations

import base64
import json
import re
import tarfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from device_agent.doctor import codes
from fleet.layout import AgentHome
from tests.processes import Finished, run
from tests.system.agents import Agent, Application, LiveFleet, Operator, join, live_fleet, status_of

_DOCS = Path(__file__).parents[2] / "docs" / "agent.md"


@pytest.fixture(scope="module", name="fleet")
def _fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveFleet]:
    with live_fleet(tmp_path_factory.mktemp("doctor"), with_broker=True) as fleet:
        yield fleet


def examine(home: AgentHome) -> dict[str, str]:
    """The code that each subject got, and the exit status as that of `all`."""
    done = run("device-agent", "doctor", "-o", "json", "--home", home.path)
    found = {each["subject"]: each["code"] for each in json.loads(done.stdout)}
    return found | {"all": str(done.returncode)}


def change(path: Path, **fields: str) -> None:
    path.write_text(json.dumps(json.loads(path.read_bytes()) | fields))


def test_a_device_that_is_well_has_nothing_to_do(fleet: LiveFleet) -> None:
    """A doctor who always finds something is not asked again."""
    home = fleet.joined("pump-01")
    with Agent(home).wait_ready(), Application(home, ("echo",)) as app:
        app.say(type="status")
        app.next("status")
        found = examine(home)
        assert ({"ok", "0"}, "0") == (set(found.values()), found["all"])
        assert "online" == status_of(home)["state"], "to look would take the connection away"
        assert "ok" == status_of(home)["code"]


def test_each_trouble_has_its_code(fleet: LiveFleet, tmp_path: Path) -> None:
    """A script, or whoever reads the handbook, would have to guess from sentences."""
    assert "not-enrolled" == examine(AgentHome(tmp_path))["identity"]
    home = fleet.joined("pump-02")
    found = examine(home)
    assert ("agent-not-running", "1") == (found["agent"], found["all"])
    meta = home.meta.read_text()
    change(home.meta, enroll_url="https://127.0.0.1:1")
    (home.path / "config.json").write_text('{"v":1,"brokers":["mqtts://127.0.0.1:1"]}')
    found = examine(home)
    assert ("service-unreachable", "broker-unreachable") == (found["service"], found["broker"])
    change(home.meta, not_after=(datetime.now(UTC) - timedelta(days=1)).isoformat())
    assert "identity-expired" == examine(home)["certificate"]
    soon = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    change(home.meta, not_after=soon, not_before=(datetime.now(UTC) - timedelta(days=89)).isoformat())
    assert "identity-expires" == examine(home)["certificate"]
    change(home.meta, not_before=(datetime.now(UTC) + timedelta(hours=5)).isoformat())
    assert "clock-wrong" == examine(home)["clock"]
    home.meta.write_text(meta)
    home.identity.key.chmod(0o644)
    assert "identity-open" == examine(home)["identity"]
    home.identity.key.write_text("")
    home.identity.key.chmod(0o600)
    assert "identity-damaged" == examine(home)["identity"]
    (home.path / "spool.damaged").touch()
    assert "spool-damaged" == examine(home)["spool"]


def test_a_revoked_device_learns_it(fleet: LiveFleet) -> None:
    """Its owner would look for a cable."""
    home = fleet.joined("pump-03")
    with Agent(home).wait_ready():
        pass
    fleet.enroll("device", "revoke", "pump-03", "--yes")
    found = examine(home)
    assert "service-refused" == found["service"]
    assert found["broker"] in ("broker-refused", "broker-closed")


def bundle(home: AgentHome, target: Path) -> tuple[Finished, dict[str, bytes]]:
    done = run("device-agent", "doctor", "--bundle", target, "--home", home.path)
    with tarfile.open(target) as tar:
        files = {member.name: tar.extractfile(member) for member in tar}
        return done, {name: file.read() for name, file in files.items() if file is not None}


def test_the_bundle_holds_no_secret(fleet: LiveFleet, tmp_path: Path) -> None:
    """Whoever sends it to a forum would give the device away."""
    code = fleet.invite("pump-04")
    home = fleet.new_agent_home()
    join(home, code, "pump-04").check()
    with Operator(fleet) as operator, Agent(home).wait_ready() as agent, Application(home, ("unlock",)) as app:
        operator.send("pump-04", "unlock", "c1", pin="pin-of-the-safe")
        app.next("command")
        app.say(type="result", command_id="c1", state="done", output={"said": "what-it-answered"})
        operator.result("pump-04", "c1", "done")
        assert fleet.broker is not None
        fleet.broker.stop()
        agent.wait_for_line("connection.failed", stream="stderr")
        for number in range(60):
            app.say(type="telemetry", stream="load", data=f"measured-{number}")
        app.say(type="status")
        app.next("status")
        done, files = bundle(home, tmp_path / "bundle.tar.gz")
    fleet.start_broker()
    assert 1 == done.returncode
    everything = b"".join(files.values())
    pem = home.identity.key.read_text()
    der = base64.b64decode("".join(pem.splitlines()[1:-1]))
    lines = [line.encode() for line in pem.splitlines()[1:-1]]
    pieces = [der[at : at + 12] for at in range(len(der) - 12)]
    private = pieces[24:60]  # the rest of a PKCS #8 key is its algorithm and the public key, which the certificate has
    secrets = [*lines[:1], *private, *[base64.b16encode(piece).lower() for piece in private]]
    secrets += [str(code).encode(), str(code.token).encode(), code.token.secret, code.token.secret.hex().encode()]
    secrets += [b"pin-of-the-safe", b"what-it-answered", b"measured-1", b"PRIVATE KEY"]
    assert [] == [secret for secret in secrets if secret in everything]
    assert 0o600 == (tmp_path / "bundle.tar.gz").stat().st_mode & 0o777
    assert {"doctor.json", "status.json", "machine.json", "files.json", "commands.json"} <= {
        name.removeprefix("device-agent/") for name in files
    }
    assert b"BEGIN CERTIFICATE" in everything
    assert b"unlock" in files["device-agent/commands.json"]


def test_a_bundle_never_overwrites(fleet: LiveFleet, tmp_path: Path) -> None:
    """`--bundle ~/notes.txt` would destroy the notes."""
    (tmp_path / "notes").write_text("mine")
    refused = run("device-agent", "doctor", "--bundle", tmp_path / "notes", "--home", tmp_path)
    assert "error: " in refused.stderr
    assert "mine" == (tmp_path / "notes").read_text()


def test_every_code_is_in_the_handbook() -> None:
    """Whoever looks one up would find nothing."""
    text = _DOCS.read_text()
    documented = set(re.findall(r"`([a-z]+(?:-[a-z]+)*)`", text))
    assert set() == {code.removeprefix("service-").removeprefix("broker-") for code in codes()} - documented
