"""What signs certificates: a profile, a key and names become a certificate, checked before anyone gets it.

The first leaf of a profile is checked whole; of those that follow what differs from it, and their signatures.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import NameOID

from enroll.keys import Signer
from enroll.leaf import Form, Leaf
from fleet import pki
from fleet.errors import FleetError, InvalidInput
from fleet.identity import Principal, Server, Signatory, TrustDomain, principal_uri, server_uri, signatory_uri
from fleet.pki import Profile, PublicKey

MAX_COMMON_NAME_CHARS = 64  # X.520, ub-common-name


class IssuerEnding(FleetError):
    """The issuing CA ends too soon for what it would sign."""


class Misissued(FleetError):
    """What was signed is not what its profile says; nobody gets it."""


@dataclass(frozen=True, slots=True)
class Names:
    """What a leaf is called: its common name and subject alternative names."""

    common_name: str
    alternatives: tuple[x509.GeneralName, ...]


def client_names(domain: TrustDomain, principal: Principal) -> Names:
    """The names of a principal: its id, and its SPIFFE id."""
    return Names(principal.id, (x509.UniformResourceIdentifier(principal_uri(domain, principal)),))


def server_names(domain: TrustDomain, server: Server, hosts: Sequence[str]) -> Names:
    """The names of a server: its DNS names and addresses, and the SPIFFE id that says which of the servers it is."""
    common_name = hosts[0] if len(hosts[0]) <= MAX_COMMON_NAME_CHARS else server.value
    uri = x509.UniformResourceIdentifier(server_uri(domain, server))
    return Names(common_name, (*map(_host_name, hosts), uri))


def signatory_names(domain: TrustDomain, signatory: Signatory) -> Names:
    """The names of a signing key: what it signs, and its SPIFFE id."""
    return Names(signatory.value, (x509.UniformResourceIdentifier(signatory_uri(domain, signatory)),))


def _host_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def serial_number(random_bytes: bytes) -> int:
    """A serial from 20 random bytes: positive, 159 bits (RFC 5280, 4.1.2.2; as `x509.random_serial_number`)."""
    if len(random_bytes) != 20:
        raise ValueError("20 bytes are needed")
    return max(1, int.from_bytes(random_bytes) >> 1)


class Issuer:
    """An issuing CA with its key. `name` tells the CAs of a fleet apart: `devices`, `servers`."""

    def __init__(self, name: str, certificate: x509.Certificate, signer: Signer, crl_url: str) -> None:
        self.name = name
        self.certificate = certificate
        self._signer = signer
        self._crl_url = crl_url.rstrip("/")
        self._public_key = pki.check_public_key(certificate.public_key())
        self._forms: dict[Profile, Form] = {}

    def issue(
        self,
        profile: Profile,
        key: PublicKey,
        names: Names,
        *,
        serial: int,
        shard: int,
        now: datetime,
        life: timedelta | None = None,
    ) -> x509.Certificate:
        """A leaf of `profile`; all that is in it but key and names comes from here, nothing from a request.

        Raises: IssuerEnding, Misissued, WeakKey.
        """
        self._check_remaining(profile, now)
        leaf = Leaf(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names.common_name)]),
            key,
            serial,
            *_validity(self.certificate, profile, now, life or profile.life),
            x509.SubjectAlternativeName(names.alternatives),
            _distribution_points(self.crl_url(shard)),
        )
        _check_own(leaf)
        form = self._forms.get(profile)
        if form is not None:
            return self._filled(form, leaf)
        builder = _of_profile(profile).issuer_name(self.certificate.subject)
        builder = builder.add_extension(authority_key(self.certificate), critical=False)
        first = checked(self._signer.sign(leaf.built(builder)), profile, self.certificate)
        self._forms[profile] = Form(first)
        return first

    def _filled(self, form: Form, leaf: Leaf) -> x509.Certificate:
        """A certificate like the one that was checked. Raises: Misissued."""
        to_be_signed = form.to_be_signed(leaf)
        signature = self._signer.sign_bytes(to_be_signed)
        if not pki.is_signed(self._public_key, to_be_signed, signature):
            raise _not_verified()
        return form.signed(to_be_signed, signature)

    def crl_url(self, shard: int) -> str:
        """Where the CRL of a shard is: what its certificates say, and the CRL itself."""
        return f"{self._crl_url}/{shard}.crl"

    def sign_crl(self, builder: x509.CertificateRevocationListBuilder) -> x509.CertificateRevocationList:
        """The list in `builder`, signed."""
        return self._signer.sign_crl(builder)

    def _check_remaining(self, profile: Profile, now: datetime) -> None:
        if self.certificate.not_valid_after_utc - now < 2 * profile.max_life:
            raise IssuerEnding(
                f"the {self.name} CA ends on {self.certificate.not_valid_after_utc:%Y-%m-%d} and issues no more",
                hint="its successor has to take over",
            )


@lru_cache(maxsize=4)  # the shard that is being filled, and the servers'
def _distribution_points(url: str) -> x509.CRLDistributionPoints:
    return x509.CRLDistributionPoints([x509.DistributionPoint([x509.UniformResourceIdentifier(url)], None, None, None)])


def _of_profile(profile: Profile) -> x509.CertificateBuilder:
    """A builder with what every certificate of a profile has."""
    builder = x509.CertificateBuilder().add_extension(
        x509.BasicConstraints(ca=profile.is_ca, path_length=profile.path_length), critical=True
    )
    builder = builder.add_extension(pki.key_usage(profile), critical=True)
    if profile.extended_key_usage is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([profile.extended_key_usage]), critical=False)
    return builder


def issue_root(signer: Signer, common_name: str, *, serial: int, now: datetime) -> x509.Certificate:
    """A self-signed root. Raises: Misissued."""
    return _issue_ca(pki.ROOT, signer, signer.public_key, common_name, None, serial=serial, now=now)


def issue_ca(
    profile: Profile,
    root: x509.Certificate,
    root_signer: Signer,
    key: PublicKey,
    common_name: str,
    *,
    serial: int,
    now: datetime,
) -> x509.Certificate:
    """An issuing CA under `root`. Raises: Misissued."""
    return _issue_ca(profile, root_signer, key, common_name, root, serial=serial, now=now)


def _issue_ca(
    profile: Profile,
    signer: Signer,
    key: PublicKey,
    common_name: str,
    parent: x509.Certificate | None,
    *,
    serial: int,
    now: datetime,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    begin, end = _validity(parent, profile, now, profile.life)
    builder = _of_profile(profile).not_valid_before(begin).not_valid_after(end)
    builder = builder.subject_name(subject).public_key(key).serial_number(serial)
    builder = builder.issuer_name(parent.subject if parent else subject)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    if parent is not None:
        builder = builder.add_extension(authority_key(parent), critical=False)
    certificate = signer.sign(builder)
    return checked(certificate, profile, parent or certificate)


def check_lives(lives: Mapping[str, timedelta]) -> None:
    """Raises: InvalidInput for a life that no certificate of that profile may have, or for no client's profile."""
    for name, life in lives.items():
        if name not in (pki.CLIENT.name, pki.TEST_CLIENT.name):
            raise InvalidInput(f"fleet.toml: no client profile {name[:40]!r}", hint="enroll.life has client and test")
        profile = pki.PROFILES[name]
        if not profile.min_life <= life <= profile.max_life:
            raise InvalidInput(
                f"fleet.toml: enroll.life.{name} is {life}", hint=f"from {profile.min_life} to {profile.max_life}"
            )


