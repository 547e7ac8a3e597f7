"""Where the brokers are: `GET /v1/config` over mutual TLS, and the last answer on disk."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from device_agent import https, tls
from device_agent.clock import Clock
from device_agent.failures import Cause, Failure
from device_agent.refusals import refusal_of
from device_agent.store import Disk, replace_file
from fleet import messages, signers
from fleet.address import Address
from fleet.errors import InvalidInput, printable
from fleet.identity import Server
from fleet.layout import AgentHome, IdentityFiles
from fleet.signers import Chain

CONFIG_PATH: Final = "/v1/config"  # fleet.est.CONFIG, which `run` may not load: a test compares them
MAX_BROKERS: Final = 16
_PORT: Final = 8883


@dataclass(frozen=True, slots=True)
class Configuration:
    """Where the brokers are, whether an admin has to decide whose this identity is, and who signs for the fleet."""

    brokers: tuple[Address, ...]
    is_used_twice: bool
    signers: tuple[Chain, ...] = ()


def fetch_brokers(
    home: AgentHome, url: str, clock: Clock, identity: IdentityFiles | None = None
) -> tuple[Address, ...]:
    """Ask the enrollment service, as `identity` or the one in use. Raises: https.RequestFailed."""
    return fetch(home, url, clock, identity).brokers


def fetch(home: AgentHome, url: str, clock: Clock, identity: IdentityFiles | None = None) -> Configuration:
    """All that it answers. Raises: https.RequestFailed."""
    peer = https.peer_of(url)
    try:
        context = tls.context_for(Server.ENROLL, home.trust.read_text(), clock, identity or home.identity)
    except (OSError, ValueError) as error:
        raise https.RequestFailed(Failure(Cause.LOCAL, peer, str(error))) from error
    answer = https.send(https.Request(url, CONFIG_PATH), context)
    if (refused := refusal_of(answer)) is not None:
        raise https.RequestFailed(Failure(refused, peer, f"HTTP {answer.status}"))
    if answer.status != 200:
        raise https.RequestFailed(Failure(Cause.BAD_ANSWER, peer, f"HTTP {answer.status}"))
    try:
        brokers, fields = parse_config(answer.body), messages.decode_object(answer.body)
        chains = signers.from_json(fields.get("signers", []))  # a service that is older has none
        return Configuration(brokers, fields.get("problem") == Cause.USED_TWICE, chains)
    except InvalidInput as error:
        raise https.RequestFailed(Failure(Cause.BAD_ANSWER, peer, printable(error.message))) from error


def parse_config(body: bytes) -> tuple[Address, ...]:
    """The brokers in `{"v": 1, "brokers": ["mqtts://gateway.local:8883"], ...}`. Raises: InvalidInput."""
    fields = messages.decode_object(body)
    listed = fields.get("brokers")
    if fields.get("v") != 1 or not isinstance(listed, list) or len(listed) > MAX_BROKERS:
        raise InvalidInput("the answer is not the configuration that this agent reads")
    return tuple(_parse_broker(url) for url in listed)


def _parse_broker(url: Any) -> Address:
    with contextlib.suppress(ValueError):
        parts = urlsplit(url if isinstance(url, str) else "")
        if parts.scheme == "mqtts" and parts.hostname and parts.port != 0 and parts.path in ("", "/"):
            return Address(parts.hostname, parts.port or _PORT)
    raise InvalidInput(f"{str(url)[:80]!r} is not the address of a broker")


def save_brokers(disk: Disk, home: AgentHome, brokers: tuple[Address, ...]) -> None:
    """Remember them: the agent finds its brokers with the enrollment service away. Raises: OSError."""
    fields = {"v": 1, "brokers": [f"mqtts://{broker}" for broker in brokers]}
    replace_file(disk, _file(home), messages.encode_object(fields) + b"\n")


def known_brokers(home: AgentHome) -> tuple[Address, ...]:
    """The remembered ones; none if there are none, or if the file cannot be read: they can be asked for again."""
    try:
        return parse_config(_file(home).read_bytes())
    except (OSError, InvalidInput):
        return ()


def _file(home: AgentHome) -> Path:
    return home.path / "config.json"
