"""TLS to the servers of our fleet and to nobody else; and what a failed connection means.

A context trusts the roots it is given and nothing that the system trusts. When its handshake is over the peer has been
verified up to such a root, for its host name, for server authentication, *and* for the SPIFFE name of just the server
that was meant: a broker's certificate must not pass for the enrollment service (DESIGN section 11). This is part of the
handshake itself, so that no library on top can send a byte to an impostor.

Dates are OpenSSL's to judge while the system's clock is believed. OpenSSL knows no other, and Python gives no way to
tell it one: where the clock is known to be wrong it leaves dates alone, and those of every certificate of the chain
that it verified are judged here, by what is known of the time (`clock`), before the handshake counts as done.
"""

from __future__ import annotations

import errno
import select
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeVar

from device_agent.clock import Clock, Told
from device_agent.failures import Cause, Failure
from fleet.address import Address
from fleet.clock import NO_CHECK_TIME, Validity, validity_of
from fleet.errors import InvalidInput
from fleet.identity import Server, is_server
from fleet.layout import IdentityFiles

HANDSHAKE_SECONDS: Final = 20.0
_Outcome = TypeVar("_Outcome")


class NotThisServer(ssl.SSLError):
    """The peer is of our fleet, but is not the server that was meant."""


class OutOfDate(ssl.SSLError):
    """The peer would be right, but for the dates of its chain, by the time that is known."""

    def __init__(self, validity: Validity, now: datetime) -> None:
        self.validity = validity
        self.has_ended = validity.has_ended(now)
        when = f"ended at {validity.not_after:%Y-%m-%d %H:%M}" if self.has_ended else ""
        when = when or f"begins at {validity.not_before:%Y-%m-%d %H:%M}"
        super().__init__(f"its chain {when} UTC, and it is {now:%Y-%m-%d %H:%M} UTC")


class BoundedSocket(ssl.SSLSocket):
    """A TLS connection whose handshake has one deadline for all of it.

    A peer that sends one byte now and then never trips a time-out per operation.
    """

    def do_handshake(self, block: bool = False) -> None:
        """Complete the handshake. Raises: ssl.SSLError, TimeoutError."""
        context = self.context
        assert isinstance(context, BoundedContext)
        monotonic = context.clock.monotonic
        deadline = monotonic() + HANDSHAKE_SECONDS
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
                left = deadline - monotonic()
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
        self._check_dates(context)

    def validity(self) -> Validity:
        """When the chain that OpenSSL has verified is valid, up to the root. Raises: InvalidInput."""
        chain = self._sslobj.get_verified_chain()  # type: ignore[attr-defined] # public only from Python 3.13 on
        return validity_of(each.get_info() for each in chain or ())

    def _check_dates(self, context: FleetContext) -> None:
        """Raises: OutOfDate; ssl.SSLError where dates cannot be read, and so are not known to be good."""
        if context.is_dateless:
            return
        try:
            validity = self.validity()
        except InvalidInput as error:
            raise ssl.SSLError(error.message) from error
        if context.verify_flags & NO_CHECK_TIME:
            now = context.clock.reading().utc
            if not validity.covers(now):
                raise OutOfDate(validity, now)
        context.clock.verified(validity)

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

    clock: Clock
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
    """Connections to one kind of server of our fleet. Who judges dates is decided anew for each.

    Nobody does where it `is_dateless`: such a connection is good for asking what time it is, and for nothing else.
    """

    server: Server
    roots_pem: str
    is_dateless: bool = False
    sslsocket_class = FleetSocket

    def wrap_socket(self, *args: Any, **options: Any) -> ssl.SSLSocket:
        """As ssl.SSLContext."""
        if self.is_dateless or self.clock.reading().checks_dates_itself:
            self.verify_flags |= NO_CHECK_TIME
        else:
            self.verify_flags &= ~NO_CHECK_TIME
        return super().wrap_socket(*args, **options)

    def in_time(self, attempt: Callable[[], _Outcome]) -> _Outcome:
        """What `attempt` to connect comes to; if it fails on time alone, a second one once the time is known better.

        Raises: what `attempt` raises.
        """
        if self.is_dateless:
            return attempt()
        told = self.clock.improve(self.roots_pem)
        try:
            return attempt()
        except ssl.SSLError as error:
            if not self._is_time_known_better(error, told):
                raise
        return attempt()

    def _is_time_known_better(self, error: ssl.SSLError, told: Told | None) -> bool:
        """Whether it is after that failure, and what was told before it.

        What has ended by a lower bound of the time has ended for sure. What has not begun by it may have: the service
        knows; where it is away, that our CA has dated a broker's chain has to do.
        """
        if failure_of(error, "").cause not in (Cause.NOT_YET_VALID, Cause.PEER_EXPIRED):
            return False
        if isinstance(error, OutOfDate) and error.has_ended and self.clock.reading().is_lower_bound:
            return False
        told = told or self.clock.ask(self.roots_pem)
        if told is Told.NOTHING and isinstance(error, OutOfDate) and self.server is Server.BROKER:
            return self.clock.infer(error.validity)
        return told is Told.TIME


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


def context_for(server: Server, roots_pem: str, clock: Clock, identity: IdentityFiles | None = None) -> FleetContext:
    """A context that trusts `roots_pem` alone and shows `identity`, if there is one.

    It is made anew for every attempt: a key pair that does not load spoils nothing but this one.
    Raises: OSError (ssl.SSLError) if the roots or the key pair cannot be used.
    """
    context = FleetContext(ssl.PROTOCOL_TLS_CLIENT)
    context.server, context.clock, context.roots_pem = server, clock, roots_pem
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    context.load_verify_locations(cadata=roots_pem)
    if identity is not None:
        context.load_cert_chain(identity.certificate, identity.key, password=_no_password)
    return context


def connect(context: FleetContext, address: Address, seconds: float) -> ssl.SSLSocket:
    """A connection that exists only with the right server. Raises: OSError."""
    plain = socket.create_connection((address.host, address.port), seconds)
    try:
        return context.wrap_socket(plain, server_hostname=address.host)
    finally:
        plain.close()  # its descriptor is the other's by now, unless there is no other


def dateless_context(roots_pem: str, clock: Clock) -> FleetContext:
    """To the enrollment service whenever its certificates are valid, with nothing of ours: to ask what time it is."""
    context = context_for(Server.ENROLL, roots_pem, clock)
    context.is_dateless = True
    return context


def unverified_context(clock: Clock) -> BoundedContext:
    """A context that believes anybody: good for what is checked by other means (the pinned root), for nothing else."""
    context = BoundedContext(ssl.PROTOCOL_TLS_CLIENT)
    context.clock = clock
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _no_password() -> str:
    raise ssl.SSLError("the private key is encrypted")


@dataclass(frozen=True, slots=True)
class _Reading:
    """What an exception means."""

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
    if isinstance(error, OutOfDate):
        return _Reading(Cause.PEER_EXPIRED if error.has_ended else Cause.NOT_YET_VALID, str(error.args[0]))
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
