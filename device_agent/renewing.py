"""Makes a successor of the certificate in use, until only `current` has to change. Loads `cryptography`.

1. /v1/renewal-info: is it this device's turn?
2. a key in the next generation, on disk before anybody hears of it      a crash: used again, or was never known
3. its CSR to /simplereenroll, over mutual TLS with the present one      an answer lost: the same key again
   or, if that one has expired: the same to /v1/recover, signed by its key (`recovering`)
4. what came is checked and written; the generation is whole             a crash: gone on from here
5. service and broker are asked whether they take it (`proof`)           no: tried again later, the present one is used

A running agent has this done in a short-lived process (`renewal_child`): it stays small.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from cryptography import x509

from device_agent import credentials, https, tls
from device_agent.clock import Clock
from device_agent.est_client import hardware_headers
from device_agent.failures import Cause, Failure
from device_agent.hardware import UNKNOWN, Hardware
from device_agent.proof import Proof
from device_agent.recovering import NotExpired, Recovering, Signer
from device_agent.refusals import refusal_of
from device_agent.renewal import ALARMING, Code, Problem, life_of, problem_of
from device_agent.renewal import NotRenewed as NotRenewed  # noqa: PLC0414 - what this raises
from device_agent.store import Disk, Pending, Store, check_private
from device_agent.succession import Generation, Succession
from fleet import est, messages
from fleet.errors import FleetError, InvalidInput, printable
from fleet.identity import Server
from fleet.layout import AgentHome, Credential, IdentityFiles

_PATIENCE_SECONDS: Final = 2.0  # a wait that is shorter is not worth a second process
_MAX_REASON_CHARS: Final = 300
# A server that does not let a certificate in may say why, or close; by our clock it may be good all the same.
_NOT_LET_IN: Final = (Cause.OWN_EXPIRED, Cause.REFUSED, Cause.CLOSED, Cause.LOST)


@dataclass(frozen=True, slots=True)
class Later:
    """It is not this device's turn yet."""

    wait_seconds: float


@dataclass(frozen=True, slots=True)
class Order:
    """`is_paced`: the turn was waited for, or nobody wants to wait. `is_fresh`: what was made before is not used."""

    is_paced: bool = False
    is_fresh: bool = False


