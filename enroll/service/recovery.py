"""A device whose certificate has expired gets the next one, by the old key: by itself for a while, then with an admin.

What is automatic is bounded to one line: while what followed a certificate is good, or once it was used, its key gets
nothing more. Whoever asks for more waits for an admin, who sees the device's history.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509

from enroll.registry import Registry, Transaction, identity
from enroll.registry.records import ApprovalRecord, CertificateRecord
from enroll.service import lineage, waiting
from enroll.service.admission import NotAllowed, Peer, holder
from enroll.service.certification import key_digest
from enroll.service.enrolment import Certifiable, Enrolment
from enroll.service.issuance import Issued, given
from enroll.service.recoverable import NeverConfirmed, NotExpired, recoverable, successors
from enroll.service.waiting import Asker, Waiting, Wanted
from fleet import pki, recovery
from fleet.config import DEFAULT_RECOVERY_GRACE
from fleet.errors import Denied
from fleet.est import Csr
from fleet.identity import Serial
from fleet.recovery import Claim

_NEW_KEY: Final = "make a new key and request; a key is certified once"


class ProofRefused(Denied):
    """Nothing shows that whoever asks holds the key: HTTP 401, the same whether there is such a certificate or not."""


def check_proof(registry: Registry, claim: Claim) -> CertificateRecord:
    """The certificate whose key has signed the claim, whatever became of it. Raises: ProofRefused."""
    with registry.read() as transaction:
        found = identity.find_certificate(transaction, claim.serial)
    refused = ProofRefused("no certificate of this fleet has signed this", hint="sign it with the expired one's key")
    if found is None or found.principal is None:
        raise refused
    key = pki.check_public_key(x509.load_der_x509_certificate(found.der).public_key())
    if not pki.is_signed(key, recovery.statement(found.der, claim.nonce, claim.csr), claim.signature):
        raise refused
    return found


@dataclass(frozen=True, slots=True)
class Recovery:
    """The use case; `grace` is for how long after the end of a certificate no admin is asked."""

    enrolment: Enrolment
    grace: timedelta = DEFAULT_RECOVERY_GRACE

    def recover(self, serial: Serial, csr: Csr, now: datetime, asker: Asker) -> Issued | Waiting:
        """The successor of the expired certificate whose key the caller has seen to be the peer's.

        The same key again gets the same certificate again.
        Raises: NotAdmitted, NotAllowed (NotExpired, NeverConfirmed, Forked, RequestDenied), TooManyWaiting,
        RegistryUnavailable.
        """
        asked = Certifiable(csr, key_digest(csr.public_key))
        with self.enrolment.registry.read() as transaction:
            shown = holder(transaction, serial)
            # it tried twice, and switched itself off before it could say that it uses the first
            if now >= shown.certificate.not_after and lineage.never_used(transaction, shown.certificate):
                raise NeverConfirmed(shown.record.id)
        lineage.check_not_ended(self.enrolment.registry, shown, asker, now)
        with self.enrolment.registry.write() as transaction:
            peer = recoverable(transaction, serial)
            if csr.device != peer.record.id:
                raise NotAllowed(f"a certificate of {peer.record.id} cannot ask for {csr.device}", hint="keep the id")
            if now < peer.certificate.not_after:
                raise NotExpired(f"this certificate of {peer.record.id} has not expired", hint="renew with it")
            following = successors(transaction, peer, now)
            for certificate in following:
                if certificate.key == asked.key and certificate.parent == serial:
                    return given(peer.record, certificate, is_repeated=True)
            lineage.check_not_frozen(transaction, peer)
            if identity.is_key_known(transaction, asked.key):
                raise NotAllowed("this key was certified before", hint=_NEW_KEY)
            approval = None
            if following or now >= peer.certificate.not_after + self.grace:
                outcome = self._approval(transaction, peer, asked, now, asker)
                if isinstance(outcome, Waiting):
                    return outcome
                approval = outcome
            live = identity.live_certificates_of(transaction, peer.record.id)
            source = {"recovered": "by itself" if approval is None else approval.id}
            issued = self.enrolment.succeed(transaction, peer, live, asked, now, asker, **source)
            if approval is not None:
                _note(transaction, approval, issued, now)
            return issued

    def _approval(
        self, transaction: Transaction, peer: Peer, asked: Certifiable, now: datetime, asker: Asker
    ) -> ApprovalRecord | Waiting:
        serial = peer.certificate.serial
        found = waiting.find(transaction, asked.key, None, now, serial)
        wanted = Wanted(peer.record.id, asked.key, None, asker, serial)
        return waiting.approved(transaction, found, wanted, now, self.enrolment.token_bytes)


def _note(transaction: Transaction, approval: ApprovalRecord, issued: Issued, now: datetime) -> None:
    certificate = identity.find_certificate(transaction, issued.serial)
    assert certificate is not None
    waiting.issued(transaction, approval, certificate.number, now)
