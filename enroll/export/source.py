"""As whom an export reads, and where the broker is."""

from __future__ import annotations

import hashlib
import http.client
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from enroll.mqtt_client import Connection, Endpoint, Login, endpoints
from fleet import messages
from fleet.clock import FlooredClock
from fleet.errors import Denied, FleetError, InvalidInput, NotFound, Unreachable
from fleet.identity import DeviceId, Role, Server, is_server
from fleet.layout import AdminHome, AgentHome, Credential, decode_credential, decode_run_file
from fleet.topics import Telemetry

_CONFIG_PATH: Final = "/v1/config"
_SECONDS: Final = 10.0
_MAX_ANSWER_BYTES: Final = 262_144
_MAX_BROKERS: Final = 16
_MAX_FILTERS: Final = 50
_ALL: Final = "devices/+/up/telemetry/+"


def load_service(home: AgentHome, now: datetime, purpose: str = "export") -> Credential:
    """Who has joined into `home`. Raises: NotFound, InvalidInput (not a service), Denied (expired)."""
    article = "an" if purpose == "export" else "a"
    try:
        credential = decode_credential(home.meta.read_bytes())
    except OSError as error:
        raise NotFound(f"there is no identity in {home.path}", hint=_how_to_join(purpose, home)) from error
    if credential.role is not Role.SERVICE:
        words = f"{home.path} is {credential.device}, of role {credential.role.value}; {article} {purpose} is a service"
        create = f"enroll token create --role service --device {purpose}"
        hint = f"{create}, join into another directory, and --identity names it"
        raise InvalidInput(words, hint=hint)
    if credential.not_after < now:
        words = f"the certificate of {credential.device} ended at {messages.format_time(credential.not_after)}"
        raise Denied(words, hint=_how_to_join(credential.device, home, " --replace"))
    return credential


def _how_to_join(name: str, home: AgentHome, options: str = "") -> str:
    create = f"enroll token create --role service --device {name}{options}"
    return f"{create}, and device-agent join CODE --id {name} --home {home.path}"


def session_name(kind: str, target: str) -> str:
    """The same for the same target at every start: the broker keeps what comes meanwhile under this name."""
    return f"export-{kind}-{hashlib.sha256(target.encode()).hexdigest()[:8]}"


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which messages are exported: those to which all of this applies. Empty means any."""

    devices: frozenset[DeviceId] = frozenset()
    streams: frozenset[str] = frozenset()
    is_in_group: Callable[[DeviceId], bool] | None = None

    def filters(self) -> list[str]:
        """What to subscribe to. More than a broker may allow in one session become the one of all devices."""
        devices: list[str] = [*sorted(self.devices)] or ["+"]
        streams = sorted(self.streams) or ["+"]
        if len(devices) * len(streams) > _MAX_FILTERS:
            return [_ALL]
        return [f"devices/{device}/up/telemetry/{stream}" for device in devices for stream in streams]

    def takes(self, device: DeviceId, stream: str) -> bool:
        """Whether it is exported: a session may bring what was subscribed to under its name before."""
        return (
            (not self.devices or device in self.devices)
            and (not self.streams or stream in self.streams)
            and (self.is_in_group is None or self.is_in_group(device))
        )


def check_stream(name: str) -> str:
    """Raises: InvalidTopic unless a stream can have that name."""
    Telemetry(DeviceId("any"), name).format()
    return name


Ways = Callable[[], tuple[Endpoint, ...]]
"""Where the broker is now: asked before each connection. Raises: FleetError."""


def by_run_file(home: AdminHome) -> Ways:
    """As the broker on this host has written it down."""

    def ways() -> tuple[Endpoint, ...]:
        try:
            return endpoints(decode_run_file(home.run_file(Server.BROKER).read_bytes()).url)
        except OSError as error:
            raise Unreachable("no broker runs here", hint="broker serve, or say where: --broker URL") from error

    return ways


def by_address(url: str) -> Ways:
    """Always there. Raises: InvalidInput."""
    found = (_endpoint(url),)
    return lambda: found


def by_service(home: AgentHome, url: str) -> Ways:
    """Where the enrollment service says; while it is away, where it said last."""
    known: tuple[Endpoint, ...] = ()

    def ways() -> tuple[Endpoint, ...]:
        nonlocal known
        try:
            known = tuple(_endpoint(each) for each in _ask(home, url)) or known
        except (Unreachable, InvalidInput) as error:
            if not known:
                raise Unreachable(error.message, hint=error.hint) from error
        if not known:
            raise Unreachable(f"{url} knows of no broker yet", hint="broker serve")
        return known

    return ways


def _endpoint(url: Any) -> Endpoint:
    try:
        parts = urlsplit(url if isinstance(url, str) else "")
        host, port = parts.hostname, parts.port or 8883
    except ValueError:
        parts, host, port = urlsplit(""), None, 0
    if parts.scheme != "mqtts" or not host:
        raise InvalidInput(f"{str(url)[:80]!r} is not the address of a broker", hint="as mqtts://gateway.local:8883")
    return Endpoint(host, port, host)


def _ask(home: AgentHome, url: str) -> list[Any]:
    """`brokers` in the answer of `/v1/config`. Raises: Unreachable, Denied, InvalidInput."""
    parts = urlsplit(url)
    connection = http.client.HTTPSConnection(
        parts.hostname or "", parts.port or 443, timeout=_SECONDS, context=_context(home)
    )
    try:
        connection.connect()
        if not is_server(connection.sock.getpeercert(), Server.ENROLL):
            raise Unreachable(f"{url} is not the enrollment service of this fleet")
        connection.request("GET", _CONFIG_PATH)
        answer = connection.getresponse()
        body = answer.read(_MAX_ANSWER_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(f"{url}: {error}", hint="enroll serve, or say where the broker is: --broker URL") from error
    finally:
        connection.close()
    if answer.status in (401, 403):
        raise Denied(
            f"{url} does not know this identity: HTTP {answer.status}", hint="enroll device show says its state"
        )
    if answer.status != 200:
        raise Unreachable(f"{url} answers with HTTP {answer.status}")
    brokers = messages.decode_object(body).get("brokers")
    if not isinstance(brokers, list) or len(brokers) > _MAX_BROKERS:
        raise InvalidInput(f"{url} answers something else than a configuration")
    return brokers


def _context(home: AgentHome) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(home.trust)
        context.load_cert_chain(home.identity.certificate, home.identity.key)
    except (OSError, ValueError) as error:
        raise FleetError(f"the identity in {home.path} cannot be used: {error}") from error
    return context


@dataclass(frozen=True, slots=True)
class Source:
    """The broker, as one service with one session, persistent unless what comes meanwhile is of no use."""

    home: AgentHome
    client_id: str
    ways: Ways
    monotonic: Callable[[], float]
    clock: FlooredClock | None = None
    is_persistent: bool = True

    def connect(self, filters: Iterable[str]) -> Connection:
        """A connection that is subscribed. Raises: Unreachable, Denied, FleetError (our own files)."""
        trust, keeps = str(self.home.trust), self.is_persistent
        login = Login(trust, self.home.identity, self.client_id, is_persistent=keeps, clock=self.clock)
        connection = Connection.open(login, self.ways(), self.monotonic)
        try:
            connection.subscribe(filters, self.monotonic)
        except BaseException:
            connection.close()
            raise
        return connection


def absolute(path: Path) -> str:
    """The one name of a path, for `session_name`."""
    return str(path.resolve())