def _validity(
    issuer: x509.Certificate | None, profile: Profile, now: datetime, life: timedelta
) -> tuple[datetime, datetime]:
    """When a certificate begins and ends: life counts from issuance, and lies within the issuer's."""
    if not profile.min_life <= life <= profile.max_life:
        raise FleetError(f"a {profile.name} certificate lives {profile.min_life} to {profile.max_life}, not {life}")
    begin, end = now - profile.backdate_of(life), now + life
    if issuer is not None:
        begin = max(begin, issuer.not_valid_before_utc)
        end = min(end, issuer.not_valid_after_utc)
    return begin.replace(microsecond=0), end.replace(microsecond=0)


def checked(certificate: x509.Certificate, profile: Profile, issuer: x509.Certificate) -> x509.Certificate:
    """`certificate`, after its signature and profile were verified. Raises: Misissued."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise _not_verified() from error
    if problems := pki.violations(certificate, profile):
        raise Misissued(f"what was signed is not of profile {profile.name}: {'; '.join(problems)}")
    return certificate


def _check_own(leaf: Leaf) -> None:
    """That what differs from leaf to leaf may be in one. Raises: Misissued, WeakKey."""
    pki.check_public_key(leaf.key)
    if not pki.is_serial(leaf.serial):
        raise Misissued(pki.WRONG_SERIAL)
    if not leaf.not_before < leaf.not_after:
        raise Misissued(f"it would end at {leaf.not_after} and begin at {leaf.not_before}", hint="check the clock")


def _not_verified() -> Misissued:
    return Misissued("what was signed does not verify", hint="the CA's key and certificate do not fit")


def authority_key(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """What names the key that `issuer` signs with (RFC 5280, 4.2.1.1)."""
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
