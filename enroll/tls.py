"""The TLS settings of the enrollment service's listener."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Iterable
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


class ServerTls:
    """What the listener is like for whoever connects next: `context`, which trusts the manufacturers of the registry.

    One that is added there is taken in; where one was removed another context is made, for none can forget a CA. Whom
    a connection that is open already belongs to, and whether anybody trusts its manufacturer, is looked up for each
    request.
    """

    def __init__(self, make: Callable[[], ssl.SSLContext], registry: Registry) -> None:
        self.context = make()
        self._make = make
        self._registry = registry
        self._loaded: set[bytes] = set()

    def refresh(self) -> None:
        """Trust whom the registry does. Raises: FleetError, RegistryUnavailable too."""
        with self._registry.read() as transaction:
            found = {ca.fingerprint: ca.der for ca in manufacturers.authorities(transaction)}
        if found.keys() == self._loaded:
            return
        is_enough = self._loaded < found.keys()
        context, known = (self.context, self._loaded) if is_enough else (self._make(), set[bytes]())
        for fingerprint, der in found.items():
            if fingerprint not in known:
                # The manufacturer's issuing CA is enough: nobody asks an admin for the root above it.
                context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
                context.load_verify_locations(cadata=der)
        self.context, self._loaded = context, set(found)

    async def follow(self, commits: Commits, executor: Executor) -> None:
        """Refresh after every commit, until the service stops."""
        loop = asyncio.get_running_loop()
        while not commits.is_over:
            changed = commits.next
            try:
                await loop.run_in_executor(executor, self.refresh)
            except RegistryUnavailable as error:
                _log.warning(event("manufacturers.not_read", reason=error))
            except FleetError as error:  # our own certificate is replaced in this moment
                _log.warning(event("manufacturers.not_taken", reason=error))
                await asyncio.sleep(_BETWEEN_SECONDS)
                continue
            await changed.wait()
            await asyncio.sleep(_BETWEEN_SECONDS)
