"""The two requests of an enrolment (RFC 7030), and what the answers mean.

The first believes anybody and therefore carries nothing and yields only what the pin proves. The second carries the
token, on a new connection that was verified up to the pinned root (DESIGN section 11).
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import NoReturn

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from device_agent import https, tls
from device_agent.clock import Clock
from device_agent.failures import Cause, Failure, words
from device_agent.hardware import Hardware, plain
from fleet import est
from fleet.errors import Denied, FleetError, Unreachable, printable
from fleet.identity import DeviceId, Server
from fleet.join import Token

_MAX_REASON_CHARS = 300


def fetch_ca_certificates(url: str, device: DeviceId, clock: Clock) -> list[x509.Certificate]:
    """What whoever is at `url` claims: `credentials.pinned_root` tells what of it is true. Raises: Unreachable."""
    peer = https.peer_of(url)
    try:
        answer = https.send(https.Request(url, est.CACERTS), tls.unverified_context(clock))
        if answer.status != 200:
            raise https.RequestFailed(Failure(Cause.BAD_ANSWER, peer, f"HTTP {answer.status} for {est.CACERTS}"))
        return est.decode_certificates(answer.body)
    except https.RequestFailed as error:
        raise unreachable(error.failure, device) from error
    except ValueError as error:
        raise unreachable(Failure(Cause.BAD_ANSWER, peer, str(error)), device) from error


@dataclass(frozen=True, slots=True)
class Asked:
    """An enrolment's request: the CSR of `device`, and the token that allows it, or none to be paired."""

    token: Token | None = field(repr=False)
    csr: bytes
    device: DeviceId
    hardware: Hardware

    def headers(self) -> dict[str, str]:
        user = str(self.device) if self.token else est.PAIRING_USER
        credentials = base64.b64encode(f"{user}:{self.token or ''}".encode()).decode()
        return {
            "Authorization": f"Basic {credentials}",
            "Content-Type": est.PKCS10,
            "Content-Transfer-Encoding": "base64",
            "Accept": est.PKCS7,
            **hardware_headers(self.hardware),
        }


@dataclass(frozen=True, slots=True)
class Waiting:
    """An admin has to approve: the service's name for the request, the key's fingerprint, when to ask again."""

    request: str
    key: str
    retry_seconds: float | None


def enrol(url: str, root: x509.Certificate, asked: Asked, key: str, clock: Clock) -> list[x509.Certificate] | Waiting:
    """The certificates that the service answers with, the new one among them; or that it waits for an admin.

    Raises: Denied, Unreachable, FleetError.
    """
    context = tls.context_for(Server.ENROLL, root.public_bytes(Encoding.PEM).decode(), clock)
    request = https.Request(url, est.SIMPLE_ENROLL, "POST", asked.headers(), est.encode_body(asked.csr))
    try:
        answer = https.send(request, context)
    except https.RequestFailed as error:
        raise unreachable(error.failure, asked.device) from error
    if answer.status == 202:
        return Waiting(_request_id(answer), key, _retry_seconds(answer))
    if answer.status != 200:
        refused(answer, asked.device, https.peer_of(url), is_pairing=asked.token is None)
    try:
        return est.decode_certificates(answer.body)
    except ValueError as error:
        raise unreachable(Failure(Cause.BAD_ANSWER, https.peer_of(url), str(error)), asked.device) from error


def hardware_headers(hardware: Hardware) -> dict[str, str]:
    """What the device says of itself."""
    return {est.SERIAL_HEADER: plain(hardware.serial), est.MODEL_HEADER: plain(hardware.model)}


def _request_id(answer: https.Answer) -> str:
    return printable(answer.headers.get(est.REQUEST_HEADER.lower(), ""))[:32] or "unknown"


def _retry_seconds(answer: https.Answer) -> float | None:
    """Retry-After in seconds; a date (RFC 9110, 10.2.3) is left to a device's own judgement: its clock may be wrong."""
    text = answer.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) < 7 else None


def unreachable(failure: Failure, device: DeviceId) -> Unreachable:
    """`failure` while enrolling, in words."""
    if failure.cause in (Cause.CLOSED, Cause.LOST):
        return Unreachable(
            f"{failure.peer} ended the connection without an answer ({failure.detail})",
            hint="run the same command again: the key is kept, and the service gives it the same certificate",
        )
    found = words(failure, device)
    return Unreachable(found.message, hint=found.hint)


def refused(answer: https.Answer, device: DeviceId, peer: str, *, is_pairing: bool = False) -> NoReturn:
    """Raise what any answer but 200 and 202 means: the service was verified, so its reason is worth repeating."""
    reason = _reason(answer)
    new_token = f"ask for a new one: enroll token create --device {device}"
    match answer.status:
        case 401 if is_pairing:
            raise Denied("this fleet pairs no device without a token", hint=new_token)
        case 401:
            raise Denied(f"the token is not accepted: {reason}", hint=new_token)
        case 403 if answer.headers.get(est.REQUEST_HEADER.lower()) == "denied":
            raise Denied(reason, hint="ask whoever runs the fleet; then run the same command with a new token")
        case 403:
            raise Denied(f"the token does not allow this: {reason}", hint=f"check the id ({device}), or {new_token}")
        case 400 | 413 | 415:
            raise FleetError(f"the service refuses the request: {reason}", hint="update this agent, or the service")
        case 429 | 503:
            raise Unreachable(f"{peer} is busy: {reason}", hint=f"run the same command again{_later(answer)}")
        case status:
            raise Unreachable(f"{peer} answers HTTP {status}: {reason}", hint="its log says why: enroll serve")


def _reason(answer: https.Answer) -> str:
    text = answer.body[: 4 * _MAX_REASON_CHARS].decode("utf-8", "replace").partition("\n")[0].strip()
    return printable(text)[:_MAX_REASON_CHARS] or f"HTTP {answer.status}"


def _later(answer: https.Answer) -> str:
    seconds = _retry_seconds(answer)
    return "" if seconds is None else f" in {seconds:.0f} s"
