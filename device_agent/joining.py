"""`device-agent join`: from an invitation to an identity on disk.

1. /cacerts from whoever is there: the pin tells the root.           nothing is sent
2. a key, on disk before anybody hears of it.                        a crash: it is used again, or was never known
3. CSR and token to a service that is verified up to that root.      an answer lost: the same again
4. the certificate is checked and becomes `current`.                 a crash: finished at the next start
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from device_agent import credentials, est_client
from device_agent.store import Pending, Store, check_private
from fleet import est
from fleet.errors import FleetError, InvalidInput, NotFound
from fleet.identity import DeviceId
from fleet.join import JoinCode, Token
from fleet.layout import Credential


@dataclass(frozen=True, slots=True)
class Invitation:
    """Where to enrol, whom to trust, and what allows it."""

    url: str
    root_pin: bytes
    token: Token = field(repr=False)


def invitation_of(code: JoinCode) -> Invitation:
    return Invitation(code.url, code.root_pin, code.token)


def join(store: Store, invitation: Invitation, device: DeviceId, monotonic: Callable[[], float]) -> Credential:
    """The identity of this home, made now. The home's lock is the caller's.

    Raises: FleetError; what can be used again when the same is tried again is kept.
    """
    try:
        store.prepare()
        if store.recover() and _enrolled(store) == device:
            return store.credential()
        _check_vacant(store)
        return _enrol(store, invitation, device, monotonic)
    except OSError as error:
        reason = error.strerror or str(error)
        raise FleetError(f"the identity cannot be written: {reason}", hint="free some space, or --home DIR") from error


def _enrol(store: Store, invitation: Invitation, device: DeviceId, monotonic: Callable[[], float]) -> Credential:
    certificates = est_client.fetch_ca_certificates(invitation.url, device, monotonic)
    root = credentials.pinned_root(certificates, invitation.root_pin)
    pending = _pending(store, device, invitation.url)
    key_pem = pending.key.read_bytes()
    csr = est.build_csr(credentials.load_key(key_pem), device)
    answer = est_client.enrol(invitation.url, root, invitation.token, csr, device, monotonic)
    verified = credentials.verify_answer([*answer, *certificates], key_pem, device, root, invitation.url)
    store.complete(pending, verified.pem, credentials.to_pem(root), verified.credential)
    return verified.credential


def _pending(store: Store, device: DeviceId, url: str) -> Pending:
    """The key that the service may know already, or a new one."""
    pending = store.pending(device, url)
    if pending is None:
        return store.begin(device, url, credentials.new_key_pem())
    check_private(pending.key)
    return pending


def _check_vacant(store: Store) -> None:
    enrolled = _enrolled(store)
    if enrolled is not None:
        raise InvalidInput(
            f"this home is enrolled already, as {enrolled}",
            hint="start it: device-agent run; for another identity name another place: --home DIR",
        )


def _enrolled(store: Store) -> DeviceId | None:
    try:
        return store.credential().device
    except NotFound:
        return None
