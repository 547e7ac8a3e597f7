"""The two requests of an enrolment (RFC 7030), and what the answers mean.

The first believes anybody and therefore carries nothing and yields only what the pin proves. The second carries the
token, on a new connection that was verified up to the pinned root (DESIGN section 11).
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import NoReturn

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from device_agent import https, tls
from device_agent.failures import Cause, Failure, words
from fleet import est
from fleet.errors import Denied, FleetError, TimedOut, Unreachable, printable
from fleet.identity import DeviceId, Server
from fleet.join import Token

_MAX_REASON_CHARS = 300


def fetch_ca_certificates(url: str, device: DeviceId, monotonic: Callable[[], float]) -> list[x509.Certificate]:
    """What whoever is at `url` claims: `credentials.pinned_root` tells what of it is true. Raises: Unreachable."""
    peer = https.peer_of(url)
    try:
        answer = https.send(https.Request(url, est.CACERTS), tls.unverified_context(monotonic))
        if answer.status != 200:
            raise https.RequestFailed(Failure(Cause.BAD_ANSWER, peer, f"HTTP {answer.status} for {est.CACERTS}"))
        return est.decode_certificates(answer.body)
    except https.RequestFailed as error:
        raise unreachable(error.failure, device) from error
    except ValueError as error:
        raise unreachable(Failure(Cause.BAD_ANSWER, peer, str(error)), device) from error


def enrol(
    url: str, root: x509.Certificate, token: Token, csr: bytes, device: DeviceId, monotonic: Callable[[], float]
) -> list[x509.Certificate]:
    """The certificates that the service answers with, the new one among them.

    Raises: Denied, TimedOut, Unreachable, FleetError.
    """
    context = tls.context_for(Server.ENROLL, root.public_bytes(Encoding.PEM).decode(), monotonic)
    credentials = base64.b64encode(f"{device}:{token}".encode()).decode()
    headers = {
        "Authorization": f"Basic {credentials}",
        "Content-Type": est.PKCS10,
        "Content-Transfer-Encoding": "base64",
        "Accept": est.PKCS7,
    }
    request = https.Request(url, est.SIMPLE_ENROLL, "POST", headers, est.encode_body(csr))
    try:
        answer = https.send(request, context)
    except https.RequestFailed as error:
        raise unreachable(error.failure, device) from error
    if answer.status != 200:
        refused(answer, device, https.peer_of(url))
    try:
        return est.decode_certificates(answer.body)
    except ValueError as error:
        raise unreachable(Failure(Cause.BAD_ANSWER, https.peer_of(url), str(error)), device) from error


def unreachable(failure: Failure, device: DeviceId) -> Unreachable:
    """`failure` while enrolling, in words."""
    if failure.cause in (Cause.CLOSED, Cause.LOST):
        return Unreachable(
            f"{failure.peer} ended the connection without an answer ({failure.detail})",
            hint="run the same command again: the key is kept, and the service gives it the same certificate",
        )
    found = words(failure, device)
    return Unreachable(found.message, hint=found.hint)


def refused(answer: https.Answer, device: DeviceId, peer: str) -> NoReturn:
    """Raise what any answer but 200 means: the service was verified, so its reason is worth repeating."""
    reason = _reason(answer)
    new_token = f"ask for a new one: enroll token create --device {device}"
    match answer.status:
        case 202:
            raise TimedOut(
                f"an admin has to approve this request of {device}",
                hint=f"after `enroll request approve`, run the same command again{_later(answer)}",
            )
        case 401:
            raise Denied(f"the token is not accepted: {reason}", hint=new_token)
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
    seconds = answer.headers.get("retry-after", "")
    return f" in {seconds} s" if seconds.isascii() and seconds.isdigit() and len(seconds) < 7 else ""
