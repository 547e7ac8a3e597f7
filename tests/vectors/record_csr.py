"""Writes requests as openssl makes them into tests/vectors/csr: run by hand, `python -m tests.vectors.record_csr`.

Their keys are thrown away. What has to become of each is in tests/unit/fleet/test_est_vectors.py.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent / "csr"
_P256 = ("ec", "-pkeyopt", "ec_paramgen_curve:P-256")
_NAME = "CN = pump-07"

# name: how the key is made, the subject, other options of `openssl req`, what is asked for, options of the file
CASES: Final[dict[str, tuple[tuple[str, ...], str, tuple[str, ...], str]]] = {
    "p256": (_P256, _NAME, (), ""),
    "p256-sha512": (_P256, _NAME, ("-sha512",), ""),
    "p384": (("ec", "-pkeyopt", "ec_paramgen_curve:P-384"), _NAME, ("-sha384",), ""),
    "ed25519": (("ed25519",), _NAME, (), ""),
    "rsa2048": (("rsa:2048",), _NAME, (), ""),
    "rsa2048-pss": (("rsa:2048",), _NAME, ("-sigopt", "rsa_padding_mode:pss"), ""),
    "challenge": (_P256, _NAME, (), "attributes = a\n[a]\nchallengePassword = AAECAwQFBgcICQoL\n"),
    "unstructured-name": (_P256, _NAME, (), "attributes = a\n[a]\nunstructuredName = the pump in the cellar\n"),
    "extensions": (
        _P256,
        _NAME,
        (),
        "req_extensions = e\n[e]\nbasicConstraints = critical,CA:TRUE\nsubjectAltName = URI:spiffe://a/operator/admin\n",
    ),
    "challenge-and-extensions": (
        _P256,
        _NAME,
        (),
        "attributes = a\nreq_extensions = e\n[a]\nchallengePassword = secret\n[e]\nextendedKeyUsage = serverAuth\n",
    ),
    "explicit-curve": ((*_P256, "-pkeyopt", "ec_param_enc:explicit"), _NAME, (), ""),
    "p521": (("ec", "-pkeyopt", "ec_paramgen_curve:P-521"), _NAME, (), ""),
    "secp256k1": (("ec", "-pkeyopt", "ec_paramgen_curve:secp256k1"), _NAME, (), ""),
    "ed448": (("ed448",), _NAME, (), ""),
    "rsa1024": (("rsa:1024",), _NAME, (), ""),
    "rsa-pss-key": (("rsa-pss", "-pkeyopt", "rsa_keygen_bits:2048"), _NAME, (), ""),
    "sha1": (_P256, _NAME, ("-sha1",), ""),
    "teletex-name": (_P256, _NAME, (), "string_mask = MASK:0x4\n"),
    "bmp-name": (_P256, _NAME, (), "string_mask = MASK:0x800\n"),
    "two-names": (_P256, f"0.{_NAME}\n1.CN = pump-08", (), ""),
    "names-in-one": (_P256, f"{_NAME}\n+OU = pumps", (), ""),
    "organisation": (_P256, f"O = Acme\n{_NAME}", (), ""),
    "upper-case": (_P256, "CN = Pump-07", (), ""),
}


def main() -> None:
    HERE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "cnf"
        for name, (key, subject, options, wanted) in CASES.items():
            first, bracket, sections = wanted.partition("[")
            config.write_text(
                f"[req]\nprompt = no\ndistinguished_name = n\n{first}\n[n]\n{subject}\n{bracket}{sections}"
            )
            new = ("openssl", "req", "-new", "-nodes", "-config", str(config), "-keyout", "/dev/null")
            command = (*new, *options, "-newkey", *key, "-out", str(HERE / f"{name}.pem"))
            subprocess.run(command, check=True, capture_output=True)


if __name__ == "__main__":
    main()
