"""Certificates for principals: the first one for a token, the next one for the one in use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

from enroll import audit, tokens
from enroll.issuer import Issuer, client_names
from enroll.registry import Registry, Transaction, feed, identity
from enroll.registry import tokens as token_rows
from enroll.registry.records import LIVE, CertificateRecord, CertificateState, PrincipalRecord, TokenRecord
from enroll.service.admission import Peer, admit
from enroll.service.certification import Order, certify, key_digest
from fleet import pki
from fleet.errors import Denied, FleetError
from fleet.est import Csr
from fleet.identity import DeviceId, Principal, Serial, State, TrustDomain
from fleet.join import Token

_ASK_AGAIN: Final = "ask for a new one: enroll token create"
_NEW_KEY: Final = "make a new key and request; a key is certified once"


class NotAllowed(Denied):
    """Whoever asks is known, and may not have this: HTTP 403."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate for whoever asked. `is_repeated`: the same key was given it before."""

    principal: Principal
    serial: Serial
    generation: int
    not_after: datetime
    is_repeated: bool
    der: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks, as far as the connection tells: the peer's address."""

    address: str = ""


_NOBODY_KNOWN: Final = Asker()


@dataclass(frozen=True, slots=True)
class _Certifiable:
    """A request, and the digest of its key, which is looked up and stored."""

    csr: Csr
    key: bytes


@dataclass(frozen=True, slots=True)
class Enrolment:
    """The use cases that sign; each is one transaction. Safe to use from several threads."""

    registry: Registry
    issuer: Issuer
    domain: TrustDomain
    token_bytes: Callable[[int], bytes]

    def enrol(
        self, token: Token, read_csr: Callable[[], Csr], now: datetime, asker: Asker = _NOBODY_KNOWN
    ) -> Issued:
        """The first certificate of an epoch: token, certificate, outbox and audit, all or nothing.

        `read_csr` parses what the stranger sent, and is called once the token has proved to be one of ours. The same
        token and key get the same certificate again, whatever became of the first answer.
        Raises: TokenRefused, what `read_csr` raises, NotAllowed, RegistryUnavailable.
        """
        with self.registry.write() as transaction:
            record = tokens.check_secret(token_rows.find_token(transaction, token.id), token)
            try:
                csr = read_csr()
            except FleetError:
                tokens.check_unspent(record, now)
                raise
            key = key_digest(csr.public_key)
            use = token_rows.use_of_key(transaction, record.id, key)
            if use.redeemed is not None:
                return _repeat(transaction, use.redeemed, csr.device)
            tokens.check_unspent(record, now)
            if not tokens.allows_from(record, asker.address):
                raise NotAllowed(f"the token is not taken from {asker.address}", hint=f"it is for {_networks(record)}")
            principal = _entitled(transaction, record, csr.device, now)
            if use.is_known:
                raise NotAllowed("this key was certified before", hint=_NEW_KEY)
            return self._redeem(transaction, record, principal, _Certifiable(csr, key), now)

    def _redeem(
        self,
        transaction: Transaction,
        token: TokenRecord,
        principal: PrincipalRecord,
        asked: _Certifiable,
        now: datetime,
    ) -> Issued:
        if not token_rows.redeem(transaction, token.id, now):
            raise tokens.TokenRefused("the token was used a moment ago", hint=_ASK_AGAIN)
        _store(transaction, principal)
        profile = pki.PROFILES[token.profile]
        certificate = self._certify(transaction, principal, asked, profile, now)
        token_rows.record_redemption(transaction, token.id, certificate.key, certificate.number, now)
        return _issued(transaction, principal, certificate, now, token=token.id)

    def reenrol(self, serial: Serial, csr: Csr, now: datetime) -> Issued:
        """The successor of the certificate that the peer came with: same names, a new key.

        Both may connect until the successor is used to renew; a second successor ends the first. The same request
        again gets the same certificate again.
        Raises: NotAdmitted, NotAllowed, RegistryUnavailable.
        """
        key = key_digest(csr.public_key)
        with self.registry.write() as transaction:
            peer = admit(transaction, serial)
            if csr.device != peer.record.id:
                raise NotAllowed(f"a certificate of {peer.record.id} cannot ask for {csr.device}", hint="keep the id")
            live = identity.live_certificates_of(transaction, peer.record.id)
            for certificate in live:
                if certificate.key == key and certificate.parent == serial:
                    return _given(peer.record, certificate, is_repeated=True)
            if identity.is_key_known(transaction, key):
                raise NotAllowed("this key was certified before", hint=_NEW_KEY)
            return self._succeed(transaction, peer, live, _Certifiable(csr, key), now)

    def _succeed(
        self, transaction: Transaction, peer: Peer, live: list[CertificateRecord], asked: _Certifiable, now: datetime
    ) -> Issued:
        used = peer.certificate
        ended = [certificate.serial for certificate in live if certificate.serial != used.serial]
        identity.set_certificate_states(transaction, ended, CertificateState.SUPERSEDED)
        identity.set_certificate_states(transaction, [used.serial], CertificateState.CONFIRMED)
        generation = 1 + max(certificate.generation for certificate in live)
        profile = pki.PROFILES[used.profile]
        certificate = self._certify(transaction, peer.record, asked, profile, now, used.serial, generation)
        return _issued(transaction, peer.record, certificate, now, parent=used.serial)

    def _certify(
        self,
        transaction: Transaction,
        principal: PrincipalRecord,
        asked: _Certifiable,
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
        )
        return certify(transaction, self.issuer, order, now=now, token_bytes=self.token_bytes)