@dataclass(frozen=True, slots=True)
class Renewing:
    """One attempt in one home."""

    home: AgentHome
    disk: Disk
    clock: Clock
    hardware: Hardware = UNKNOWN

    def prepare(self, order: Order) -> Credential | Later:
        """A proven candidate in the home. Raises: NotRenewed, FleetError (the home cannot be used)."""
        with _alone(self.home):
            credential = self._store.credential()
            try:
                return self._prepare(order, credential)
            except OSError as error:
                reason = error.strerror or str(error)
                problem = Problem(Code.DISK, f"the home cannot be written: {reason}", "free some space")
                raise NotRenewed(problem) from error

    @property
    def now(self) -> datetime:
        return self.clock.reading().utc

    @property
    def _store(self) -> Store:
        return Store(self.home, self.disk)

    @property
    def _succession(self) -> Succession:
        return Succession(self.home, self.disk)

    def _prepare(self, order: Order, credential: Credential) -> Credential | Later:
        asking = _Asking(self.home, credential, self.clock, hardware_headers(self.hardware))
        try:
            wait = 0.0 if order.is_paced and not order.is_fresh else asking.wait_seconds()
            if wait > _PATIENCE_SECONDS and not order.is_paced:
                return Later(wait)
            if order.is_fresh:  # only now: the present certificate has just been taken
                self._succession.discard_successors()
            candidate = self._usable_candidate() or self._certified(asking, asking.reenrol)
        except NotRenewed as error:
            candidate = self._instead(asking, error)
        self._prove(candidate, asking)
        return candidate.credential

    def _instead(self, asking: _Asking, refused: NotRenewed) -> Generation:
        """What there is where the present certificate is no help: one that was made before, or one by its key alone.

        Raises: NotRenewed, OSError.
        """
        spare = self._succession.candidate()
        if refused.problem.code not in _NOT_LET_IN:
            if spare is None:
                raise refused
            return spare
        told = None if spare is None else self._proof(spare, asking).by_service(asking.credential.enroll_url)
        if spare is not None and not (isinstance(told, Failure) and told.cause in _NOT_LET_IN):
            return spare
        nameless = replace(asking, shows_certificate=False)
        try:
            made = self._certified(nameless, self._recover(nameless), is_recovery=True)
        except NotExpired:
            raise refused from None
        if spare is not None:
            self._store.remove(spare.folder)  # has ended, and would be taken for one that was used
        return made

    def _recover(self, asking: _Asking) -> Callable[[bytes], list[x509.Certificate]]:
        signers = [Signer(each.folder, is_newer) for each, is_newer in self._succession.newest_first()]
        return lambda csr: asking.recovering().ask(csr, signers)

    def _usable_candidate(self) -> Generation | None:
        """One from an attempt that ended before it was put into use, unless its own time is nearly over."""
        found = self._succession.candidate()
        if found is not None and self.now >= life_of(found.credential).due:
            self._succession.discard_successors()
            return None
        return found

    def _certified(
        self, asking: _Asking, ask: Callable[[bytes], list[x509.Certificate]], *, is_recovery: bool = False
    ) -> Generation:
        """A certificate for the pending key. Raises: NotRenewed, OSError."""
        store, credential = self._store, asking.credential
        pending = store.pending(credential.device, credential.enroll_url)
        if pending is None:
            pending = store.begin(credential.device, credential.enroll_url, credentials.new_key_pem())
        try:
            verified = self._verified(asking, pending, ask)
        except NotRenewed as error:
            # what recovers is given to one key: it is kept while it may have been given to this one
            is_spent = not is_recovery and error.problem.code in (Code.NOT_ALLOWED, Code.BAD_CERTIFICATE)
            if is_spent or error.spends_key:
                store.remove(pending.folder)  # this key will get nothing else
            raise
        store.write_answer(pending, verified.pem, verified.credential)
        return Generation(pending.folder, verified.credential)

    def _verified(
        self, asking: _Asking, pending: Pending, ask: Callable[[bytes], list[x509.Certificate]]
    ) -> credentials.Verified:
        try:
            check_private(pending.key)
            key_pem = pending.key.read_bytes()
            csr = est.build_csr(credentials.load_key(key_pem), pending.device)
        except FleetError as error:
            unusable = Problem(Code.BAD_CERTIFICATE, error.message, error.hint)
            raise NotRenewed(unusable, spends_key=True) from error
        answer = ask(csr)
        try:
            known = [*answer, *asking.ca_certificates()]
            verified = self._verify(known, key_pem, asking.credential)
        except FleetError as error:
            raise NotRenewed(Problem(Code.BAD_CERTIFICATE, error.message, error.hint)) from error
        if problem := credentials.problem_with_dates(verified.credential, self.clock.reading()):
            raise NotRenewed(Problem(Code.BAD_CERTIFICATE, problem, "compare `date` here and on the service's host"))
        return verified

    def _verify(self, known: list[x509.Certificate], key_pem: bytes, credential: Credential) -> credentials.Verified:
        """Up to any of our roots. Raises: UntrustedAnswer."""
        roots = x509.load_pem_x509_certificates(self.home.trust.read_bytes())
        *others, last = roots
        for root in others:
            try:
                return credentials.verify_answer(known, key_pem, credential.device, root, credential.enroll_url)
            except credentials.UntrustedAnswer:
                continue
        return credentials.verify_answer(known, key_pem, credential.device, last, credential.enroll_url)

    def _prove(self, candidate: Generation, asking: _Asking) -> None:
        """Raises: NotRenewed unless service and a broker take it; near the end the service's word is enough."""
        present = asking.credential
        proof = self._proof(candidate, asking)
        told = proof.by_service(present.enroll_url)
        if isinstance(told, Failure):
            raise NotRenewed(self._not_admitted(told, asking))
        problem = proof.by_any(told)
        if problem is None:
            return
        is_urgent = life_of(present).remaining(self.now) < ALARMING
        if problem.code == Code.BROKER_REFUSES or not is_urgent:
            raise NotRenewed(problem)

    def _proof(self, candidate: Generation, asking: _Asking) -> Proof:
        files = IdentityFiles(candidate.folder / "cert.pem", candidate.folder / "key.pem")
        return Proof(self.home, asking.credential.device, files, self.clock)

    def _not_admitted(self, failure: Failure, asking: _Asking) -> Problem:
        """What that means; a candidate that is worth less than the present one is removed. Raises: NotRenewed."""
        problem = problem_of(failure, asking.credential.device)
        if failure.cause not in (Cause.REFUSED, Cause.USED_TWICE):
            return problem
        asking.wait_seconds()  # refused as well, and neither is worth less: a suspended device may be resumed
        self._succession.discard_successors()
        return Problem(Code.NOT_ADMITTED, "the service does not take its own new certificate", problem.hint)


