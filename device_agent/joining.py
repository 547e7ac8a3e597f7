"""`device-agent join`: from an invitation to an identity on disk.

1. /cacerts from whoever is there: the pin tells the root.           nothing is sent
2. a key, on disk before anybody hears of it.                        a crash: it is used again, or was never known
3. CSR and token to a service that is verified up to that root.      an answer lost: the same again
   or, where an admin has to approve first: 202, and the same again until there is an answer
4. the certificate is checked and becomes `current`.                 a crash: finished at the next start
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography import x509

from device_agent import backoff, credentials, est_client
from device_agent.clock import Clock
from device_agent.hardware import Hardware
from device_agent.store import Pending, PosixDisk, Store, check_private
from device_agent.waiting import Note, Patience, delay_seconds, read_note, remove_note, write_note
from fleet import est
from fleet.errors import Denied, FleetError, InvalidInput, NotFound, TimedOut, Unreachable
from fleet.identity import DeviceId
from fleet.join import JoinCode, Token
from fleet.layout import AgentHome, Credential


@dataclass(frozen=True, slots=True)
class Invitation:
    """Where to enrol, whom to trust, and what allows it: a token, or without one an admin who approves a pairing."""

    url: str
    root_pin: bytes
    token: Token | None = field(repr=False)


def invitation_of(code: JoinCode) -> Invitation:
    return Invitation(code.url, code.root_pin, code.token)


@dataclass(frozen=True, slots=True)
class _Roots:
    """The root that the pin proves, and all that came with it."""

    pinned: x509.Certificate
    all: list[x509.Certificate]


@dataclass(frozen=True, slots=True)
class Joining:
    """One `join` of one home, whose lock is the caller's. Without `patience` a request that waits is left alone.

    `hardware` is what the device says of itself, for an admin who has to approve it.
    """

    home: AgentHome
    store: Store
    invitation: Invitation
    device: DeviceId
    hardware: Hardware
    clock: Clock
    patience: Patience

    def join(self) -> Credential:
        """The identity of this home, made now.

        Raises: FleetError; what can be used again when the same is tried again is kept.
        """
        try:
            self.store.prepare()
            if self.store.recover() and _enrolled(self.store) == self.device:
                return self.store.credential()
            _check_vacant(self.store)
            credential = self._enrol()
            remove_note(self.home)
            return credential
        except OSError as error:
            reason = error.strerror or str(error)
            hint = "free some space, or --home DIR"
            raise FleetError(f"the identity cannot be written: {reason}", hint=hint) from error

    def _enrol(self) -> Credential:
        """Ask until there is a certificate; once an admin has to approve, a service that is away ends nothing."""
        note, roots, told, failures = self._note(), None, "", 0
        while True:
            try:
                roots = roots or self._roots()
                outcome = self._ask(roots)
            except Unreachable as error:
                if note is None or not self.patience.waits:
                    raise
                told = _tell_once(self.patience, f"still waiting: {error.message}", told)
                failures += 1
                self.patience.sleep(backoff.delay_seconds(failures, self.patience.chance()))
                continue
            except Denied:
                remove_note(self.home)
                raise
            if isinstance(outcome, Credential):
                return outcome
            note, failures = self._noted(note, outcome), 0
            if not self.patience.waits:
                raise TimedOut(
                    f"an admin has to approve {self.device}: code {outcome.request}, key {outcome.key}",
                    hint="after `enroll request approve`, run the same command again",
                )
            told = _tell_once(self.patience, note.words, told)
            self.patience.sleep(delay_seconds(outcome.retry_seconds, self.patience.chance()))

    def _note(self) -> Note | None:
        """What this very join waits for since before a restart."""
        note = read_note(self.home)
        return note if note and (note.device, note.url) == (self.device, self.invitation.url) else None

    def _noted(self, note: Note | None, outcome: est_client.Waiting) -> Note:
        """The note of what waits now: another than before if the time of the one before was over."""
        if note is not None and note.request == outcome.request:
            return note
        fresh = Note(self.device, self.invitation.url, outcome.request, outcome.key, self.patience.clock())
        write_note(self.home, PosixDisk(), fresh)
        return fresh

    def _roots(self) -> _Roots:
        url = self.invitation.url
        certificates = est_client.fetch_ca_certificates(url, self.device, self.clock)
        return _Roots(credentials.pinned_root(certificates, self.invitation.root_pin), certificates)

    def _ask(self, roots: _Roots) -> Credential | est_client.Waiting:
        url = self.invitation.url
        pending = _pending(self.store, self.device, url)
        key_pem = pending.key.read_bytes()
        key = credentials.load_key(key_pem)
        asked = est_client.Asked(self.invitation.token, est.build_csr(key, self.device), self.device, self.hardware)
        answer = est_client.enrol(url, roots.pinned, asked, credentials.fingerprint_of(key), self.clock)
        if isinstance(answer, est_client.Waiting):
            return answer
        verified = credentials.verify_answer([*answer, *roots.all], key_pem, self.device, roots.pinned, url)
        if problem := credentials.problem_with_dates(verified.credential, self.clock.reading()):
            raise credentials.UntrustedAnswer(problem, hint="compare `date` here and on the service's host")
        self.store.complete(pending, verified.pem, credentials.to_pem(roots.pinned), verified.credential)
        return verified.credential


def _tell_once(patience: Patience, words: str, told: str) -> str:
    """Say what has changed since it was said last; what has been said."""
    if words != told:
        patience.tell(words)
    return words


def _pending(store: Store, device: DeviceId, url: str) -> Pending:
    """The key that the service may know already, or a new one."""
    pending = store.pending(device, url)
    if pending is None:
        return store.begin(device, url, credentials.new_key_pem())
    check_private(pending.key)
    return pending


def _check_vacant(store: Store) -> None:
    enrolled = _enrolled(store)
    if enrolled is not None:
        raise InvalidInput(
            f"this home is enrolled already, as {enrolled}",
            hint="start it: device-agent run; for another identity name another place: --home DIR",
        )


def _enrolled(store: Store) -> DeviceId | None:
    try:
        return store.credential().device
    except NotFound:
        return None
