"""A fleet's CAs for tests, and certificates of every kind that ours never issue: expired, foreign, misused."""

from __future__ import annotations

import secrets
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from enroll import authority, keys
from enroll.authority import NewAuthority
from enroll.issuer import Issuer, Names, client_names, issue_ca, serial_number, server_names
from fleet import pki
from fleet.identity import DeviceId, Principal, Role, Serial, Server, TrustDomain
from fleet.layout import IdentityFiles

DOMAIN = TrustDomain("acme.example")
HOSTS = ("127.0.0.1", "localhost")
_CRL_URL = "http://127.0.0.1:8080/crl"


@dataclass(frozen=True, slots=True)
class Identity:
    """A certificate with its key, in files."""

    principal: Principal
    serial: Serial
    files: IdentityFiles

    @property
    def id(self) -> DeviceId:
        return self.principal.id


class TestFleet:
    """One fleet's authority, made some time ago so that certificates may have expired since."""

    __test__ = False  # pytest: not a test in spite of its name

    def __init__(self, folder: Path, age: timedelta = timedelta(days=30)) -> None:
        self._folder = folder
        self._made: NewAuthority = authority.create(
            DOMAIN, _CRL_URL, now=datetime.now(UTC) - age, token_bytes=secrets.token_bytes
        )
        self.root_file = self._write("root.pem", pem(self._made.authority.root))
        self.trust_file = self._write(
            "trust.pem", pem(self._made.authority.root, self._made.authority.devices.certificate)
        )

    def _write(self, name: str, data: bytes) -> Path:
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_bytes(data)
        return path

    def client(
        self,
        id: str,
        role: Role = Role.DEVICE,
        *,
        issued: timedelta = timedelta(0),
        life: timedelta | None = None,
        profile: pki.Profile = pki.CLIENT,
    ) -> Identity:
        """A principal's certificate, issued so long after (or before) now."""
        principal = Principal(role, DeviceId(id))
        return self._issue(
            self._made.authority.devices, profile, client_names(DOMAIN, principal), principal, issued, life
        )

    def client_of_another_ca(self, id: str) -> Identity:
        """A device's certificate by a CA for clients that our root has signed, and nobody was told of."""
        signer, root_signer = keys.KeySigner(keys.new_key()), keys.KeySigner(self._made.root_key)
        certificate = issue_ca(
            pki.DEVICES_CA,
            self._made.authority.root,
            root_signer,
            signer.public_key,
            "another ca",
            serial=serial_number(secrets.token_bytes(20)),
            now=datetime.now(UTC),
        )
        principal = Principal(Role.DEVICE, DeviceId(id))
        issuer = Issuer("another", certificate, signer, _CRL_URL)
        return self._issue(issuer, pki.CLIENT, client_names(DOMAIN, principal), principal, timedelta(0), None)

    def signed_by_a_device(self, id: str, signer: Identity) -> Identity:
        """A certificate that a device made with its own, as if that were a CA's."""
        pretended = self.client(id)
        leaf, above = (load_leaf(identity) for identity in (pretended, signer))
        builder = (
            x509.CertificateBuilder()
            .subject_name(leaf.subject)
            .issuer_name(above.subject)
            .public_key(leaf.public_key())
            .serial_number(leaf.serial_number)
            .not_valid_before(leaf.not_valid_before_utc)
            .not_valid_after(leaf.not_valid_after_utc)
        )
        for extension in leaf.extensions:
            if not isinstance(extension.value, x509.AuthorityKeyIdentifier):
                builder = builder.add_extension(extension.value, extension.critical)
        of_signer = above.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(of_signer), critical=False
        )
        forged = keys.KeySigner(keys.read_key(signer.files.key)).sign(builder)
        chain = (above, self._made.authority.devices.certificate)
        return self.store(pretended.principal, forged, pretended.files.key.read_bytes(), chain)

    def server(self, server: Server) -> Identity:
        """A server's certificate; its principal is only a name for it."""
        names = server_names(DOMAIN, server, HOSTS)
        principal = Principal(Role.BROKER, DeviceId(f"{server.value}-server"))
        return self._issue(self._made.authority.servers, pki.SERVER, names, principal, timedelta(0), None)

    def named(self, common_name: str) -> Identity:
        """A client certificate whose subject is any text: what a careless CA might sign."""
        names = client_names(DOMAIN, Principal(Role.DEVICE, DeviceId("careless")))
        issuer = self._made.authority.devices
        careless = _CarelessIssuer(issuer, keys.KeySigner(self._made.devices_key))
        return careless.issue(self, common_name, names)

    def authority_itself(self) -> Identity:
        """The devices CA's own certificate and key, used as if they were a client's."""
        certificate = self._made.authority.devices.certificate
        principal = Principal(Role.DEVICE, DeviceId("devices"))
        return self.store(principal, certificate, keys.encode_key(self._made.devices_key), ())

    def _issue(
        self,
        issuer: Issuer,
        profile: pki.Profile,
        names: Names,
        principal: Principal,
        issued: timedelta,
        life: timedelta | None,
    ) -> Identity:
        key, number = keys.new_key(), serial_number(secrets.token_bytes(20))
        leaf = issuer.issue(
            profile, key.public_key(), names, serial=number, shard=1, now=datetime.now(UTC) + issued, life=life
        )
        return self.store(principal, leaf, keys.encode_key(key), (issuer.certificate,))

    def store(
        self, principal: Principal, leaf: x509.Certificate, key: bytes, chain: tuple[x509.Certificate, ...]
    ) -> Identity:
        """Write the two files of an identity."""
        folder = f"{principal.id}-{pki.serial_of(leaf)[:12]}"
        certificate = self._write(f"{folder}/cert.pem", pem(leaf, *chain))
        return Identity(
            principal, pki.serial_of(leaf), IdentityFiles(certificate, self._write(f"{folder}/key.pem", key))
        )


@dataclass(frozen=True, slots=True)
class _CarelessIssuer:
    issuer: Issuer
    signer: keys.KeySigner

    def issue(self, fleet: TestFleet, common_name: str, names: Names) -> Identity:
        good = fleet.client("careless")
        leaf = x509.load_pem_x509_certificate(good.files.certificate.read_bytes())
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)]))
            .issuer_name(leaf.issuer)
            .public_key(leaf.public_key())
            .serial_number(leaf.serial_number)
            .not_valid_before(leaf.not_valid_before_utc)
            .not_valid_after(leaf.not_valid_after_utc)
        )
        for extension in leaf.extensions:
            builder = builder.add_extension(extension.value, extension.critical)
        signed = self.signer.sign(builder)
        return fleet.store(good.principal, signed, good.files.key.read_bytes(), (self.issuer.certificate,))


def load_leaf(identity: Identity) -> x509.Certificate:
    """The certificate of an identity."""
    return x509.load_pem_x509_certificate(identity.files.certificate.read_bytes())


def pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def client_context(root_file: Path, identity: Identity | None) -> ssl.SSLContext:
    """What a device uses: the root alone as anchor, its leaf and issuing certificate shown."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(root_file)
    if identity is not None:
        context.load_cert_chain(identity.files.certificate, identity.files.key)
    return context
