"""Who is who: device ids, roles, principals, and their names in a certificate."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from fleet.errors import InvalidInput

# DESIGN section 1: at most 64 characters (X.520 ub-common-name), nothing that means something in a topic filter,
# an ACL pattern, a file name or a URI (CVE-2017-7650).
_DEVICE_ID = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?")
# SPIFFE-ID, section 2.1: lower-case letters, digits, dots, dashes and underscores, at most 255 bytes.
_TRUST_DOMAIN = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,253}[a-z0-9])?")
_SERIAL = re.compile(r"[1-9a-f][0-9a-f]{0,39}")


class InvalidDeviceId(InvalidInput):
    """Not a device id."""

    def __init__(self, value: str) -> None:
        super().__init__(
            f"{value[:80]!r} is not a device id",
            hint="use a-z, 0-9, _ and -, starting and ending with a letter or digit, at most 64 characters",
        )


class DeviceId(str):
    """The id of a principal, and the common name of its certificate; always within the grammar.

    Raises: InvalidDeviceId.
    """

    __slots__ = ()

    def __new__(cls, value: str) -> Self:
        if not _DEVICE_ID.fullmatch(value):
            raise InvalidDeviceId(value)
        return super().__new__(cls, value)


class TrustDomain(str):
    """The trust domain of one fleet (SPIFFE-ID, section 2.1). Raises: InvalidInput."""

    __slots__ = ()

    def __new__(cls, value: str) -> Self:
        if not _TRUST_DOMAIN.fullmatch(value):
            raise InvalidInput(
                f"{value[:80]!r} is not a trust domain", hint="use a lower-case name such as acme.example"
            )
        return super().__new__(cls, value)


class Serial(str):
    """A certificate's serial number in lower-case hexadecimal without leading zeros.

    At most 20 octets (RFC 5280, 4.1.2.2). Raises: InvalidInput.
    """

    __slots__ = ()

    def __new__(cls, value: str) -> Self:
        if not _SERIAL.fullmatch(value):
            raise InvalidInput(
                f"{value[:80]!r} is not a serial number", hint="it is 1 to 40 lower-case hexadecimal digits"
            )
        return super().__new__(cls, value)

    @classmethod
    def from_int(cls, number: int) -> Self:
        """The serial of a parsed certificate's number."""
        return cls(f"{number:x}")


class Role(StrEnum):
    """What a principal is: it never changes for a given id."""

    DEVICE = "device"
    OPERATOR = "operator"
    SERVICE = "service"
    BROKER = "broker"


class State(StrEnum):
    """Whether a principal may connect; only `active` may."""

    ACTIVE = "active"
    SUSPENDED = "suspended"
    REVOKED = "revoked"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class Principal:
    """Whoever holds a client certificate."""

    role: Role
    id: DeviceId

    def __str__(self) -> str:
        return f"{self.role.value}/{self.id}"


DISPATCH = Principal(Role.SERVICE, DeviceId("dispatch"))
"""The fleet's own MQTT client, inside the enrollment service."""


class Server(StrEnum):
    """The servers of a fleet, by the last segment of their SPIFFE id."""

    ENROLL = "enroll"
    BROKER = "broker"


class Signatory(StrEnum):
    """Who signs without being a server or a principal, by the last segment of the SPIFFE id."""

    DISPATCH = "dispatch-signing"


def principal_uri(domain: TrustDomain, principal: Principal) -> str:
    """The SPIFFE id in a client certificate: `spiffe://<trust-domain>/<role>/<id>`."""
    return f"spiffe://{domain}/{principal.role.value}/{principal.id}"


def server_uri(domain: TrustDomain, server: Server) -> str:
    """The SPIFFE id in a server certificate: `spiffe://<trust-domain>/server/<enroll|broker>`."""
    return f"spiffe://{domain}/server/{server.value}"


def signatory_uri(domain: TrustDomain, signatory: Signatory) -> str:
    """The SPIFFE id in the certificate of a signing key: `spiffe://<trust-domain>/server/dispatch-signing`."""
    return f"spiffe://{domain}/server/{signatory.value}"


def is_signatory(uris: Sequence[str], signatory: Signatory) -> bool:
    """Whether a certificate with these URIs alone names just this signatory; see `is_server`."""
    return len(uris) == 1 and _is_spiffe_id(uris[0], f"server/{signatory.value}")


def is_server(peer: Mapping[str, Any] | None, server: Server) -> bool:
    """Whether a verified peer certificate, as `ssl.SSLSocket.getpeercert()` gives it, names just this server.

    The trust domain is not compared: the root that verified the chain stands for it. A certificate with several SPIFFE
    ids is nobody's (X509-SVID, section 2).
    """
    uris = [value for kind, value in (peer or {}).get("subjectAltName", ()) if kind == "URI"]
    return len(uris) == 1 and _is_spiffe_id(uris[0], f"server/{server.value}")


def _is_spiffe_id(uri: str, wanted: str) -> bool:
    domain, _, path = uri.removeprefix("spiffe://").partition("/")
    return uri.startswith("spiffe://") and bool(_TRUST_DOMAIN.fullmatch(domain)) and path == wanted


def common_name(peer: Mapping[str, Any] | None) -> str | None:
    """The single common name of a peer certificate as `ssl.SSLSocket.getpeercert()` gives it; None unless just one."""
    names = [value for rdn in (peer or {}).get("subject", ()) for kind, value in rdn if kind == "commonName"]
    return names[0] if len(names) == 1 else None
