"""The TLS settings of the enrollment service's listener."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Iterable
from concurrent.futures import Executor
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from enroll import keys
from enroll.commits import Commits
from enroll.registry import Registry, RegistryUnavailable, manufacturers
from fleet.errors import FleetError, NotFound
from fleet.layout import IdentityFiles
from fleet.logs import event

_log = logging.getLogger(__name__)

_BETWEEN_SECONDS: Final = 0.5  # nobody waits for a manufacturer, and devices that enrol commit all the time


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


class ManufacturerTrust:
    """Lets a listener's TLS accept the certificates of manufacturers, as they are added to the registry.

    What is removed there goes on being accepted by TLS until the next start, and by nothing else: who such a
    certificate is, and whether anybody trusts its manufacturer, is looked up for each request.
    """

    def __init__(self, context: ssl.SSLContext, registry: Registry) -> None:
        self._context = context
        self._registry = registry
        self._loaded: set[bytes] = set()

    def refresh(self) -> None:
        """Accept what was added since. Raises: RegistryUnavailable."""
        with self._registry.read() as transaction:
            found = manufacturers.authorities(transaction)
        for ca in found:
            if ca.fingerprint not in self._loaded:
                # The manufacturer's issuing CA is enough: nobody asks an admin for the root above it.
                self._context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
                self._context.load_verify_locations(cadata=ca.der)
                self._loaded.add(ca.fingerprint)

    async def follow(self, commits: Commits, executor: Executor) -> None:
        """Refresh after every commit, until the service stops."""
        loop = asyncio.get_running_loop()
        while not commits.is_over:
            changed = commits.next
            try:
                await loop.run_in_executor(executor, self.refresh)
            except RegistryUnavailable as error:
                _log.warning(event("manufacturers.not_read", reason=error))
            await changed.wait()
            await asyncio.sleep(_BETWEEN_SECONDS)
