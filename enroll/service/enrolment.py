"""Certificates for principals: the first for a token, an admin's yes or a claim, the next for the one in use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from enroll import tokens
from enroll.issuer import Issuer, client_names
from enroll.rate_limit import RateLimit
from enroll.registry import Registry, Transaction, identity, manufacturers, revocations
from enroll.registry import lineage as lineage_rows
from enroll.registry import tokens as token_rows
from enroll.registry.records import (
    Approval,
    ApprovalRecord,
    ApprovalState,
    CertificateRecord,
    CertificateState,
    PrincipalRecord,
    TokenRecord,
)
from enroll.service import admission, lineage, waiting
from enroll.service.admission import NotAllowed, Peer
from enroll.service.certification import Order, certify, key_digest
from enroll.service.hardware import Hardware, certificate_of_key, claimant, claimed
from enroll.service.issuance import Issued, given, issued, repeat, repeat_number, store
from enroll.service.lineage import Forked
from enroll.service.waiting import Asker, TooManyWaiting, Waiting, Wanted
from fleet import pki
from fleet.errors import FleetError
from fleet.est import Csr
from fleet.identity import DeviceId, Principal, Role, Serial, State, TrustDomain
from fleet.join import Token

_ASK_AGAIN: Final = "ask for a new one: enroll token create"
_NEW_KEY: Final = "make a new key and request; a key is certified once"


# Each renewal stays in the registry, in the log and, once it is superseded, on a list of revocations. An agent that
# finds that every new certificate is refused makes another one, an hour apart in the end.
RENEWALS_PER_WINDOW: Final = 20
_LONGEST_WINDOW: Final = timedelta(hours=1)

_NOBODY_KNOWN: Final = Asker()


@dataclass(frozen=True, slots=True)
class Certifiable:
    """A request, and the digest of its key, which is looked up and stored."""

    csr: Csr
    key: bytes


@dataclass(frozen=True, slots=True)
class Enrolment:
    """The use cases that sign; each is one transaction. Safe to use from several threads.

    `lives`: how long a certificate of that profile lives, where it is not the profile's own life.
    """

    registry: Registry
    issuer: Issuer
    domain: TrustDomain
    token_bytes: Callable[[int], bytes]
    lives: Mapping[str, timedelta] = field(default_factory=dict)
    _renewals: dict[str, RateLimit] = field(default_factory=dict)

    def enrol(
        self, token: Token, read_csr: Callable[[], Csr], now: datetime, asker: Asker = _NOBODY_KNOWN
    ) -> Issued | Waiting:
        """The first certificate of an epoch: token, certificate, outbox and audit, all or nothing.

        `read_csr` parses what the stranger sent, and is called once the token has proved to be one of ours. The same
        token and key get the same certificate again, whatever became of the first answer. A request that has to be
        approved is judged by the time at which it was first made: a token need not outlive the admin's week-end.
        Raises: TokenRefused, what `read_csr` raises, NotAllowed, TooManyWaiting, RegistryUnavailable.
        """
        with self.registry.write() as transaction:
            record = tokens.check_secret(token_rows.find_token(transaction, token.id), token)
            try:
                csr = read_csr()
            except FleetError:
                tokens.check_unspent(record, now)
                raise
            asked = Certifiable(csr, key_digest(csr.public_key))
            use = token_rows.use_of_key(transaction, record.id, asked.key)
            if use.redeemed is not None:
                return repeat(transaction, use.redeemed, csr.device)
            found = _request_of(transaction, record, asked.key, now)
            made_at = now if found is None else found.created_at
            tokens.check_unspent(record, made_at)
            principal = _entitled(transaction, record, csr.device, now, asker)
            if use.is_known:
                raise NotAllowed("this key was certified before", hint=_NEW_KEY)
            approval = self._approved(transaction, found, Wanted(csr.device, asked.key, record, asker), now)
            if isinstance(approval, Waiting):
                return approval
            if not token_rows.redeem(transaction, record.id, made_at):
                raise tokens.TokenRefused("the token was used a moment ago", hint=_ASK_AGAIN)
            return self._first(transaction, principal, asked, now, record, approval)

    def _approved(
        self, transaction: Transaction, found: ApprovalRecord | None, wanted: Wanted, now: datetime
    ) -> ApprovalRecord | Waiting | None:
        """The admin's approval, that it is waited for, or None where a token needs none."""
        if wanted.token is not None and wanted.token.approval is Approval.AUTO:
            return None
        return waiting.approved(transaction, found, wanted, now, self.token_bytes)

    def pair(self, csr: Csr, now: datetime, asker: Asker) -> Issued | Waiting:
        """The first certificate of a device that comes without a token, once an admin approved this very request.

        Whether an id is taken is told to the admin, not to strangers. The role is device, and nothing is replaced.
        Raises: NotAllowed, TooManyWaiting, RegistryUnavailable.
        """
        asked = Certifiable(csr, key_digest(csr.public_key))
        with self.registry.write() as transaction:
            found = waiting.find(transaction, asked.key, None, now)
            if found is not None and found.state is ApprovalState.ISSUED:
                assert found.certificate is not None
                return repeat_number(transaction, found.certificate, csr.device)
            approval = self._approved(transaction, found, Wanted(csr.device, asked.key, None, asker), now)
            if isinstance(approval, Waiting):
                return approval
            if identity.find_principal(transaction, csr.device) is not None:
                raise NotAllowed(f"{csr.device} has an identity already", hint=_ASK_AGAIN)
            if identity.is_key_known(transaction, asked.key):
                raise NotAllowed("this key was certified before", hint=_NEW_KEY)
            newcomer = PrincipalRecord(Principal(Role.DEVICE, csr.device), State.ACTIVE, 1, (), now)
            return self._first(transaction, newcomer, asked, now, None, approval)

    def claim(self, hardware: Hardware, csr: Csr, now: datetime) -> Issued:
        """The first certificate of a device that comes with its manufacturer's: for the id of its claim alone.

        The role is device. The same key gets the same certificate again; another one gets none, unless an admin lets
        the hardware come once more.
        Raises: NotAllowed, RegistryUnavailable.
        """
        asked = Certifiable(csr, key_digest(csr.public_key))
        with self.registry.write() as transaction:
            found = claimed(transaction, hardware, csr.device)
            use = certificate_of_key(transaction, found, asked.key)
            if use is not None:
                return repeat(transaction, use.serial, csr.device)
            principal = claimant(transaction, found, now)
            if identity.is_key_known(transaction, asked.key):
                raise NotAllowed("this key was certified before", hint=_NEW_KEY)
            source = {"manufacturer": found.manufacturer, "hardware_serial": found.hardware_serial}
            store(transaction, principal, now)
            certificate = self._certify(transaction, principal, asked, pki.PROFILES[found.profile], now)
            manufacturers.given(transaction, found, certificate.number)
            return issued(transaction, principal, certificate, now, **source)

    def _first(
        self,
        transaction: Transaction,
        principal: PrincipalRecord,
        asked: Certifiable,
        now: datetime,
        token: TokenRecord | None,
        approval: ApprovalRecord | None,
    ) -> Issued:
        """The first certificate of the principal's epoch, and what it was given for."""
        store(transaction, principal, now)
        profile = pki.CLIENT if token is None else pki.PROFILES[token.profile]
        certificate = self._certify(transaction, principal, asked, profile, now)
        source = {}
        if token is not None:
            token_rows.record_redemption(transaction, token.id, certificate.key, certificate.number, now)
            source["token"] = token.id
        if approval is not None:
            waiting.issued(transaction, approval, certificate.number, now)
            source["request"] = approval.id
        return issued(transaction, principal, certificate, now, **source)

    def reenrol(self, serial: Serial, csr: Csr, now: datetime, asker: Asker = _NOBODY_KNOWN) -> Issued:
        """The successor of the certificate that the peer came with: same names, a new key.

        Both may connect until the successor is confirmed or used to renew; a second successor ends the first. The same
        request again gets the same certificate again. Once a successor is in use, whoever asks is another device.
        Raises: NotAdmitted, NotAllowed, Forked, TooManyWaiting (it renewed too often), RegistryUnavailable.
        """
        asked = Certifiable(csr, key_digest(csr.public_key))
        with self.registry.write() as transaction:
            outcome = self._reenrol(transaction, serial, asked, now, asker)
        if isinstance(outcome, Forked):  # only now: the alarm must stay
            raise outcome
        return outcome

    def _paced(self, profile: pki.Profile) -> RateLimit:
        """What bounds the renewals of one principal: so many an hour, or a life where that is shorter."""
        window = min(_LONGEST_WINDOW, self.lives.get(profile.name, profile.life)).total_seconds()
        return self._renewals.setdefault(profile.name, RateLimit(RENEWALS_PER_WINDOW, window))

    def _reenrol(
        self, transaction: Transaction, serial: Serial, asked: Certifiable, now: datetime, asker: Asker
    ) -> Issued | Forked:
        record = admission.holder(transaction, serial).record
        if asked.csr.device != record.id:
            raise NotAllowed(f"a certificate of {record.id} cannot ask for {asked.csr.device}", hint="keep the id")
        live = identity.live_certificates_of(transaction, record.id)
        for certificate in live:
            if certificate.key == asked.key and certificate.parent == serial:
                return given(record, certificate, is_repeated=True)
        peer = lineage.admit_to_renew(transaction, serial, asker, now)
        if isinstance(peer, Forked):
            return peer
        if identity.is_key_known(transaction, asked.key):
            if lineage.was_replaced(transaction, peer, asked.key):
                return lineage.freeze(transaction, peer, asker, now)
            raise NotAllowed("this key was certified before", hint=_NEW_KEY)
        renewals = self._paced(pki.PROFILES[peer.certificate.profile])
        if seconds := renewals.retry_after(record.id, now.timestamp()):
            raise TooManyWaiting(f"{record.id} has renewed {RENEWALS_PER_WINDOW} times of late", seconds=seconds)
        renewals.count(record.id, now.timestamp())
        return self.succeed(transaction, peer, live, asked, now, asker)

    def succeed(
        self,
        transaction: Transaction,
        peer: Peer,
        live: list[CertificateRecord],
        asked: Certifiable,
        now: datetime,
        asker: Asker = _NOBODY_KNOWN,
        **source: str,
    ) -> Issued:
        """The successor of what `peer` came with, in the caller's transaction; of the others in `live` each ends."""
        used, profile = peer.certificate, pki.PROFILES[peer.certificate.profile]
        ended = [certificate.serial for certificate in live if certificate.serial != used.serial]
        revocations.supersede(transaction, ended, now)
        lineage.note_use(transaction, used, asker, now)
        generation = 1 + lineage_rows.last_generation(transaction, peer.record.id, peer.record.epoch)
        certificate = self._certify(transaction, peer.record, asked, profile, now, used.serial, generation)
        lineage.note_origin(transaction, peer, certificate.serial, asker, now)
        return issued(transaction, peer.record, certificate, now, parent=used.serial, **source)

    def _certify(
        self,
        transaction: Transaction,
        principal: PrincipalRecord,
        asked: Certifiable,
        profile: pki.Profile,
        now: datetime,
        parent: Serial | None = None,
        generation: int = 1,
    ) -> CertificateRecord:
        order = Order(
            profile,
            client_names(self.domain, principal.principal),
            asked.csr.public_key,
            asked.key,
            principal.id,
            principal.epoch,
            generation,
            parent,
            CertificateState.CONFIRMED if parent is None else CertificateState.PENDING,
            self.lives.get(profile.name),
        )
        return certify(transaction, self.issuer, order, now=now, token_bytes=self.token_bytes)


