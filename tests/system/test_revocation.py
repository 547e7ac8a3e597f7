"""Who an admin keeps out, by real commands: the live connection ends, nobody comes back, the lists say why."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from enroll import authority
from enroll.registry import Registry
from enroll.registry.records import Reason
from enroll.service import count_issued, principals
from enroll.service.revocation import REVOKED_AT_ONCE
from fleet.identity import Role, State
from fleet.layout import AdminHome, IdentityFiles
from fleet.pki import serial_of
from tests import mqtt
from tests.faults.cutting import Traced, calls_of
from tests.fleets import CRL_URL, DOMAIN, Office, certificate_in, csr, new_home
from tests.mqtt import Peer
from tests.processes import Finished, Program, run
from tests.system.brokers import enrol, operator, peer, start_broker, start_service, wait_ready
from tests.system.test_crl import Publication, leaf_of, url_of

NOT_AUTHORIZED = b"\x20\x02\x00\x05"
_DEVICES = REVOKED_AT_ONCE + 40


@dataclass(frozen=True, slots=True)
class Fleet:
    """A fleet whose service and broker run."""

    home: AdminHome
    broker: Program
    lists: Publication

    def enroll(self, *args: object) -> Finished:
        return run("enroll", *args, "--home", self.home.path)

    def connected(self, files: IdentityFiles, device: str) -> Peer:
        """A live session."""
        found = peer(self.home, files, wait_ready(self.broker))
        assert mqtt.ACCEPTED == found.ask(mqtt.connect(device))
        return found

    def is_refused(self, files: IdentityFiles, device: str) -> bool:
        with peer(self.home, files, wait_ready(self.broker)) as again:
            return bool(NOT_AUTHORIZED == again.ask(mqtt.connect(device)))

    def wait_for_reason(self, files: IdentityFiles, *reasons: Reason | None) -> None:
        """Until the list that the certificate names says so; nothing for one that is good."""
        serial = serial_of(leaf_of(files))
        self.lists.wait_for("1.crl", lambda lines: [lines[serial]] == [*reasons] if serial in lines else not reasons)


@pytest.fixture(scope="module", name="fleet")
def _fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    home = new_home(tmp_path_factory.mktemp("revocation") / "fleet")
    with start_service(home) as service, start_broker(home) as broker:
        wait_ready(service)
        yield Fleet(home, broker, Publication(home, service, url_of(service)))
    assert "Traceback" not in service.stderr + broker.stderr


def test_a_device_that_is_revoked_is_cut_and_stays_out(fleet: Fleet) -> None:
    """A stolen device would go on until its certificate ends."""
    pump = enrol(fleet.home, "pump-01")
    with fleet.connected(pump, "pump-01") as live:
        fleet.enroll("device", "revoke", "pump-01", "--reason", "key-compromise", "--yes").check()
        assert live.is_closed()
    assert fleet.is_refused(pump, "pump-01")
    fleet.wait_for_reason(pump, Reason.KEY_COMPROMISE)
    assert 4 == fleet.enroll("device", "resume", "pump-01").returncode


def test_a_device_that_is_suspended_is_cut_until_it_is_resumed(fleet: Fleet) -> None:
    """A device in the workshop would have to be enrolled again, or go on talking meanwhile."""
    pump = enrol(fleet.home, "pump-02")
    with fleet.connected(pump, "pump-02") as live:
        fleet.enroll("device", "suspend", "pump-02").check()
        assert live.is_closed()
    assert fleet.is_refused(pump, "pump-02")
    fleet.wait_for_reason(pump, Reason.CERTIFICATE_HOLD)
    mark = fleet.broker.line_count("stderr")
    fleet.enroll("device", "resume", "pump-02").check()
    fleet.broker.wait_for_line("directory.kept", stream="stderr", after=mark)
    with fleet.connected(pump, "pump-02"):
        pass
    fleet.wait_for_reason(pump)


def test_one_certificate_is_revoked_and_the_name_comes_back_with_another_key(fleet: Fleet) -> None:
    """A leaked key would be good for its life, or cost the device its name."""
    pump = enrol(fleet.home, "pump-03")
    with fleet.connected(pump, "pump-03") as live:
        done = fleet.enroll("cert", "revoke", serial_of(leaf_of(pump)), "--reason", "superseded", "--yes").check()
        assert live.is_closed()
    assert "token create --device pump-03 --replace" in done.stderr
    assert fleet.is_refused(pump, "pump-03")
    fleet.wait_for_reason(pump, Reason.SUPERSEDED)


def test_whom_a_token_let_in_is_cut_with_it(fleet: Fleet) -> None:
    """A token that was stolen would have to be followed by hand."""
    thief = enrol(fleet.home, "bot-1")
    with fleet.connected(thief, "bot-1") as live:
        token = fleet.enroll("token", "list", "-o", "name").check().stdout.split()[-1]
        done = fleet.enroll("token", "revoke", token, "--devices", "--reason", "privilegeWithdrawn", "--yes").check()
        assert ["bot-1"] == done.stdout.split()
        assert live.is_closed()
    assert fleet.is_refused(thief, "bot-1")
    fleet.wait_for_reason(thief, Reason.PRIVILEGE_WITHDRAWN)


def test_all_that_a_ca_issued_is_cut_but_the_news_goes_on(tmp_path: Path) -> None:
    """A leaked CA key would need a new fleet; or the brokers would be cut off before they hear of it."""
    home = new_home(tmp_path / "fleet")
    with start_service(home) as service, start_broker(home) as broker:
        wait_ready(service)
        fleet = Fleet(home, broker, Publication(home, service, url_of(service)))
        pump, admin = enrol(home, "pump-01"), operator(home)
        with fleet.connected(pump, "pump-01") as device, fleet.connected(admin, "admin") as person:
            assert "2\n" == fleet.enroll("ca", "revoke", "devices", "--dry-run").check().stdout
            done = fleet.enroll("ca", "revoke", "devices", "--reason", "cACompromise", "--yes").check()
            assert ["admin", "pump-01"] == sorted(done.stdout.split())
            assert device.is_closed()
            assert person.is_closed()
        assert fleet.is_refused(pump, "pump-01")
        fleet.wait_for_reason(pump, Reason.CA_COMPROMISE)
        again = enrol(home, "pump-02")  # whoever enrols afterwards is heard of, and let in
        with fleet.connected(again, "pump-02"):
            pass


@pytest.fixture(scope="module", name="many")
def _many(tmp_path_factory: pytest.TempPathFactory) -> tuple[AdminHome, str]:
    """More devices than are revoked in a transaction, none of them connected, and the token that let them in."""
    home = new_home(tmp_path_factory.mktemp("many") / "fleet")
    with Registry.open(home.registry) as registry:
        office = Office(home, registry, authority.load(home, DOMAIN, CRL_URL), datetime.now(UTC))
        token = office.invite(pattern="d-*", uses=_DEVICES)
        with registry.group():
            for number in range(_DEVICES):
                certificate_in(office.enrol(token, csr(f"d-{number}")))
    return home, token.id


def _revoking(home: AdminHome, folder: Path, inject: str, *command: str) -> Traced:
    journal = home.registry.with_name(home.registry.name + "-wal")
    return Traced(folder / "log", [journal], inject, "enroll", *command, "--yes", "--home", home.path)


def _writes_before_the_last_commit(folder: Path) -> int:
    """How many writes into the journal came before all commits but the last were on the disk."""
    names = "".join(
        {"pwrite64": "w", "fsync": "s", "fdatasync": "s"}.get(call.name, "") for call in calls_of(folder / "log")
    )
    *before, _last = names.rstrip("s").split("s")
    return "".join(before).count("w")


@pytest.mark.parametrize(
    ("command", "spared"), [(("ca", "revoke", "devices"), 0), (("token", "revoke", "TOKEN", "--devices"), 1)]
)
def test_a_bulk_command_that_cannot_go_on_says_how_far_it_came(
    many: tuple[AdminHome, str], tmp_path: Path, command: tuple[str, ...], spared: int
) -> None:
    """An admin would believe that all are out, or that none is, and not know what to do about it."""
    template, token = many
    words = [token if word == "TOKEN" else word for word in command]
    homes = [AdminHome(tmp_path / name) for name in ("whole", "full")]
    for home in homes:
        shutil.copytree(template.path, home.path, symlinks=True)
    with _revoking(homes[0], tmp_path, "", *words) as whole:
        assert 0 == whole.wait(), whole.describe()
    full = f"pwrite64:error={errno.errorcode[errno.ENOSPC]}:when={_writes_before_the_last_commit(tmp_path) + 1}+"
    with _revoking(homes[1], tmp_path, full, *words) as cut:
        assert 6 == cut.wait(), cut.describe()
    assert f"error: {REVOKED_AT_ONCE} of " in cut.stderr
    assert "hint: run it again" in cut.stderr
    assert REVOKED_AT_ONCE == len(cut.stdout.split())
    rest = run("enroll", *words, "--yes", "--home", homes[1].path).check()
    assert len(whole.stdout.split()) == REVOKED_AT_ONCE + len(rest.stdout.split())
    assert {*whole.stdout.split()} == {*cut.stdout.split(), *rest.stdout.split()}
    assert [spared, spared] == [_left(home) for home in homes]


def _left(home: AdminHome) -> int:
    """How many certificates may still connect, brokers' and dispatch's aside; nobody is half revoked."""
    with Registry.open(home.registry) as registry:
        left = count_issued(registry, "devices")
        states = {record.state for record in principals(registry, Role.DEVICE)}
    assert states in ({State.ACTIVE}, {State.REVOKED})
    return left