def _networks(token: TokenRecord) -> str:
    return " and ".join(token.sources)


def _repeat(transaction: Transaction, serial: Serial, device: DeviceId) -> Issued:
    """What the token gave to this key before, unless it was ended since."""
    certificate = identity.find_certificate(transaction, serial)
    assert certificate is not None
    principal = identity.find_principal(transaction, device)
    if principal is None or certificate.principal != device:
        raise NotAllowed(f"this token and key were used for {certificate.principal}", hint=_ASK_AGAIN)
    if certificate.state not in LIVE or principal.state is not State.ACTIVE:
        raise NotAllowed(f"the certificate that this token gave {device} was ended since", hint=_ASK_AGAIN)
    return _given(principal, certificate, is_repeated=True)


def _entitled(transaction: Transaction, token: TokenRecord, device: DeviceId, now: datetime) -> PrincipalRecord:
    """The principal as it will be once the token was redeemed. Raises: NotAllowed."""
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


def _store(transaction: Transaction, principal: PrincipalRecord) -> None:
    """Add the principal, or begin its next epoch: what its predecessor held ends."""
    if principal.epoch == 1:
        identity.add_principal(transaction, principal)
        return
    ended = [certificate.serial for certificate in identity.live_certificates_of(transaction, principal.id)]
    identity.set_certificate_states(transaction, ended, CertificateState.REVOKED)
    identity.update_principal(transaction, principal)


def _issued(
    transaction: Transaction, principal: PrincipalRecord, certificate: CertificateRecord, now: datetime, **source: str
) -> Issued:
    feed.announce(transaction, principal.id)
    audit.record(
        transaction,
        now,
        "certificate.issued",
        principal=str(principal.principal),
        serial=certificate.serial,
        epoch=certificate.epoch,
        generation=certificate.generation,
        key=certificate.key.hex(),
        **source,
    )
    return _given(principal, certificate, is_repeated=False)


def _given(principal: PrincipalRecord, certificate: CertificateRecord, *, is_repeated: bool) -> Issued:
    return Issued(
        principal.principal,
        certificate.serial,
        certificate.generation,
        certificate.not_after,
        is_repeated,
        certificate.der,
    )
