"""Whom the broker trusts and how it shows itself: parsed and verified first, then an immutable snapshot.

A certificate says who it is; that it may connect is the directory's to say.
"""

from __future__ import annotations

import ssl
import stat
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from fleet import pki
from fleet.clock import NO_CHECK_TIME, FlooredClock
from fleet.errors import FleetError, InvalidInput, NotFound
from fleet.identity import Server, is_server
from fleet.layout import IdentityFiles

_RESTORE_HINT: Final = "restore HOME/broker from a backup, or make a new home: enroll init"


@dataclass(frozen=True, slots=True)
class Authorities:
    """The certificates that a broker was given to trust."""

    roots: tuple[x509.Certificate, ...]
    issuers: tuple[x509.Certificate, ...]

    def pem(self) -> str:
        return "".join(_pem(certificate) for certificate in self.roots + self.issuers)

    def roots_pem(self) -> str:
        return "".join(_pem(certificate) for certificate in self.roots)


@dataclass(frozen=True, slots=True)
class Trust:
    """One verified state of trust: the context that servers use, and which issuers a client's certificate may have."""

    context: ssl.SSLContext
    issuers: frozenset[x509.Name]


@dataclass(frozen=True, slots=True)
class ClientTrust:
    """What the broker is a client with, towards one of the fleet's servers."""

    context: ssl.SSLContext
    name: str