@dataclass(frozen=True, slots=True)
class _Asking:
    """Requests to the enrollment service with the certificate in use, unless it says otherwise."""

    home: AgentHome
    credential: Credential
    clock: Clock
    says: Mapping[str, str]
    shows_certificate: bool = True

    def wait_seconds(self) -> float:
        """What the service asks this device to wait; 0 from one that does not pace. Raises: NotRenewed."""
        answer = self._send(https.Request(self.credential.enroll_url, est.RENEWAL_INFO, headers=self.says))
        if answer.status == 404:
            return 0.0
        self._check(answer)
        try:
            seconds = messages.decode_object(answer.body).get("wait_seconds")
        except InvalidInput as error:
            raise self._bad_answer(error.message) from error
        is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
        return max(0.0, float(seconds)) if is_number and seconds is not None else 0.0

    def reenrol(self, csr: bytes) -> list[x509.Certificate]:
        """Raises: NotRenewed."""
        headers = {"Content-Type": est.PKCS10, "Content-Transfer-Encoding": "base64", "Accept": est.PKCS7, **self.says}
        body = est.encode_body(csr)
        url = self.credential.enroll_url
        return self._certificates(https.Request(url, est.SIMPLE_REENROLL, "POST", headers, body))

    def ca_certificates(self) -> list[x509.Certificate]:
        """What lies between a leaf and a root, from a service that was verified. Raises: NotRenewed."""
        return self._certificates(https.Request(self.credential.enroll_url, est.CACERTS))

    def recovering(self) -> Recovering:
        """As the holder of a certificate that is over."""
        url = self.credential.enroll_url
        return Recovering(self.credential.device, url, self._peer, self.says, self._send, self._check)

    def _certificates(self, request: https.Request) -> list[x509.Certificate]:
        answer = self._send(request)
        self._check(answer)
        try:
            return est.decode_certificates(answer.body)
        except ValueError as error:
            raise self._bad_answer(str(error)) from error

    def _send(self, request: https.Request) -> https.Answer:
        try:
            return https.send(request, self._context())
        except https.RequestFailed as error:
            failure = error.failure
            cause = Cause.OWN_EXPIRED if failure.tells_expiry else failure.cause
            found = Failure(cause, failure.peer, failure.detail)
            raise NotRenewed(problem_of(found, self.credential.device, self.credential.not_after)) from error

    def _context(self) -> tls.FleetContext:
        try:
            identity = self.home.identity if self.shows_certificate else None
            return tls.context_for(Server.ENROLL, self.home.trust.read_text(), self.clock, identity)
        except (OSError, ValueError) as error:
            failure = Failure(Cause.LOCAL, self._peer, str(error))
            raise NotRenewed(problem_of(failure, self.credential.device)) from error

    def _check(self, answer: https.Answer) -> None:
        """Raises: NotRenewed for any status but 200."""
        if answer.status == 200:
            return
        text = answer.body[: 4 * _MAX_REASON_CHARS].decode("utf-8", "replace").partition("\n")[0].strip()
        reason = f"HTTP {answer.status}: {printable(text)[:_MAX_REASON_CHARS]}".rstrip(": ")
        device = self.credential.device
        if refusal_of(answer) is Cause.USED_TWICE:
            raise NotRenewed(problem_of(Failure(Cause.USED_TWICE, self._peer, reason), device))
        match answer.status:
            case 400 | 401 | 403:
                hint = f"ask an admin what became of it: enroll device show {device}"
                problem = Problem(Code.NOT_ALLOWED, f"{self._peer} does not renew {device} ({reason})", hint)
            case 429 | 503:
                message = f"{self._peer} is busy ({reason})"
                problem = Problem(Code.BUSY, message, "it is tried again", _retry_seconds(answer.headers))
            case _:
                message = f"{self._peer} cannot renew now ({reason})"
                problem = Problem(Code.SERVICE, message, "its log says why, or that of the proxy before it")
        raise NotRenewed(problem)

    def _bad_answer(self, detail: str) -> NotRenewed:
        return NotRenewed(problem_of(Failure(Cause.BAD_ANSWER, self._peer, detail[:200]), self.credential.device))

    @property
    def _peer(self) -> str:
        return https.peer_of(self.credential.enroll_url)


def _retry_seconds(headers: Any) -> float:
    text = headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) < 7 else 0.0


@contextmanager
def _alone(home: AgentHome) -> Iterator[None]:
    """One attempt at a time in a home: that of an agent that was killed may be under way still. Raises: NotRenewed."""
    run = home.path / "run"
    try:
        run.mkdir(mode=0o700, exist_ok=True)
        file = os.open(run / "renewal.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        problem = Problem(Code.DISK, f"the home cannot be written: {error.strerror or error}", "free some space")
        raise NotRenewed(problem) from error
    try:
        _lock(file)
        yield
    finally:
        os.close(file)


def _lock(file: int) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise NotRenewed(Problem(Code.UNDER_WAY, "another renewal of this home is under way", "wait for it")) from error
