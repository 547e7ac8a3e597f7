"""What an enrolment came to, as EST answers: the certificate, or that an admin has to approve first."""

from __future__ import annotations

import logging
import math
from typing import Final

from enroll.rate_limit import network_of
from enroll.service import Asker, Issued, Waiting
from fleet import est
from fleet.est import EstRequest, EstResponse
from fleet.join import fingerprint
from fleet.logs import event
from fleet.messages import format_time

_log = logging.getLogger(__name__)

_TEXT: Final = "text/plain; charset=utf-8"
_MAX_CLAIM_CHARS: Final = 64


def base64_answer(body: bytes, media_type: str) -> EstResponse:
    """Base64, and said so: RFC 8951 lets a server leave the encoding out, older clients want it."""
    return EstResponse(200, body, {"Content-Type": media_type, "Content-Transfer-Encoding": "base64"})


def asker_of(request: EstRequest) -> Asker:
    """Who asks; what the device says of itself is cut short and stripped of what no terminal should see."""
    return Asker(
        request.address,
        network_of(request.address),
        _claim(request.headers.get(est.SERIAL_HEADER.lower(), "")),
        _claim(request.headers.get(est.MODEL_HEADER.lower(), "")),
    )


def _claim(text: str) -> str:
    return "".join(character for character in text if character.isascii() and character.isprintable())[
        :_MAX_CLAIM_CHARS
    ]


def answer_of(outcome: Issued | Waiting) -> EstResponse:
    """200 with the certificate, or 202 with when to ask again (RFC 7030, 4.2.3)."""
    return _waits(outcome) if isinstance(outcome, Waiting) else _certified(outcome)


def _certified(issued: Issued) -> EstResponse:
    name = "certificate.repeated" if issued.is_repeated else "certificate.issued"
    fields = {issued.principal.role.value: issued.principal.id, "serial": issued.serial}
    _log.info(event(name, **fields, generation=issued.generation, not_after=format_time(issued.not_after)))
    return base64_answer(est.encode_certificate(issued.der), est.PKCS7_CERTS_ONLY)


def _waits(waiting: Waiting) -> EstResponse:
    if waiting.is_new:
        _log.info(event("request.waiting", device=waiting.device, request=waiting.request, key=waiting.key.hex()))
    text = (
        f"{waiting.device} waits for an admin: request {waiting.request}, key {fingerprint(waiting.key)}\n"
        f"hint: enroll request approve {waiting.request}\n"
    )
    headers = {
        "Content-Type": _TEXT,
        "Retry-After": str(math.ceil(waiting.retry_after.total_seconds())),
        est.REQUEST_HEADER: waiting.request,
    }
    return EstResponse(202, text.encode(), headers)
