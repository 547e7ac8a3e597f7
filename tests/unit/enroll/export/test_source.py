"""As whom an export reads, and what it subscribes to."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from enroll.export.source import Wanted, by_address, load_service, session_name
from fleet.errors import Denied, InvalidInput, NotFound
from fleet.identity import DeviceId, Role, Serial
from fleet.layout import AgentHome, Credential
from fleet.topics import is_topic_filter

AT = datetime(2026, 11, 21, 8, 0, tzinfo=UTC)


def identity(folder: Path, role: Role) -> AgentHome:
    home = AgentHome(folder)
    home.generation(1).mkdir()
    home.current.symlink_to("gen-1")
    credential = Credential(DeviceId("export"), role, Serial("1"), AT, AT + timedelta(days=1), "https://localhost:8443")
    home.meta.write_bytes(credential.encode())
    return home


def test_a_service_is_who_has_joined(tmp_path: Path) -> None:
    """An export would run as nobody."""
    assert "export" == load_service(identity(tmp_path, Role.SERVICE), AT).device
    with pytest.raises(NotFound, match="there is no identity in"):
        load_service(AgentHome(tmp_path / "elsewhere"), AT)


@pytest.mark.parametrize("role", [Role.DEVICE, Role.OPERATOR, Role.BROKER])
def test_nobody_but_a_service_exports(tmp_path: Path, role: Role) -> None:
    """A device would be refused by the broker, later and in other words; an operator's right be left on a server."""
    with pytest.raises(InvalidInput, match=f"is export, of role {role.value}; an export is a service"):
        load_service(identity(tmp_path, role), AT)


def test_a_certificate_that_has_ended_is_told(tmp_path: Path) -> None:
    """Its user would read of a failed handshake."""
    home = identity(tmp_path, Role.SERVICE)
    with pytest.raises(Denied, match=r"the certificate of export ended at 2026-11-22T08:00:00\.000Z") as caught:
        load_service(home, AT + timedelta(days=2))
    assert "enroll token create --role service --device export --replace" in caught.value.hint


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Wanted(), ["devices/+/up/telemetry/+"]),
        (Wanted(frozenset({DeviceId("a"), DeviceId("b")})), ["devices/a/up/telemetry/+", "devices/b/up/telemetry/+"]),
        (Wanted(streams=frozenset({"load"})), ["devices/+/up/telemetry/load"]),
        (Wanted(frozenset({DeviceId("a")}), frozenset({"load"})), ["devices/a/up/telemetry/load"]),
        (Wanted(frozenset(DeviceId(f"d{n}") for n in range(51))), ["devices/+/up/telemetry/+"]),
        (Wanted(streams=frozenset(f"s{n}" for n in range(51))), ["devices/+/up/telemetry/+"]),
    ],
)
def test_what_is_subscribed_to(wanted: Wanted, expected: list[str]) -> None:
    """The broker would refuse it, or send the whole fleet's telemetry for one device's."""
    assert expected == wanted.filters()
    assert all(map(is_topic_filter, expected))


def test_what_a_session_still_brings_is_not_taken() -> None:
    """What an earlier run under the same name had subscribed to would be written too."""
    wanted = Wanted(frozenset({DeviceId("a")}), frozenset({"load"}), lambda device: device != "b")
    assert wanted.takes(DeviceId("a"), "load")
    assert not wanted.takes(DeviceId("a"), "flow")
    assert not wanted.takes(DeviceId("b"), "load")
    assert not Wanted(is_in_group=lambda _device: False).takes(DeviceId("a"), "load")


def test_a_target_has_a_session_of_its_own() -> None:
    """Two exports would take each other's connection, and a client id that is too long is refused."""
    names = {session_name(kind, target) for kind in ("sqlite", "parquet") for target in ("/a", "/b" * 1000)}
    assert 4 == len(names)
    assert all(len("d" * 64 + ":" + name) <= 128 for name in names)


@pytest.mark.parametrize(
    "url", ["", "gateway.local", "https://gateway.local", "mqtts://", "mqtts://a:b", "mqtts://[::"]
)
def test_what_is_no_address_is_told(url: str) -> None:
    """Its user would read a traceback."""
    with pytest.raises(InvalidInput, match="is not the address of a broker"):
        by_address(url)


def test_the_usual_port_goes_without_saying() -> None:
    """What the service tells agents, and what people type, has no port where it is the usual one."""
    assert [("gateway.local", 8883)] == [(way.host, way.port) for way in by_address("mqtts://gateway.local")()]