def load_trust(authorities: Path, identity: IdentityFiles, now: datetime, clock: FlooredClock | None = None) -> Trust:
    """Read and verify what a listener needs. Dates are OpenSSL's to judge, unless `clock` knows that it goes wrong.

    Raises: FleetError that names the file and what is wrong with it.
    """
    found = load_authorities(authorities, now)
    leaf = _load_identity(identity, now)
    _check_is_broker(leaf, identity.certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    harden(context)
    context.verify_mode = ssl.CERT_REQUIRED
    # No resumption in any form: a resumed session would not show its certificate to today's directory.
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0
    context.load_verify_locations(cadata=found.pem())
    _load_chain(context, identity)
    if clock is not None and clock.is_floored:
        _leave_dates_to_us(context)
        context.sslobject_class = _judged_by(clock)
    return Trust(context, frozenset(issuer.subject for issuer in found.issuers))


def load_client_trust(
    authorities: Path,
    identity: IdentityFiles,
    server: Server,
    now: datetime,
    *,
    checks_host: bool = True,
    clock: FlooredClock | None = None,
) -> ClientTrust:
    """Read and verify what a connection to `server` needs; only roots count, and only that server's name passes.

    Without `checks_host` the SPIFFE id alone says that it is the right server: for a connection to ourselves.
    Raises: FleetError.
    """
    found = load_authorities(authorities, now)
    leaf = _load_identity(identity, now)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    harden(context)
    context.check_hostname = checks_host
    is_floored = clock is not None and clock.is_floored
    context.sslobject_class = _connection_to(server, clock if is_floored else None)
    if is_floored:
        _leave_dates_to_us(context)
    context.load_verify_locations(cadata=found.roots_pem())
    _load_chain(context, identity)
    return ClientTrust(context, pki.common_name_of(leaf.subject))


def harden(context: ssl.SSLContext) -> None:
    """TLS 1.2 at least, and certificates as RFC 5280 wants them."""
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_TRUSTED_FIRST


def _leave_dates_to_us(context: ssl.SSLContext) -> None:
    """Python's ssl has no name for the flag, and keeps it all the same."""
    context.verify_flags |= NO_CHECK_TIME


def _check_dates(connection: ssl.SSLObject, clock: FlooredClock) -> None:
    """Judge the whole chain that a handshake has verified. Raises: ssl.SSLCertVerificationError."""
    chain = connection._sslobj.get_verified_chain()  # type: ignore[attr-defined] # public only from Python 3.13 on
    if refusal := clock.refusal(each.get_info() for each in chain or ()):
        error = ssl.SSLCertVerificationError(refusal)
        error.verify_message = refusal  # as OpenSSL's own have one
        raise error


def _judged_by(clock: FlooredClock) -> type[ssl.SSLObject]:
    """A TLS connection whose handshake fails unless the peer's chain is good by that clock."""

    class Dated(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            _check_dates(self, clock)

    return Dated


def _connection_to(server: Server, clock: FlooredClock | None) -> type[ssl.SSLObject]:
    """A TLS connection whose handshake fails unless the peer is that server by its SPIFFE id (DESIGN section 11)."""

    class Checked(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            if clock is not None:
                _check_dates(self, clock)
            if not is_server(self.getpeercert(), server):
                raise ssl.SSLCertVerificationError(f"the peer is not this fleet's {server.value} server")

    return Checked


def load_authorities(path: Path, now: datetime) -> Authorities:
    """The roots and issuing CAs in a PEM file. Raises: FleetError."""
    certificates = _certificates(path)
    roots = tuple(c for c in certificates if c.subject == c.issuer and _is_signed_by(c, c))
    issuers = tuple(c for c in certificates if _issues_clients(c) and any(_is_signed_by(c, root) for root in roots))
    if not roots or not issuers:
        raise InvalidInput(f"{path} does not hold a root and a CA for clients that it signed", hint=_RESTORE_HINT)
    for certificate in (*roots, *issuers):
        _check_dates_of(certificate, path, now)
    return Authorities(roots, issuers)


def begins_at(files: IdentityFiles) -> datetime | None:
    """When an own certificate was made; None where there is none that can be read: who needs it says so."""
    try:
        return _certificates(files.certificate)[0].not_valid_before_utc
    except FleetError:
        return None


def _issues_clients(certificate: x509.Certificate) -> bool:
    constraints = pki.extension(certificate, x509.BasicConstraints)
    usage = pki.extension(certificate, x509.ExtendedKeyUsage)
    is_ca = constraints is not None and constraints.value.ca
    return is_ca and usage is not None and ExtendedKeyUsageOID.CLIENT_AUTH in usage.value


def _is_signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _load_identity(files: IdentityFiles, now: datetime) -> x509.Certificate:
    """The leaf, known to be valid now and to fit its key."""
    leaf = _certificates(files.certificate)[0]
    key_data = _read(files.key)
    if stat.S_IMODE(files.key.stat().st_mode) & 0o077:
        raise FleetError(f"{files.key} can be read by others", hint=f"chmod 600 {files.key}")
    try:
        key = load_pem_private_key(key_data, password=None)
    except (ValueError, TypeError) as error:
        raise InvalidInput(f"{files.key} is not a private key", hint=_RESTORE_HINT) from error
    if pki.spki(pki.check_public_key(key.public_key())) != pki.spki(pki.check_public_key(leaf.public_key())):
        raise InvalidInput(f"{files.key} is not the key of {files.certificate}", hint=_RESTORE_HINT)
    _check_dates_of(leaf, files.certificate, now)
    return leaf


def _check_is_broker(leaf: x509.Certificate, path: Path) -> None:
    names = pki.extension(leaf, x509.SubjectAlternativeName)
    uris = names.value.get_values_for_type(x509.UniformResourceIdentifier) if names is not None else []
    if not is_server({"subjectAltName": [("URI", uri) for uri in uris]}, Server.BROKER):
        raise InvalidInput(f"{path} is not a broker's certificate", hint=_RESTORE_HINT)


def _check_dates_of(certificate: x509.Certificate, path: Path, now: datetime) -> None:
    name = certificate.subject.rfc4514_string()
    if now > certificate.not_valid_after_utc:
        raise FleetError(
            f"{path}: {name} expired at {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC",
            hint="renew it, or set the clock: timedatectl",
        )
    if now < certificate.not_valid_before_utc:
        raise FleetError(
            f"{path}: {name} is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC",
            hint="set the clock: timedatectl",
        )


def _certificates(path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(_read(path))
    except ValueError as error:
        raise InvalidInput(f"{path} does not hold certificates in PEM", hint=_RESTORE_HINT) from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise NotFound(f"{path} is missing", hint=_RESTORE_HINT) from error
    except OSError as error:
        raise FleetError(f"cannot read {path}: {error.strerror}") from error


def _load_chain(context: ssl.SSLContext, files: IdentityFiles) -> None:
    try:
        context.load_cert_chain(files.certificate, files.key)
    except (OSError, ssl.SSLError) as error:
        raise FleetError(f"cannot use {files.certificate} with its key: {error}", hint=_RESTORE_HINT) from error


def _pem(certificate: x509.Certificate) -> str:
    return ssl.DER_cert_to_PEM_cert(certificate.public_bytes(Encoding.DER))
