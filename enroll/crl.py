"""Certificate revocation lists (RFC 5280, section 5): when one is due, and what it says (pure).

A list is replaced when half of its life has passed, so that one that cannot be made on time is still good for days: an
expired one locks everybody out who is checked against it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final, Protocol

from cryptography import x509

from enroll.issuer import Misissued, authority_key
from enroll.registry.records import Reason, Revocation

LIFE: Final = timedelta(days=7)
ROOT_LIFE: Final = timedelta(days=365)
"""The root's key is kept away; CA/B Forum's Baseline Requirements (4.9.7) let a root's list live as long."""
BACKDATE: Final = timedelta(minutes=10)
"""For verifiers whose clock is behind ours; as Active Directory's CA does (`ClockSkewMinutes`)."""

_FLAGS: Final = {reason: x509.CRLReason(x509.ReasonFlags(reason.value)) for reason in Reason}
_LINES_KEPT: Final = 20_000
"""Two full shards: a line of the last list is not encoded anew for the next, which is most of the work."""
_MILLISECOND: Final = timedelta(milliseconds=1)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class CrlSigner(Protocol):
    """A CA: its certificate, and its key for this one purpose."""

    @property
    def certificate(self) -> x509.Certificate: ...

    def sign_crl(self, builder: x509.CertificateRevocationListBuilder) -> x509.CertificateRevocationList:
        """The list in `builder`, signed."""


@dataclass(frozen=True, slots=True)
class Issue:
    """What tells one issue of a list from the next."""

    number: int
    this_update: datetime
    next_update: datetime

    def is_due(self, now: datetime) -> bool:
        """Whether its successor has to be made: half of the life has passed, or the clock says that it has not begun.

        A list that was made while a clock was wrong may be good for years; it is replaced as soon as any other.
        """
        half = min(LIFE, self.next_update - self.this_update) / 2
        return not self.this_update <= now < self.this_update + half or self.next_update - now <= half

    def keeps(self, now: datetime) -> datetime:
        """What has to stand on its successor: certificates that end at this moment or later.

        So a line stays until it was on one list after its certificate's end (RFC 5280, 3.3). A list from a future that
        the clock has left tells nothing.
        """
        return min(self.this_update, now)


EVERYTHING: Final = datetime(1970, 1, 1, tzinfo=UTC)
"""`Issue.keeps` of no issue."""


def next_issue(previous: Issue | None, now: datetime, life: timedelta = LIFE) -> Issue:
    """The issue to be made now. Numbers only rise: they are the time, as Boulder's are, unless that went back.

    A clock that is behind the previous issue is wrong now, or was then: the list is good from the one to the other.
    """
    begin = (now - BACKDATE).replace(microsecond=0)
    number, end = (now - _EPOCH) // _MILLISECOND, now.replace(microsecond=0) + life
    if previous is None:
        return Issue(max(number, 1), begin, end)
    return Issue(max(number, previous.number + 1), begin, max(end, previous.this_update + BACKDATE + life))


def build(
    signer: CrlSigner, issue: Issue, lines: Iterable[Revocation], url: str | None = None
) -> x509.CertificateRevocationList:
    """The list with these lines. With `url` it is a shard: it speaks for the certificates alone that name that URL.

    Time and memory grow with the lines, not with their square: the builder's `add_revoked_certificate` copies all that
    it has each time, its constructor does not. Raises: Misissued.
    """
    builder = x509.CertificateRevocationListBuilder(revoked_certificates=list(map(_line, lines)))
    builder = (
        builder.issuer_name(signer.certificate.subject)
        .last_update(issue.this_update)
        .next_update(issue.next_update)
        .add_extension(authority_key(signer.certificate), critical=False)
        .add_extension(x509.CRLNumber(issue.number), critical=False)
    )
    if url is not None:
        builder = builder.add_extension(_scope(url), critical=True)
    signed = signer.sign_crl(builder)
    key = signer.certificate.public_key()
    if not signed.is_signature_valid(key):  # type: ignore[arg-type] # a key of ours: EC, Ed25519 or RSA
        raise Misissued("the CRL that was signed does not verify", hint="the CA's key and certificate do not fit")
    return signed


def _scope(url: str) -> x509.IssuingDistributionPoint:
    """RFC 5280, 5.2.5: the name is word for word the one in the certificates."""
    return x509.IssuingDistributionPoint(
        full_name=[x509.UniformResourceIdentifier(url)],
        relative_name=None,
        only_contains_user_certs=True,
        only_contains_ca_certs=False,
        only_some_reasons=None,
        indirect_crl=False,
        only_contains_attribute_certs=False,
    )


@lru_cache(_LINES_KEPT)
def _line(line: Revocation) -> x509.RevokedCertificate:
    """RFC 5280, 5.3.1: an unspecified reason is left out."""
    builder = x509.RevokedCertificateBuilder().serial_number(int(line.serial, 16)).revocation_date(line.at)
    return (builder if line.reason is None else builder.add_extension(_FLAGS[line.reason], critical=False)).build()


def issue_of(crl: x509.CertificateRevocationList) -> Issue:
    """Which issue a list is. Raises: ValueError (none of ours)."""
    try:
        number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound as error:
        raise ValueError("a CRL without a number") from error
    if crl.next_update_utc is None:
        raise ValueError("a CRL without an end")
    return Issue(number, crl.last_update_utc, crl.next_update_utc)