def _request_of(transaction: Transaction, token: TokenRecord, key: bytes, now: datetime) -> ApprovalRecord | None:
    return waiting.find(transaction, key, token.id, now) if token.approval is Approval.MANUAL else None


def _entitled(
    transaction: Transaction, token: TokenRecord, device: DeviceId, now: datetime, asker: Asker
) -> PrincipalRecord:
    """The principal as it will be once the token was redeemed. Raises: NotAllowed."""
    if not tokens.allows_from(token, asker.address):
        networks = " and ".join(token.sources)
        raise NotAllowed(f"the token is not taken from {asker.address}", hint=f"it is for {networks}")
    if not tokens.allows(token, device):
        raise NotAllowed(f"the token is not for {device}", hint="ask for one: enroll token create --device " + device)
    found = identity.find_principal(transaction, device)
    if found is None:
        return PrincipalRecord(Principal(token.role, device), State.ACTIVE, 1, token.groups, now)
    if found.principal.role is not token.role:
        raise NotAllowed(
            f"{device} is of role {found.principal.role}, and an id never changes role", hint="take another id"
        )
    if not token.replace:
        hint = f"enroll token create --device {device} --replace gives its name to a new key"
        raise NotAllowed(f"{device} has an identity already ({found.state})", hint=hint)
    if found.state is State.SUSPENDED:
        raise NotAllowed(f"{device} is suspended", hint=f"enroll device resume {device}")
    return replace(found, state=State.ACTIVE, epoch=found.epoch + 1, groups=token.groups or found.groups)
