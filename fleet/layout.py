"""Where files are: the admin's home, an agent's home, and what the small JSON files in them say.

Paths only: each program reads and writes for itself.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from fleet import messages
from fleet.errors import FleetError, InvalidInput
from fleet.identity import DeviceId, Role, Serial, Server


@dataclass(frozen=True, slots=True)
class CaFiles:
    """A CA's certificate and its private key."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class IdentityFiles:
    """A leaf's files: `certificate` holds the leaf, then its issuing certificate."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class AdminHome:
    """The home of `enroll` and of a broker on the same host: HOME/... (DESIGN section 9)."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "fleet.toml"

    @property
    def registry(self) -> Path:
        return self.path / "registry.db"

    @property
    def root(self) -> CaFiles:
        """The root; its key is encrypted with the passphrase."""
        return self._ca("root")

    @property
    def devices_ca(self) -> CaFiles:
        """Issues client certificates."""
        return self._ca("devices")

    @property
    def servers_ca(self) -> CaFiles:
        """Issues server certificates."""
        return self._ca("servers")

    def crl(self, name: str) -> Path:
        """A CRL in DER: a shard's by its number, an issuing CA's by its name; beside the latter it is in PEM, too."""
        return self.path / "crl" / f"{name}.crl"

    @property
    def uploads(self) -> Path:
        """What devices have sent on request."""
        return self.path / "uploads"

    @property
    def enroll_server(self) -> IdentityFiles:
        """What the enrollment service shows."""
        return self._identity(self.path / "enroll" / "server")

    @property
    def dispatch(self) -> IdentityFiles:
        """The service principal that dispatch connects as."""
        return self._identity(self.path / "enroll" / "dispatch")

    @property
    def dispatch_signing(self) -> IdentityFiles:
        """What dispatch signs with what it sends to devices; no principal, and no TLS certificate."""
        return self._identity(self.path / "enroll" / "signing")

    @property
    def broker(self) -> Path:
        """All that a broker needs; the same layout on a host of its own."""
        return self.path / "broker"

    @property
    def broker_server(self) -> IdentityFiles:
        """What the broker shows."""
        return self._identity(self.broker / "server")

    @property
    def broker_client(self) -> IdentityFiles:
        """The principal of role broker that follows the directory."""
        return self._identity(self.broker / "client")

    @property
    def broker_revoked(self) -> IdentityFiles:
        """A client identity of the broker's own that is revoked: with it the broker proves that it keeps such out."""
        return self._identity(self.broker / "revoked")

    @property
    def broker_trust(self) -> Path:
        """The certificates that clients' chains may end in, and their issuing CA: roots, then devices CA."""
        return self.broker / "trust.pem"

    @property
    def broker_directory(self) -> Path:
        """The last snapshot of the directory."""
        return self.broker / "directory.ndjson"

    @property
    def clock(self) -> Path:
        """The last time that the service or the broker knew for sure (`fleet.clock`)."""
        return self.path / "clock.json"

    @property
    def broker_sessions(self) -> Path:
        """Sessions, what waits for them, and retained messages."""
        return self.broker / "sessions.db"

    @property
    def operator(self) -> AgentHome:
        """The first operator, `admin`."""
        return AgentHome(self.path / "operator")

    def run_file(self, server: Server) -> Path:
        """Where a server says at ready how it is reached."""
        return self.path / "run" / f"{server.value}.json"

    def _ca(self, name: str) -> CaFiles:
        return CaFiles(self.path / "ca" / f"{name}.pem", self.path / "ca" / f"{name}.key.pem")

    @staticmethod
    def _identity(folder: Path) -> IdentityFiles:
        return IdentityFiles(folder / "cert.pem", folder / "key.pem")


@dataclass(frozen=True, slots=True)
class AgentHome:
    """The home of an agent, an operator or a service."""

    path: Path

    @property
    def current(self) -> Path:
        """A symbolic link to the generation in use."""
        return self.path / "current"

    @property
    def trust(self) -> Path:
        """The roots, and nothing else."""
        return self.path / "trust.pem"

    @property
    def clock(self) -> Path:
        """The last time that was known for sure (`fleet.clock`)."""
        return self.path / "clock.json"

    def generation(self, number: int) -> Path:
        return self.path / f"gen-{number}"

    @property
    def identity(self) -> IdentityFiles:
        return IdentityFiles(self.current / "cert.pem", self.current / "key.pem")

    @property
    def meta(self) -> Path:
        """`Credential` as JSON, so that nobody has to parse the certificate."""
        return self.current / "meta.json"


@dataclass(frozen=True, slots=True)
class Credential:
    """What one generation is: `meta.json` beside key and certificate."""

    device: DeviceId
    role: Role
    serial: Serial
    not_before: datetime
    not_after: datetime
    enroll_url: str

    def encode(self) -> bytes:
        fields = {
            "v": 1,
            "id": str(self.device),
            "role": self.role.value,
            "serial": str(self.serial),
            "not_before": messages.format_time(self.not_before),
            "not_after": messages.format_time(self.not_after),
            "enroll_url": self.enroll_url,
        }
        return json.dumps(fields, indent=2).encode() + b"\n"


def decode_credential(data: bytes) -> Credential:
    """The inverse of `Credential.encode`. Raises: InvalidInput."""
    try:
        fields = messages.decode_object(data)
        return Credential(
            DeviceId(fields["id"]),
            Role(fields["role"]),
            Serial(fields["serial"]),
            messages.parse_time(fields["not_before"]),
            messages.parse_time(fields["not_after"]),
            str(fields["enroll_url"]),
        )
    except (KeyError, ValueError, TypeError, FleetError) as error:
        raise InvalidInput(f"meta.json is damaged: {error}", hint="enrol again: device-agent join CODE") from error


@dataclass(frozen=True, slots=True)
class RunFile:
    """What a running server says of itself: the address under which others reach it."""

    url: str

    def encode(self) -> bytes:
        return json.dumps({"v": 1, "url": self.url}).encode() + b"\n"


def decode_run_file(data: bytes) -> RunFile:
    """The inverse of `RunFile.encode`. Raises: InvalidInput."""
    url = messages.decode_object(data).get("url")
    if not isinstance(url, str) or not url:
        raise InvalidInput("the run file names no url", hint="start the server again")
    return RunFile(url)
