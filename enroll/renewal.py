"""The fleet's own certificates are renewed before they end, and put into use without a restart.

Each is renewed when a third of its life is left, with a new key. The one before stays good until it ends by itself or
the next renewal, so whoever still shows it is let in.

    mkdir(NAME-N), write and fsync key and certificate, fsync(NAME-N), commit, symlink(.NAME.next), rename it to NAME

Ended at any point, the old one is in use and the next attempt makes a new one; a certificate that was committed and
never used is superseded by it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509

from enroll import authority
from enroll.authority import Authority
from enroll.own_identities import Maker, OwnIdentity, number_in_use, own_identities, signing_identity, use
from enroll.registry import Registry, Transaction, identity, revocations
from enroll.registry.records import CertificateRecord, CertificateState
from fleet import pki
from fleet.config import FleetConfig
from fleet.errors import FleetError, NotFound
from fleet.identity import Principal, State
from fleet.layout import AdminHome, decode_credential
from fleet.logs import event

CHECK_SECONDS: Final = 60.0
_REMAINING_WHEN_DUE: Final = 1 / 3
_REMAINING_WHEN_ALARMING: Final = 0.15

_log = logging.getLogger(__name__)


def is_due(certificate: x509.Certificate, now: datetime) -> bool:
    """Whether a third of the life, or less, is left."""
    return _remaining(certificate, now) <= _REMAINING_WHEN_DUE


def _remaining(certificate: x509.Certificate, now: datetime) -> float:
    life: timedelta = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    return (certificate.not_valid_after_utc - now) / life


@dataclass(frozen=True, slots=True)
class Renewal:
    """Renews what is due; what cannot be renewed now is told, and tried again the next time."""

    home: AdminHome
    config: FleetConfig
    registry: Registry
    authority: Authority
    token_bytes: Callable[[int], bytes]

    def renew_due(self, now: datetime) -> list[OwnIdentity]:
        """Renew every own identity that is due; those that were. Told in the log, errors too."""
        return [own for own in own_identities(self.home) if self._renew_if_due(own, now)]

    def make_missing(self, now: datetime) -> None:
        """The key that dispatch signs with, in a home that was made before there was one. Told in the log.

        Without it nothing is sent to devices: to send it unsigned would be what an attacker wants.
        """
        own = signing_identity(self.home)
        if own.link.is_symlink():
            return
        try:
            with self.registry.write() as transaction:
                maker = Maker(transaction, self.authority, self.config, "", now, self.token_bytes)
                made = maker.make(own, 1)
            use(own, 1)
        except (FleetError, OSError) as error:
            reason = error.message if isinstance(error, FleetError) else error
            _log.error(event("identity.not_made", name=own.name, reason=reason))
            return
        _log.info(event("identity.made", name=own.name, serial=made.serial, not_after=made.not_after.date()))

    def _renew_if_due(self, own: OwnIdentity, now: datetime) -> bool:
        remaining = 0.0
        try:
            certificate = authority.read_certificate(own.link / "cert.pem")
            if not is_due(certificate, now):
                return False
            remaining = _remaining(certificate, now)
            self._renew(own, certificate, now)
        except (FleetError, OSError, ValueError) as error:
            level = logging.ERROR if remaining < _REMAINING_WHEN_ALARMING else logging.WARNING
            reason = error.message if isinstance(error, FleetError) else error
            _log.log(level, event("identity.not_renewed", name=own.name, remaining=f"{remaining:.0%}", reason=reason))
            return False
        return True

    def _renew(self, own: OwnIdentity, certificate: x509.Certificate, now: datetime) -> None:
        number = number_in_use(own) + 1
        with self.registry.write() as transaction:
            parent = _parent(transaction, own, certificate, now)
            maker = Maker(transaction, self.authority, self.config, self._enroll_url(own), now, self.token_bytes)
            made = maker.make(own, number, parent)
        use(own, number)
        _log.info(event("identity.renewed", name=own.name, serial=made.serial, not_after=made.not_after.date()))

    @staticmethod
    def _enroll_url(own: OwnIdentity) -> str:
        """What the agent's home says already; elsewhere nobody asks."""
        return decode_credential((own.link / "meta.json").read_bytes()).enroll_url if own.is_agent_home else ""


def _parent(
    transaction: Transaction, own: OwnIdentity, certificate: x509.Certificate, now: datetime
) -> CertificateRecord | None:
    """The registry's record of what a principal has now; a successor of it that was never used ends.

    Raises: NotFound, FleetError (it may not connect, and so has no successor).
    """
    if not isinstance(own.holder, Principal):
        return None
    record = identity.find_certificate(transaction, pki.serial_of(certificate))
    holder = identity.find_principal(transaction, own.holder.id)
    if record is None or holder is None:
        raise NotFound(f"the registry does not know this certificate of {own.holder}", hint="restore both together")
    if own.state is CertificateState.REVOKED:
        return record
    if holder.state is not State.ACTIVE:
        raise FleetError(f"{own.holder} is {holder.state}", hint=f"enroll device resume {own.holder.id}")
    live = {each.serial: each for each in identity.live_certificates_of(transaction, own.holder.id)}
    if record.serial not in live:
        raise FleetError(f"the certificate of {own.holder} was ended", hint="enroll device show tells when")
    ended = [serial for serial in live if serial != record.serial]
    revocations.supersede(transaction, ended, now)
    identity.set_certificate_states(transaction, [record.serial], CertificateState.CONFIRMED)
    return record
