"""EST and the fleet's JSON answers as a function from request to response; the only error-to-status table.

Statuses are decided in this order (DESIGN section 3): 405, 413, 415, 401 or 429, 400, 403.

What is limited is guessing: only a token that is wrong counts, for its address and for the token that it names. A
secret has 128 bits, so a limit does not make guessing harder; it bounds what it costs (one look-up, no transaction) and
what it writes into the log. Hence nobody is refused for what others did: a token that is right is let through from an
address, or under a name, that others have used up, and requests without any credential, which cost nothing, do not
count. A site behind one NAT cannot be locked out by one of its devices.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509

from enroll.csr_attributes import csr_attributes
from enroll.issuer import IssuerEnding
from enroll.nonces import Nonces, TooManySpent
from enroll.outcomes import answer_of, asker_of, base64_answer
from enroll.pacing import Pacer
from enroll.rate_limit import RateLimit, Sparsely, network_of
from enroll.registry import Begun, Registry, RegistryUnavailable, feed
from enroll.registry import tokens as token_rows
from enroll.service import (
    Enrolment,
    Issued,
    NotAdmitted,
    NotAllowed,
    Peer,
    ProofRefused,
    Recovery,
    RequestDenied,
    TooManyWaiting,
    check_proof,
    hardware_of,
)
from enroll.service.admission import check_live, holder
from enroll.service.lineage import Forked, check_may_renew, check_not_ended, is_frozen
from enroll.service.recoverable import NeverConfirmed, NotExpired
from enroll.service.succession import confirm
from enroll.service.waiting import RETRY_SECONDS
from enroll.tokens import TokenRefused, check_secret, check_unspent
from enroll.upload_store import NoSpace
from enroll.uploads import TooMuch, TooOften, WrongDigest, WrongOffset
from fleet import directory, est, recovery, uploads
from fleet.config import DEFAULT_RECOVERY_GRACE
from fleet.errors import Denied, FleetError, InvalidInput, NotFound, printable
from fleet.est import Csr, EstRequest, EstResponse, InvalidCsr
from fleet.identity import InvalidDeviceId, Role, Serial
from fleet.join import InvalidToken, Token, parse_token
from fleet.logs import event
from fleet.messages import MAX_TELEMETRY_BYTES, format_time
from fleet.pki import WeakKey, serial_of
from fleet.signers import Chain, to_json

_log = logging.getLogger(__name__)

REFUSALS_PER_ADDRESS: Final = 30
REFUSALS_PER_TOKEN: Final = 10
RECOVERIES_PER_CERTIFICATE: Final = 30
_BASIC: Final = 'Basic realm="enroll", charset="UTF-8"'
_JSON: Final = "application/json"
_TEXT: Final = "text/plain; charset=utf-8"
_MAX_AUTHORIZATION_CHARS: Final = 1024


class _Unauthenticated(FleetError):
    """Nothing that authenticates came with the request."""


class _NoCertificate(FleetError):
    """The connection has no client certificate."""


class _TooManyRefusals(FleetError):
    """The address or the token was refused too often of late."""

    def __init__(self, seconds: float) -> None:
        super().__init__("too many refused attempts", hint=f"try again in {math.ceil(seconds)} s")
        self.seconds = seconds


class _TooLarge(FleetError):
    """The body is over the limit."""


class LengthRequired(FleetError):
    """It is not said how long the body is."""


class _WrongType(FleetError):
    """The body is of another media type."""


# The first type that fits decides.
_STATUSES: Final[tuple[tuple[type[FleetError], int], ...]] = (
    (LengthRequired, 411),
    (_TooLarge, 413),
    (TooMuch, 413),
    (_WrongType, 415),
    (_TooManyRefusals, 429),
    (TooOften, 429),
    (_Unauthenticated, 401),
    (_NoCertificate, 401),
    (InvalidToken, 401),
    (TokenRefused, 401),
    (ProofRefused, 401),
    (InvalidCsr, 400),
    (InvalidDeviceId, 400),
    (WeakKey, 400),
    (InvalidInput, 400),
    (NotAllowed, 403),
    (Denied, 403),
    (NotFound, 404),
    (WrongOffset, 409),
    (WrongDigest, 422),
    (NoSpace, 507),
    (RegistryUnavailable, 503),
    (IssuerEnding, 503),
    (TooManyWaiting, 503),
    (FleetError, 500),
)


def refusal(error: FleetError) -> EstResponse:
    """The answer that tells `error`: its message and hint as text."""
    status = next(status for kind, status in _STATUSES if isinstance(error, kind))
    text = printable(error.message) + (f"\nhint: {printable(error.hint)}" if error.hint else "")
    headers = {"Content-Type": _TEXT}
    match error:
        case _NoCertificate():
            headers["WWW-Authenticate"] = "Certificate"
        case ProofRefused():
            headers["WWW-Authenticate"] = recovery.SCHEME
        case _TooManyRefusals() | TooOften() | TooManyWaiting():
            headers["Retry-After"] = str(math.ceil(error.seconds))
        case NeverConfirmed():
            headers[est.PROBLEM_HEADER] = est.NEVER_CONFIRMED
        case NotExpired():
            headers[est.PROBLEM_HEADER] = est.NOT_EXPIRED
        case RequestDenied():
            headers[est.REQUEST_HEADER] = "denied"
        case Forked():
            headers[est.PROBLEM_HEADER] = est.IDENTITY_USED_TWICE
        case _ if status == 401:
            headers["WWW-Authenticate"] = _BASIC
        case _ if status == 503:
            headers["Retry-After"] = str(math.ceil(RETRY_SECONDS))
    return EstResponse(status, text.encode() + b"\n", headers)


def _json(value: object) -> EstResponse:
    return EstResponse(200, json.dumps(value).encode() + b"\n", {"Content-Type": _JSON})


@dataclass(slots=True)
class EstApp:
    """Answers requests. Whatever of it handles some is called from one thread at a time.

    `clock` is the time of day in UTC, `monotonic` seconds that never jump, `brokers` the addresses to connect to.
    `is_pairing` lets devices ask without a token (DESIGN section 3); `recovery_grace` is how long after its end a
    certificate recovers by itself. `signers`: whose signature devices are to believe.
    """

    enrolment: Enrolment
    certificates: tuple[x509.Certificate, ...]
    brokers: Callable[[], tuple[str, ...]]
    clock: Callable[[], datetime]
    monotonic: Callable[[], float]
    is_pairing: bool = False
    recovery_grace: timedelta = DEFAULT_RECOVERY_GRACE
    signers: Callable[[], tuple[Chain, ...]] = tuple
    _by_address: RateLimit = field(default_factory=lambda: RateLimit(REFUSALS_PER_ADDRESS))
    _by_token: RateLimit = field(default_factory=lambda: RateLimit(REFUSALS_PER_TOKEN))
    _by_certificate: RateLimit = field(default_factory=lambda: RateLimit(RECOVERIES_PER_CERTIFICATE))
    _told: Sparsely = field(default_factory=Sparsely)
    _pacer: Pacer = field(default_factory=Pacer)
    _nonces: Nonces = field(init=False)
    _fixed: Mapping[str, EstResponse] = field(init=False)

    def __post_init__(self) -> None:
        token_bytes = self.enrolment.token_bytes
        self._nonces = Nonces(token_bytes(32), token_bytes, recovery.NONCE_SECONDS)
        ca_certificates = est.encode_certificates(self.certificates)
        self._fixed = {
            est.CACERTS: base64_answer(ca_certificates, est.PKCS7),
            est.CSRATTRS: base64_answer(est.encode_body(csr_attributes()), est.CSRATTRS_TYPE),
            est.HEALTH: _json({"status": "ok"}),
        }

    def begin_stream(self, request: EstRequest) -> Serial | EstResponse:
        """The serial of the broker that may read the directory's stream, or why it may not."""
        try:
            return self.admitted(request, Role.BROKER).certificate.serial
        except FleetError as error:
            return self.refused(request, error)

    def refused(self, request: EstRequest, error: FleetError) -> EstResponse:
        """The answer to a request that is decided upon elsewhere; logged."""
        response = self._refused(request, error)
        self._log_refusal(request, response)
        return response

    def fixed(self, request: EstRequest) -> EstResponse | None:
        """The answer that needs neither registry nor disk, if this is one of those requests; never blocks."""
        return self._fixed.get(request.path) if request.method == "GET" else None

    def handle_all(self, requests: Sequence[EstRequest]) -> list[EstResponse]:
        """The answers to requests that came at about the same time; what they change is one commit. May block.

        A disk is asked to keep something once then, not once for each: a gateway's SD card does that 30 times a second.
        """
        if len(requests) == 1:
            return [self.handle(requests[0])]
        try:
            with self.registry.group():
                return [self.handle(request) for request in requests]
        except RegistryUnavailable as error:
            return self.undone(requests, error)

    def begin_all(self, requests: Sequence[EstRequest]) -> Begun[list[EstResponse]] | None:
        """As `handle_all`, but for the commit; None where it would have to wait for somebody else who writes.

        Raises: RegistryUnavailable.
        """
        return self.registry.begin_group(lambda: [self.handle(request) for request in requests])

    def undone(self, requests: Sequence[EstRequest], error: RegistryUnavailable) -> list[EstResponse]:
        """The answers to what came to nothing with its commit, whatever `handle` answered and logged."""
        _log.warning(event("group.undone", requests=len(requests), reason=error))
        return [refusal(error) for _ in requests]

    def handle(self, request: EstRequest) -> EstResponse:
        """The answer to any request but the directory's stream."""
        method, answer = _ROUTES.get(request.path, (request.method, EstApp._nothing))
        if request.method != method:
            response = EstResponse(405, b"", {"Allow": method})
        else:
            response = self._answered(request, answer)
        if response.status >= 400:
            self._log_refusal(request, response)
        return response

    def _answered(self, request: EstRequest, answer: Callable[[EstApp, EstRequest], EstResponse]) -> EstResponse:
        try:
            return answer(self, request)
        except FleetError as error:
            return self._refused(request, error)

    def _refused(self, request: EstRequest, error: FleetError) -> EstResponse:
        if isinstance(error, InvalidToken | TokenRefused | ProofRefused):
            network, now = network_of(request.address), self.monotonic()
            seconds = self._by_address.retry_after(network, now)
            self._by_address.count(network, now)
            return refusal(_TooManyRefusals(seconds) if seconds else error)
        if isinstance(error, Forked) and error.is_new:
            _log.error(event("identity.used_twice", device=error.device, serial=error.serial, address=request.address))
        return refusal(error)

    def _log_refusal(self, request: EstRequest, response: EstResponse) -> None:
        """Without what the stranger chose: a path may be a token, pasted into the wrong place."""
        network = network_of(request.address)
        if not (count := self._told.count(f"{response.status} {network}", self.monotonic())):
            return
        path = request.path if request.path in _ROUTES else "unknown"
        path = uploads.PATH if uploads.id_in(request.path) else path
        reason = response.body.partition(b"\n")[0].decode()
        fields = {"path": path, "status": response.status, "address": request.address}
        _log.info(event("request.refused", **fields, reason=reason, count=count))

    def _fixed_answer(self, request: EstRequest) -> EstResponse:
        return self._fixed[request.path]

    def _simple_enroll(self, request: EstRequest) -> EstResponse:
        _check_body(request)
        if request.peer is not None and "authorization" not in request.headers:
            return self._claim(request, request.peer)
        user, password = _basic_credentials(request)
        if self.is_pairing and user == est.PAIRING_USER and not password:
            return answer_of(self.enrolment.pair(_csr_in(request), self.clock(), asker_of(request)))
        token = parse_token(password)
        self._check_guesses(network_of(request.address), token)
        try:
            outcome = self.enrolment.enrol(token, lambda: _csr_in(request), self.clock(), asker_of(request))
        except TokenRefused:
            self._by_token.count(token.id, self.monotonic())
            raise
        return answer_of(outcome)

    def _claim(self, request: EstRequest, peer: bytes) -> EstResponse:
        """A manufacturer's certificate is good for this one request, and the fleet's own for none of them."""
        hardware = hardware_of(self.registry, peer, self.clock())
        if hardware is None:
            raise _Unauthenticated(
                "this needs a token, or the certificate of a manufacturer that the fleet trusts",
                hint="enroll token create, or enroll manufacturer list",
            )
        return answer_of(self.enrolment.claim(hardware, _csr_in(request), self.clock()))

    def _check_guesses(self, network: str, token: Token) -> None:
        """Raises: _TooManyRefusals where too much was guessed of late, unless this is no guess."""
        now = self.monotonic()
        of_token = self._by_token.retry_after(token.id, now)
        seconds = max(of_token, self._by_address.retry_after(network, now))
        if seconds and not self._is_right(token, must_be_unspent=of_token > 0):
            raise _TooManyRefusals(seconds)

    def _is_right(self, token: Token, *, must_be_unspent: bool) -> bool:
        """Whether the token is one of ours, by a look-up; a spent one can be tried as long as it was not too often."""
        with self.registry.read() as transaction:
            found = token_rows.find_token(transaction, token.id)
        try:
            record = check_secret(found, token)
            if must_be_unspent:
                check_unspent(record, self.clock())
        except TokenRefused:
            return False
        return True

    def _simple_reenroll(self, request: EstRequest) -> EstResponse:
        _check_body(request)
        serial = self._holder(request).certificate.serial
        return answer_of(self.enrolment.reenrol(serial, _csr_in(request), self.clock(), asker_of(request)))

    def admitted(self, request: EstRequest, role: Role | None = None) -> Peer:
        """Who asks, decided anew for every request. Raises: _NoCertificate, NotAdmitted, Denied."""
        peer = check_live(self._holder(request))
        if role is not None and peer.record.principal.role is not role:
            raise Denied(f"{peer.record.principal} may not read this", hint=f"it is for the role {role}")
        return peer

    def _holder(self, request: EstRequest) -> Peer:
        """Who asks, maybe with a certificate that a later one has ended. Raises: _NoCertificate, NotAdmitted."""
        if request.peer is None:
            raise _NoCertificate("this needs a client certificate", hint="connect with the fleet's certificate and key")
        with self.registry.read() as transaction:
            peer = holder(transaction, _serial_in(request.peer))
        if peer.certificate.der != request.peer:  # TLS verified it, but maybe up to a manufacturer's CA
            raise NotAdmitted("the client certificate is not one that the fleet gave", hint="use it to enrol only")
        return peer

    def _nonce(self, request: EstRequest) -> EstResponse:
        """A number that whoever wants to recover signs; asking for it costs nobody anything."""
        answer = recovery.encode_nonce(self._nonces.draw(self.monotonic()))
        return EstResponse(200, answer, {"Content-Type": recovery.MEDIA_TYPE, "Cache-Control": "no-store"})

    def _recover(self, request: EstRequest) -> EstResponse:
        """The successor of an expired certificate, for the holder of its key."""
        _check_body(request, recovery.MEDIA_TYPE)
        claim, now = recovery.decode_claim(request.body), self.monotonic()
        if not self._nonces.is_good(claim.nonce, now):
            raise ProofRefused("the nonce is over, was used, or is not ours", hint=f"get another: {recovery.NONCE}")
        check_proof(self.registry, claim)
        if seconds := self._by_certificate.retry_after(claim.serial, now):
            raise _TooManyRefusals(seconds)
        self._by_certificate.count(claim.serial, now)
        try:
            self._nonces.spend(claim.nonce, now)
        except TooManySpent:
            raise TooManyWaiting("too many devices recover at once", seconds=self._nonces.seconds) from None
        csr = est.parse_csr(claim.csr)
        est.check_connection(csr, request.tls_unique)
        recovering = Recovery(self.enrolment, self.recovery_grace)
        outcome = recovering.recover(claim.serial, csr, self.clock(), asker_of(request))
        if isinstance(outcome, Issued) and not outcome.is_repeated:
            _log.info(event("device.recovered", device=outcome.principal.id, by=claim.serial, address=request.address))
        return answer_of(outcome)

    @property
    def registry(self) -> Registry:
        return self.enrolment.registry

    def _config(self, request: EstRequest) -> EstResponse:
        peer = self._holder(request)
        check_not_ended(self.registry, peer, asker_of(request), self.clock())
        fields: dict[str, object] = {
            "v": 1,
            "brokers": list(self.brokers()),
            "groups": list(check_live(peer).record.groups),
            "limits": {"max_telemetry_bytes": MAX_TELEMETRY_BYTES},
        }
        if signers := self.signers():
            fields["signers"] = to_json(signers)
        with self.registry.read() as transaction:
            if is_frozen(transaction, peer):
                fields["problem"] = est.IDENTITY_USED_TWICE
        return _json(fields)

    def _renewal_info(self, request: EstRequest) -> EstResponse:
        """How long the peer is to wait before it renews, because others do."""
        peer = self._holder(request)
        check_may_renew(self.registry, peer, asker_of(request), self.clock())
        wait_seconds = self._pacer.wait_seconds(peer.certificate.serial, self.monotonic())
        return _json({"v": 1, "wait_seconds": round(wait_seconds, 3)})

    def _confirm(self, request: EstRequest) -> EstResponse:
        """The peer uses the certificate that it came with; its predecessor ends soon."""
        done = confirm(self.registry, self._holder(request).certificate.serial, self.clock(), asker_of(request))
        if not done.is_repeated:
            who = {done.principal.role.value: done.principal.id, "serial": done.serial}
            _log.info(event("certificate.confirmed", **who))
        ends_at = None if done.ends_at is None else format_time(done.ends_at)
        return _json({"v": 1, "serial": str(done.serial), "predecessor_ends_at": ends_at})

    def _directory_entry(self, request: EstRequest) -> EstResponse:
        """One serial, read through; a request without one wants the stream, which is not answered here."""
        self.admitted(request, Role.BROKER)
        serial = Serial(request.query.get("serial", ""))
        with self.registry.read() as transaction:
            entry = feed.entry_of_serial(transaction, serial)
        if entry is None:
            raise NotFound("no principal has that serial", hint="it was not issued here")
        return EstResponse(200, directory.encode(entry), {"Content-Type": directory.MEDIA_TYPE})

    def _nothing(self, request: EstRequest) -> EstResponse:
        raise NotFound("there is nothing at this path", hint=f"EST is at {est.BASE}")

    def _never(self, request: EstRequest) -> EstResponse:
        raise NotFound(
            f"{request.path.rpartition('/')[2]} is not offered: keys never leave the device that made them",
            hint=f"make a key and send its request to {est.SIMPLE_ENROLL}",
        )


