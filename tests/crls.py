"""What stands on a CRL, read by `cryptography` and by OpenSSL."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from enroll.registry.records import Reason
from fleet.identity import Serial
from tests.processes import Finished, run


def lines_of(crl: x509.CertificateRevocationList) -> dict[Serial, Reason | None]:
    """Each serial with its reason. Raises: AssertionError if one stands there twice."""
    found = {Serial.from_int(line.serial_number): reason_of(line) for line in crl}
    assert len(crl) == len(found)
    return found


def reason_of(line: x509.RevokedCertificate) -> Reason | None:
    """None is unspecified, and then there is no extension (RFC 5280, 5.3.1)."""
    try:
        flag = line.extensions.get_extension_for_class(x509.CRLReason).value.reason
    except x509.ExtensionNotFound:
        return None
    return Reason(flag.value)


def verify(folder: Path, root: Path, issuer: x509.Certificate, leaf: bytes, crl_pem: bytes) -> Finished:
    """`openssl verify -crl_check` of a leaf in PEM, up to the root, with that one list."""
    files = {"issuer.pem": issuer.public_bytes(Encoding.PEM), "leaf.pem": leaf, "crl.pem": crl_pem}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    args = ["-CAfile", root, "-untrusted", folder / "issuer.pem", "-CRLfile", folder / "crl.pem", folder / "leaf.pem"]
    return run("openssl", "verify", "-crl_check", *args)
