"""The next certificate by the key of one that has expired: two requests without any certificate at TLS level.

The keys that this home has are tried from the newest on. The newest that was confirmed is the right one, and a device
that was cut off in the middle of a renewal does not know which that is: of those after it the service says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from device_agent import credentials
from device_agent.failures import Cause, Failure
from device_agent.https import Answer, Request
from device_agent.renewal import Code, NotRenewed, Problem, problem_of
from fleet import est, pki, recovery
from fleet.errors import FleetError, InvalidInput, printable
from fleet.identity import DeviceId
from fleet.join import fingerprint

_MAX_REASON_CHARS: Final = 300
_OF_THIS_KEY: Final = (Code.RECOVERY_REFUSED, Cause.LOCAL)
_ASK_ADMIN: Final = "ask an admin what became of it: enroll device show {device}"


class NotExpired(Exception):
    """The service takes the certificate as it is: something else keeps the two apart."""


class _NeverConfirmed(Exception):
    """The service never heard that this certificate was used: the one before it is meant."""


@dataclass(frozen=True, slots=True)
class Signer:
    """A generation whose key may recover. `is_newer`: than the one in use, which it was to follow."""

    folder: Path
    is_newer: bool


@dataclass(frozen=True, slots=True)
class Recovering:
    """One attempt of `device` at `url`. `send` shows no certificate; `check` raises NotRenewed for what is no 200.

    `says`: headers with what the device says of its hardware, for the admin.
    """

    device: DeviceId
    url: str
    peer: str
    says: Mapping[str, str]
    send: Callable[[Request], Answer]
    check: Callable[[Answer], None]

    def ask(self, csr: bytes, signers: Sequence[Signer]) -> list[x509.Certificate]:
        """The certificates in the answer, for the first of these keys that is the right one.

        Raises: NotRenewed, NotExpired.
        """
        for signer in signers:
            try:
                return self._ask_twice(csr, signer.folder)
            except _NeverConfirmed:
                continue
            except NotRenewed as error:
                if not (signer.is_newer and error.problem.code in _OF_THIS_KEY):
                    raise
        reason = "the service has heard of none of its certificates"
        raise NotRenewed(self._refused(reason), spends_key=True)

    def _ask_twice(self, csr: bytes, folder: Path) -> list[x509.Certificate]:
        """A service that was started anew between the two requests does not know its own nonce."""
        answer = self._post(csr, folder)
        if answer.status == 401:
            answer = self._post(csr, folder)
        return self._read(answer, csr)

    def _post(self, csr: bytes, folder: Path) -> Answer:
        try:
            used = x509.load_pem_x509_certificate((folder / "cert.pem").read_bytes())
            key = credentials.load_key((folder / "key.pem").read_bytes())
        except (OSError, ValueError, FleetError) as error:
            raise NotRenewed(problem_of(Failure(Cause.LOCAL, self.peer, str(error)), self.device)) from error
        nonce = self._nonce()
        said = recovery.statement(used.public_bytes(Encoding.DER), nonce, csr)
        claim = recovery.Claim(pki.serial_of(used), nonce, csr, pki.sign(key, said))
        headers = {"Content-Type": recovery.MEDIA_TYPE, "Accept": est.PKCS7, **self.says}
        return self.send(Request(self.url, recovery.RECOVER, "POST", headers, claim.encode()))

    def _nonce(self) -> str:
        answer = self.send(Request(self.url, recovery.NONCE))
        if answer.status == 404:
            message = f"{self.peer} is too old: it gives no certificate to a device whose own has expired"
            raise NotRenewed(Problem(Code.SERVICE, message, "an admin updates it, or gives a token with --replace"))
        self.check(answer)
        try:
            return recovery.decode_nonce(answer.body)
        except InvalidInput as error:
            raise self._bad_answer(error.message) from error

    def _read(self, answer: Answer, csr: bytes) -> list[x509.Certificate]:
        """Raises: NotRenewed, NotExpired, _NeverConfirmed."""
        reason, problem = self._reason(answer), answer.headers.get(est.PROBLEM_HEADER.lower())
        match answer.status:
            case 200:
                return self._certificates(answer)
            case 202:
                raise NotRenewed(self._waiting(answer, csr))
            case 401:
                hint = "its registry may be older than this certificate; " + _ASK_ADMIN.format(device=self.device)
                raise NotRenewed(Problem(Code.NOT_RECOGNISED, f"{self.peer} does not know this key ({reason})", hint))
            case 403 if problem == est.NEVER_CONFIRMED:
                raise _NeverConfirmed
            case 403 if problem == est.NOT_EXPIRED:
                raise NotExpired
            case 403 if problem == est.IDENTITY_USED_TWICE:
                raise NotRenewed(Problem(est.IDENTITY_USED_TWICE, reason, _ASK_ADMIN.format(device=self.device)))
            case 403 if answer.headers.get(est.REQUEST_HEADER.lower()) == "denied":
                raise NotRenewed(Problem(Code.DENIED, reason, "ask whoever runs the fleet"))
            case 400 | 403:
                raise NotRenewed(self._refused(reason), spends_key=True)
        self.check(answer)
        raise self._bad_answer(f"HTTP {answer.status}")

    def _certificates(self, answer: Answer) -> list[x509.Certificate]:
        try:
            return est.decode_certificates(answer.body)
        except ValueError as error:
            raise self._bad_answer(str(error)) from error

    def _waiting(self, answer: Answer, csr: bytes) -> Problem:
        request = printable(answer.headers.get(est.REQUEST_HEADER.lower(), ""))[:32] or "unknown"
        key = fingerprint(hashlib.sha256(pki.spki(est.parse_csr(csr).public_key)).digest())
        text = answer.headers.get("retry-after", "")
        seconds = float(text) if text.isascii() and text.isdigit() and len(text) < 7 else 0.0
        message = f"{self.device} has to be approved by an admin: request {request}, key {key}"
        return Problem(Code.WAITING, message, f"enroll request approve {request}", seconds)

    def _refused(self, reason: str) -> Problem:
        message = f"{self.peer} gives {self.device} no certificate any more ({reason})"
        return Problem(Code.RECOVERY_REFUSED, message, _ASK_ADMIN.format(device=self.device))

    def _reason(self, answer: Answer) -> str:
        text = answer.body[: 4 * _MAX_REASON_CHARS].decode("utf-8", "replace").partition("\n")[0].strip()
        return printable(text)[:_MAX_REASON_CHARS] or f"HTTP {answer.status}"

    def _bad_answer(self, detail: str) -> NotRenewed:
        return NotRenewed(problem_of(Failure(Cause.BAD_ANSWER, self.peer, detail[:200]), self.device))
