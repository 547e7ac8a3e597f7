"""TLS to the servers of our fleet and to nobody else; and what a failed connection means.

A context trusts the roots it is given and nothing that the system trusts. When its handshake is over the peer has been
verified up to such a root, for its host name, for server authentication, *and* for the SPIFFE name of just the server
that was meant: a broker's certificate must not pass for the enrollment service (DESIGN section 11). This is part of the
handshake itself, so that no library on top can send a byte to an impostor.
"""

from __future__ import annotations

import errno
import select
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from device_agent.failures import Cause, Failure
from fleet.identity import Server, is_server
from fleet.layout import IdentityFiles

HANDSHAKE_SECONDS: Final = 20.0


class NotThisServer(ssl.SSLError):
    """The peer is of our fleet, but is not the server that was meant."""


class BoundedSocket(ssl.SSLSocket):
    """A TLS connection whose handshake has one deadline for all of it.

    A peer that sends one byte now and then never trips a time-out per operation.
    """

    def do_handshake(self, block: bool = False) -> None:
        """Complete the handshake. Raises: ssl.SSLError, TimeoutError."""
        context = self.context
        assert isinstance(context, BoundedContext)
        deadline = context.monotonic() + HANDSHAKE_SECONDS
        timeout = self.gettimeout()
        self.setblocking(False)
        try:
            while True:
                try:
                    return super().do_handshake()
                except ssl.SSLWantReadError:
                    wanted = select.POLLIN
                except ssl.SSLWantWriteError:
                    wanted = select.POLLOUT
                left = deadline - context.monotonic()
                if left <= 0 or not self._wait_for(wanted, left):
                    raise TimeoutError("the TLS handshake is not over in time")
        finally:
            self.settimeout(timeout)

    def _wait_for(self, wanted: int, seconds: float) -> bool:
        poll = select.poll()
        poll.register(self, wanted)
        return bool(poll.poll(seconds * 1000))


class FleetSocket(BoundedSocket):
    """A TLS connection that exists only with the right server.

    `last_error` keeps why receiving failed: TLS 1.3 tells a refused client after the handshake, and paho drops it.
    """

    last_error: OSError | None = None

    def do_handshake(self, block: bool = False) -> None:
        """Complete the handshake, or do not. Raises: ssl.SSLError, NotThisServer, TimeoutError."""
        context = self.context
        assert isinstance(context, FleetContext)
        super().do_handshake(block)
        peer: Mapping[str, Any] | None = self.getpeercert()
        if not is_server(peer, context.server):
            names = ", ".join(value for kind, value in (peer or {}).get("subjectAltName", ()) if kind == "URI")
            raise NotThisServer(f"it is {names or 'nameless'}, not the fleet's {context.server.value} server")

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """As ssl.SSLSocket, and remember the failure."""
        try:
            return super().recv(buflen, flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError):
            raise
        except OSError as error:
            self.last_error = error
            raise

    def send(self, data: Any, flags: int = 0) -> int:
        """As ssl.SSLSocket; who cannot be written to may have left a word behind that says why."""
        try:
            return super().send(data, flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError):
            raise
        except OSError as error:
            self.last_error = self._parting_alert() or error
            raise self.last_error from error

    def _parting_alert(self) -> ssl.SSLError | None:
        try:
            super().recv(1)
        except ssl.SSLError as error:
            return error if "ALERT" in (error.reason or "") else None
        except OSError:
            return None
        return None


