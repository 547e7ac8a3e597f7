"""The TLS settings of the enrollment service's listener."""

from __future__ import annotations

import ssl
from collections.abc import Iterable

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from enroll import keys
from fleet.errors import FleetError, NotFound
from fleet.layout import IdentityFiles


def server_context(files: IdentityFiles, client_cas: Iterable[x509.Certificate]) -> ssl.SSLContext:
    """TLS 1.2 or better; a client certificate is optional, and verified against `client_cas` if there is one.

    The issuing CA is among them because some clients (libest) send their leaf alone. No tickets: a session is never
    resumed past a revocation. Raises: FleetError.
    """
    keys.read_private(files.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_OPTIONAL
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0
    context.load_verify_locations(
        cadata="".join(certificate.public_bytes(Encoding.PEM).decode() for certificate in client_cas)
    )
    try:
        context.load_cert_chain(files.certificate, files.key)
    except FileNotFoundError as error:
        raise NotFound(f"{files.certificate} is missing", hint="restore it from a backup") from error
    except ssl.SSLError as error:
        raise FleetError(
            f"{files.certificate} and {files.key} do not fit: {error.reason}", hint="restore both from one backup"
        ) from error
    return context
