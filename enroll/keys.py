"""Private keys: made here, kept in files that only their owner reads, used through `Signer`."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final, Protocol

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from fleet import pki
from fleet.errors import Denied, FleetError, NotFound
from fleet.pki import PrivateKey, PublicKey, check_public_key

_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


class Signer(Protocol):
    """Something that signs with a key it may never show: a key file, or later a PKCS#11 token."""

    @property
    def public_key(self) -> PublicKey:
        """The key that its signatures are checked with."""

    def sign(self, builder: x509.CertificateBuilder) -> x509.Certificate:
        """The certificate in `builder`, signed."""

    def sign_bytes(self, data: bytes) -> bytes:
        """A signature over `data`, with the algorithm of `sign`."""

    def sign_crl(self, builder: x509.CertificateRevocationListBuilder) -> x509.CertificateRevocationList:
        """The list in `builder`, signed."""


class KeySigner:
    """A signer whose key is in this process's memory."""

    def __init__(self, key: PrivateKey) -> None:
        self._key = key
        self._public_key = check_public_key(key.public_key())
        self._algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()

    @property
    def public_key(self) -> PublicKey:
        return self._public_key

    def sign(self, builder: x509.CertificateBuilder) -> x509.Certificate:
        return builder.sign(self._key, self._algorithm)

    def sign_bytes(self, data: bytes) -> bytes:
        return pki.sign(self._key, data)

    def sign_crl(self, builder: x509.CertificateRevocationListBuilder) -> x509.CertificateRevocationList:
        return builder.sign(self._key, self._algorithm)


def new_key() -> ec.EllipticCurvePrivateKey:
    """A new P-256 key; OpenSSL draws it."""
    return ec.generate_private_key(ec.SECP256R1())


def encode_key(key: PrivateKey, passphrase: bytes | None = None) -> bytes:
    """The key as PKCS#8 in PEM, encrypted if there is a passphrase."""
    encryption = NoEncryption() if passphrase is None else BestAvailableEncryption(passphrase)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


def write_private(path: Path, data: bytes) -> None:
    """Write a new file that only its owner can read, on disk when this returns. Raises: FileExistsError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)


def read_key(path: Path, passphrase: bytes | None = None) -> PrivateKey:
    """The private key in a file that only its owner can read.

    Raises: NotFound, Denied (others can read it, or the passphrase is wrong), FleetError.
    """
    data = read_private(path)
    try:
        key = load_pem_private_key(data, passphrase)
    except TypeError as error:
        problem = "is encrypted" if passphrase is None else "is not encrypted"
        raise Denied(f"{path} {problem}", hint="only the root's key has a passphrase, and needs it") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        if passphrase is not None:
            raise Denied(f"{path} cannot be decrypted", hint="check the passphrase") from error
        raise FleetError(f"{path} is not a private key in PEM", hint="restore it from a backup") from error
    if not isinstance(key, PrivateKey):
        raise FleetError(f"{path} holds a key of another kind", hint="use P-256, P-384, Ed25519 or RSA")
    return key


def read_private(path: Path) -> bytes:
    """What is in a file that only its owner can read. Raises: NotFound, Denied."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if mode & _OTHERS:
                raise Denied(
                    f"{path} can be read by others (mode {stat.S_IMODE(mode):04o})", hint=f"run: chmod 600 {path}"
                )
            return file.read()
    except FileNotFoundError as error:
        raise NotFound(f"{path} is missing", hint="enroll init makes a fleet; --home says where it is") from error
    except PermissionError as error:
        raise Denied(f"{path} cannot be read", hint="run this as the owner of the fleet's home") from error