class BoundedContext(ssl.SSLContext):
    """Connections whose handshake ends in time."""

    monotonic: Callable[[], float]
    sslsocket_class = BoundedSocket

    def wrap_socket(
        self,
        sock: socket.socket,
        server_side: bool = False,
        do_handshake_on_connect: bool = True,
        suppress_ragged_eofs: bool = True,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLSocket:
        """As ssl.SSLContext, with a lean name."""
        name = lean_name(server_hostname) if isinstance(server_hostname, str) else server_hostname
        return super().wrap_socket(sock, server_side, do_handshake_on_connect, suppress_ragged_eofs, name, session)


class FleetContext(BoundedContext):
    """Connections to one kind of server of our fleet."""

    server: Server
    sslsocket_class = FleetSocket


def lean_name(host: str) -> Any:
    """A host name for socket and ssl: bytes if it can be, which typeshed does not know that socket takes.

    For a text both load Python's tables of Unicode (0.4 MB).
    """
    return host.encode() if host.isascii() else host


def warm_up() -> None:
    """Let OpenSSL make what it keeps for ever, on the thread that calls: it fits into the holes that imports left.

    On a thread of its own a connection would make it, and keep a heap of its own for it (0.2 MB).
    """
    ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def context_for(
    server: Server, roots_pem: str, monotonic: Callable[[], float], identity: IdentityFiles | None = None
) -> FleetContext:
    """A context that trusts `roots_pem` alone and shows `identity`, if there is one.

    It is made anew for every attempt: a key pair that does not load spoils nothing but this one.
    Raises: OSError (ssl.SSLError) if the roots or the key pair cannot be used.
    """
    context = FleetContext(ssl.PROTOCOL_TLS_CLIENT)
    context.server, context.monotonic = server, monotonic
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    context.load_verify_locations(cadata=roots_pem)
    if identity is not None:
        context.load_cert_chain(identity.certificate, identity.key, password=_no_password)
    return context


def unverified_context(monotonic: Callable[[], float]) -> BoundedContext:
    """A context that believes anybody: good for what is checked by other means (the pinned root), for nothing else."""
    context = BoundedContext(ssl.PROTOCOL_TLS_CLIENT)
    context.monotonic = monotonic
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _no_password() -> str:
    raise ssl.SSLError("the private key is encrypted")


@dataclass(frozen=True, slots=True)
class _Reading:
    cause: Cause
    detail: str


# X509_V_ERR_* of OpenSSL (x509_vfy.h).
_VERIFY_CAUSES: Final = {
    9: Cause.NOT_YET_VALID,
    10: Cause.PEER_EXPIRED,
    26: Cause.IMPOSTOR,  # not for server authentication
    62: Cause.WRONG_HOST,
    64: Cause.WRONG_HOST,  # an IP address
}
_UNREACHABLE: Final = (errno.ECONNREFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN)


def failure_of(error: BaseException, peer: str) -> Failure:
    """What an exception of a connection attempt means."""
    reading = _read_ssl(error) if isinstance(error, ssl.SSLError) else _read_socket(error)
    return Failure(reading.cause, peer, reading.detail)


def _read_ssl(error: ssl.SSLError) -> _Reading:
    if isinstance(error, NotThisServer):
        return _Reading(Cause.IMPOSTOR, str(error.args[0]))
    if isinstance(error, ssl.SSLCertVerificationError):
        return _Reading(_VERIFY_CAUSES.get(error.verify_code, Cause.NOT_OUR_CA), error.verify_message)
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return _Reading(Cause.CLOSED, "the connection ended during TLS")
    reason = (error.reason or str(error)).lower().replace("_", " ")
    if "alert" in reason and "protocol version" not in reason and "internal error" not in reason:
        return _Reading(Cause.REFUSED, reason)
    if "wrong version number" in reason or "http request" in reason or "record layer" in reason:
        return _Reading(Cause.NOT_TLS, reason)
    return _Reading(Cause.BAD_ANSWER, reason)


def _read_socket(error: BaseException) -> _Reading:
    if isinstance(error, socket.gaierror):
        return _Reading(Cause.NO_NAME, error.strerror or str(error))
    if isinstance(error, TimeoutError):
        return _Reading(Cause.TIMED_OUT, str(error))
    if isinstance(error, ConnectionResetError | BrokenPipeError | ConnectionAbortedError):
        return _Reading(Cause.CLOSED, error.strerror or str(error))
    if isinstance(error, OSError):
        cause = Cause.UNREACHABLE if error.errno in _UNREACHABLE else Cause.LOCAL
        return _Reading(cause, error.strerror or str(error))
    return _Reading(Cause.BAD_ANSWER, f"{type(error).__name__}: {error}")


def describe_session(connection: ssl.SSLSocket) -> dict[str, Any]:
    """What was agreed, for the log."""
    cipher = connection.cipher()
    return {"tls": connection.version(), "cipher": cipher[0] if cipher else ""}
