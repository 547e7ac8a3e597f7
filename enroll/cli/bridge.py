"""`enroll bridge`: the fleet in Home Assistant, shown by a service of the fleet."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from enroll.cli.export import BrokerOption, stopping
from enroll.cli.options import HomeOption, Verbs, admin_home, clock, now, open_registry, token_bytes
from enroll.cli.output import say
from enroll.cli.selected import Members, WhereOption, ids_of, nobody
from fleet.address import Address, parse_address
from fleet.errors import InvalidInput
from fleet.identity import DeviceId, Role
from fleet.layout import AgentHome, IdentityFiles
from fleet.logs import log_to

if TYPE_CHECKING:
    from enroll.bridge.house import Layout
    from enroll.bridge.second import Second
    from enroll.bridge.units import Unit
    from enroll.export.source import Source
    from enroll.registry import Registry
    from enroll.registry.overview import Filter
    from fleet.layout import AdminHome

_LOOK_SECONDS: Final = 1.0
_SHARE: Final = 20  # a twentieth of the time, at most, goes into looking who is there
_THERE: Final = "not state=revoked and not state=removed"


def home_assistant(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="The broker that Home Assistant uses.")],
    user: Annotated[str | None, typer.Option(metavar="NAME", help="As whom to connect to it.")] = None,
    password_file: Annotated[
        Path | None, typer.Option("--password-file", metavar="FILE", help="The password, in the first line.")
    ] = None,
    tls: Annotated[bool, typer.Option("--tls", help="Encrypted, and verified by the system's CAs.")] = False,
    ca: Annotated[Path | None, typer.Option("--ca", metavar="FILE", help="Encrypted, and verified by this CA.")] = None,
    cert: Annotated[
        Path | None, typer.Option("--cert", metavar="FILE", help="What to show to a broker that wants a certificate.")
    ] = None,
    key: Annotated[Path | None, typer.Option("--key", metavar="FILE", help="Its key.")] = None,
    prefix: Annotated[str, typer.Option(metavar="TOPIC", help="Home Assistant's discovery prefix.")] = "homeassistant",
    name: Annotated[str, typer.Option(metavar="NAME", help="This bridge's name in topics and ids.")] = "mqtt-fleet",
    unit: Annotated[
        list[str] | None,
        typer.Option("--unit", metavar="S.F=UNIT", help="In what a field is measured.", show_default="by name"),
    ] = None,
    group: Annotated[str | None, typer.Option(metavar="G", help="Only devices of this group.")] = None,
    where: WhereOption = None,
    identity: Annotated[
        Path | None,
        typer.Option("--identity", metavar="DIR", help="Where the service has joined.", show_default="HOME/bridge"),
    ] = None,
    broker: BrokerOption = None,
    home: HomeOption = None,
) -> None:
    """Show devices to Home Assistant (MQTT discovery), until SIGTERM.

    Every number that a device measures is a sensor, on or off a binary one. It runs on the fleet's own host.
    """
    from enroll.bridge.house import Layout
    from enroll.bridge.units import parse_told

    at, layout, units = admin_home(home), Layout(prefix, name), parse_told(unit or [])
    identity_there = _identity(cert, key)
    is_tls = tls or ca is not None or identity_there is not None
    told = _second(parse_address(address), user, password_file, f"{name}-bridge", is_tls=is_tls)
    second = replace(told, ca=ca, identity=identity_there)
    source = _source(at, identity, broker)
    log_to(logging.StreamHandler())
    with open_registry(at) as registry, contextlib.closing(Roster(registry, _wanted(group, where))) as roster:
        if group is not None and not roster.is_anybody():
            raise nobody(registry, group)
        _run(source, second, layout, units, roster)


VERBS: Final[Verbs] = {"home-assistant": home_assistant}


def _run(source: Source, second: Second, layout: Layout, units: dict[str, Unit], roster: Roster) -> None:
    from importlib.metadata import version

    from enroll.bridge.bridge import Bridge
    from enroll.bridge.house import House
    from enroll.export.exporter import Ports

    def ready() -> None:
        print(f"bridge: ready {second}", flush=True)

    with stopping() as stop:
        ports = Ports(now, time.monotonic, random.SystemRandom(), stop.is_set, stop.wait, ready)
        house, mark = House(layout, units, version("mqtt-fleet")), token_bytes(8).hex().encode()
        Bridge(source.connect, second, house, roster, ports, mark).run()


def _second(address: Address, user: str | None, password_file: Path | None, client_id: str, *, is_tls: bool) -> Second:
    from enroll.bridge.second import Second, read_password

    if password_file is not None and user is None:
        raise InvalidInput("a password is somebody's", hint="--user NAME")
    if not is_tls and not _is_near(address.host):
        say(f"what goes to {address} is not encrypted: --tls, or --ca FILE")
    password = None if password_file is None else read_password(password_file)
    return Second(address, client_id, user, password, is_tls)


def _identity(certificate: Path | None, key: Path | None) -> IdentityFiles | None:
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise InvalidInput("a certificate and its key go together", hint="--cert FILE --key FILE")
    return IdentityFiles(certificate, key)


def _is_near(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _source(at: AdminHome, identity: Path | None, broker: str | None) -> Source:
    from enroll.export import source

    agent = AgentHome(at.path / "bridge" if identity is None else identity.absolute())
    credential = source.load_service(agent, now(), "bridge")
    ways = source.by_run_file(at) if broker is None else source.by_address(broker)
    client_id = f"{credential.device}:bridge-{token_bytes(4).hex()}"  # the name is the other broker's alone
    return source.Source(agent, client_id, ways, time.monotonic, clock, is_persistent=False)


def _wanted(group: str | None, where: str | None) -> Filter:
    from enroll.registry.overview import Filter
    from enroll.selection import parse

    if where is not None:
        parse(where)  # what is wrong with it is said of it alone
    return Filter(Role.DEVICE, group=group, where=parse(_THERE if where is None else f"{_THERE} and ({where})"))


class Roster:
    """Who is shown: devices that are not revoked or removed, and fit; by the registry as it is now."""

    def __init__(self, registry: Registry, wanted: Filter) -> None:
        self._registry = registry
        self._wanted = wanted
        self._members = Members(registry, wanted)
        self._mark = registry.commit_mark()
        self._look_at = 0.0
        self._is_stale = True

    def has(self, id: DeviceId) -> bool:
        return self._members.has(id)

    def is_anybody(self) -> bool:
        return self._members.is_anybody()

    def gone(self, shown: Sequence[DeviceId], *, is_new: bool = False) -> list[DeviceId]:
        """Once a second at most, and less often where that takes long; but what `is_new` is always looked at."""
        self._is_stale |= self._mark.has_moved()
        began = time.monotonic()
        if not is_new and (not self._is_stale or began < self._look_at):
            return []
        self._is_stale = False
        there = frozenset(ids_of(self._registry, self._wanted))
        took = time.monotonic() - began
        self._look_at = began + max(_LOOK_SECONDS, _SHARE * took)
        return [device for device in shown if device not in there]

    def close(self) -> None:
        self._members.close()
        self._mark.close()