_ROUTES: Final[Mapping[str, tuple[str, Callable[[EstApp, EstRequest], EstResponse]]]] = {
    est.CACERTS: ("GET", EstApp._fixed_answer),
    est.CSRATTRS: ("GET", EstApp._fixed_answer),
    est.HEALTH: ("GET", EstApp._fixed_answer),
    est.SIMPLE_ENROLL: ("POST", EstApp._simple_enroll),
    est.SIMPLE_REENROLL: ("POST", EstApp._simple_reenroll),
    f"{est.BASE}/serverkeygen": ("POST", EstApp._never),
    f"{est.BASE}/fullcmc": ("POST", EstApp._never),
    est.CONFIG: ("GET", EstApp._config),
    est.RENEWAL_INFO: ("GET", EstApp._renewal_info),
    est.CONFIRM: ("POST", EstApp._confirm),
    directory.PATH: ("GET", EstApp._directory_entry),
    recovery.NONCE: ("GET", EstApp._nonce),
    recovery.RECOVER: ("POST", EstApp._recover),
}


def _check_body(request: EstRequest, media_type: str = est.PKCS10) -> None:
    if len(request.body) > est.MAX_BODY_BYTES:
        raise too_large()
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != media_type:
        raise _WrongType(f"the body is not {media_type}", hint=f"send it with Content-Type: {media_type}")


