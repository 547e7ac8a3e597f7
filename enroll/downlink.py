"""Dispatch's signature: the one place where what goes to devices is signed (`fleet.downlink` says how it looks)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from enroll import keys
from enroll.files import stamp
from enroll.own_identities import number_in_use, signing_identity
from fleet import downlink
from fleet.errors import Denied, FleetError, reason_of
from fleet.layout import AdminHome, IdentityFiles
from fleet.signers import Chain, key_id_of

GOOD_FOR: Final = timedelta(hours=1)
"""How long what has no deadline of its own may be on its way; whoever comes later is sent it anew."""
_LOOK_SECONDS: Final = 1.0
_HALF: Final = downlink.SIGNATURE_BYTES // 2
_ECDSA: Final = ec.ECDSA(hashes.SHA256())


@dataclass(frozen=True, slots=True)
class _Key:
    """What is in the files of a signing identity."""

    private: ec.EllipticCurvePrivateKey
    key_id: str


class CannotSign(FleetError):
    """There is no key that could sign; the message says why not."""


@dataclass(slots=True)
class DownlinkSigner:
    """Signs with the key that is in use by now: a renewal swaps it while dispatch runs. For one thread."""

    files: IdentityFiles
    problem: CannotSign | None = field(default=None, init=False)
    _stamp: object = None
    _key: _Key | None = field(default=None, repr=False)
    _look_at: float = -math.inf

    def look(self, seconds: float) -> bool:
        """Look at the key, with `problem` for what is found; whether it has just been repaired.

        One that cannot be used is looked at each second (`seconds`: monotonic), whatever it is that repairs it.
        """
        before = self.problem
        if before is not None and seconds < self._look_at:
            return False
        self._look_at = seconds + _LOOK_SECONDS
        try:
            self._current()
        except CannotSign as error:
            self.problem = error
            return False
        self.problem = None
        return before is not None

    def sign(self, topic: str, body: bytes, until: datetime) -> bytes:
        """`body`, an object in JSON, as it is sent on `topic`: with a signature that is good until then.

        Raises: CannotSign. Unsigned, nothing is sent.
        """
        key = self._current()
        protected = downlink.encode_header(key.key_id, _whole_second(until))
        r, s = decode_dss_signature(key.private.sign(downlink.signing_input(protected, topic, body), _ECDSA))
        return downlink.join(body, protected, r.to_bytes(_HALF) + s.to_bytes(_HALF))

    def _current(self) -> _Key:
        found = stamp(self.files.certificate)
        if self._key is None or found != self._stamp:
            self._key, self._stamp = _usable(self.files), found
        return self._key


def problem_of(files: IdentityFiles) -> CannotSign | None:
    """Why nothing can be signed with what is in the files; None if it can."""
    try:
        _usable(files)
    except CannotSign as error:
        return error
    return None


def _whole_second(moment: datetime) -> datetime:
    """Not before `moment`."""
    return moment if not moment.microsecond else moment.replace(microsecond=0) + timedelta(seconds=1)


def _usable(files: IdentityFiles) -> _Key:
    """Raises: CannotSign."""
    link = files.certificate.parent
    try:
        return _read(files)
    except Denied as error:  # whose hint is a command
        raise CannotSign(error.message, hint=error.hint) from error
    except (FleetError, OSError, ValueError) as error:
        hint = (
            f"restore {link} and {link}-* from a backup, or remove them: enroll serve makes another key within a minute"
        )
        raise CannotSign(error.message if isinstance(error, FleetError) else reason_of(error), hint=hint) from error


def _read(files: IdentityFiles) -> _Key:
    """Raises: NotFound, Denied, FleetError (damaged, or the files do not fit), OSError, ValueError."""
    folder = files.certificate.parent.resolve()  # both from one, whatever is swapped meanwhile
    key, chain = keys.read_key(folder / "key.pem"), chain_in(folder / "cert.pem")
    public = x509.load_der_x509_certificate(chain[0]).public_key()
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != public:
        raise FleetError(f"{files.key} is not the key of {files.certificate}", hint="restore both from one backup")
    return _Key(key, key_id_of(chain))


def chain_in(path: Path) -> Chain:
    """The chain in a file of an identity. Raises: FleetError."""
    try:
        found = x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError) as error:
        raise FleetError(f"{path} is not there, or damaged", hint="enroll serve makes it") from error
    return tuple(each.public_bytes(Encoding.DER) for each in found)


def signers(home: AdminHome) -> tuple[Chain, ...]:
    """What devices are to believe: the key in use, and the one before, whose messages may be on their way still.

    None where there is no key yet. Raises: FleetError (it is damaged): who hears of none takes what is unsigned.
    """
    own = signing_identity(home)
    try:
        number = number_in_use(own)
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:
        raise FleetError(f"{own.link} is damaged", hint="restore it from a backup") from error
    current = chain_in(own.folder(number) / "cert.pem")
    try:
        return current, chain_in(own.folder(number - 1) / "cert.pem")
    except FleetError:
        return (current,)