def _serial_in(peer: bytes) -> Serial:
    try:
        return serial_of(x509.load_der_x509_certificate(peer))
    except (ValueError, InvalidInput) as error:  # a manufacturer's may be odd
        raise NotAdmitted("the client certificate is not one that the fleet gave", hint="use the fleet's") from error


def _csr_in(request: EstRequest) -> Csr:
    csr = est.parse_csr(est.decode_body(request.body))
    est.check_connection(csr, request.tls_unique)
    return csr


def too_large() -> FleetError:
    """What a body over the limit is answered with, before it was read."""
    return _TooLarge(f"the body has more than {est.MAX_BODY_BYTES} bytes", hint="send one certificate signing request")


def _basic_credentials(request: EstRequest) -> tuple[str, str]:
    """User and password of HTTP Basic (RFC 7617); with a token the user may be anything. Raises: _Unauthenticated."""
    header = request.headers.get("authorization", "")
    scheme, _, credentials = header[:_MAX_AUTHORIZATION_CHARS].partition(" ")
    if scheme.lower() != "basic":
        raise _Unauthenticated(
            "this needs a token", hint="send it as the password of HTTP Basic; any user name will do"
        )
    try:
        user, _, password = base64.b64decode(credentials.strip(), validate=True).decode().partition(":")
    except (ValueError, binascii.Error) as error:
        raise _Unauthenticated("the Authorization header is damaged", hint="send user:token in base64") from error
    return user, password
