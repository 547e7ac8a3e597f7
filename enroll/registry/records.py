"""The registry's rows as values."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Final

from fleet.identity import DeviceId, Principal, Role, Serial, State
from fleet.messages import ResultState


class CertificateState(StrEnum):
    """Where a serial is in its life; `CONFIRMED` and `PENDING` may connect."""

    PENDING = "pending"  # signed as the successor of a confirmed one, which goes on until this one is used
    CONFIRMED = "confirmed"
    SUPERSEDED = "superseded"
    REVOKED = "revoked"


LIVE = (CertificateState.PENDING, CertificateState.CONFIRMED)


class Reason(StrEnum):
    """Why a certificate ended, by the names of RFC 5280 (5.3.1). Unspecified is None: then no reason is given."""

    KEY_COMPROMISE = "keyCompromise"
    CA_COMPROMISE = "cACompromise"
    AFFILIATION_CHANGED = "affiliationChanged"
    SUPERSEDED = "superseded"
    CESSATION_OF_OPERATION = "cessationOfOperation"
    CERTIFICATE_HOLD = "certificateHold"  # its principal is suspended
    PRIVILEGE_WITHDRAWN = "privilegeWithdrawn"


@dataclass(frozen=True, slots=True)
class Revocation:
    """Since when, and why, a certificate is not good any more, or for now."""

    serial: Serial
    at: datetime
    reason: Reason | None


@dataclass(frozen=True, slots=True)
class PrincipalRecord:
    """Whoever holds, or held, a client certificate."""

    principal: Principal
    state: State
    epoch: int
    groups: tuple[str, ...]
    created_at: datetime

    @property
    def id(self) -> DeviceId:
        return self.principal.id


@dataclass(frozen=True, slots=True)
class CertificateRecord:
    """A certificate that was signed."""

    number: int
    serial: Serial
    principal: DeviceId | None
    profile: str
    key: bytes
    epoch: int
    generation: int
    parent: Serial | None
    state: CertificateState
    not_before: datetime
    not_after: datetime
    der: bytes = field(repr=False)


class Approval(StrEnum):
    """Who says yes to a request that comes with a token: the token itself, or an admin who looks at it."""

    AUTO = "auto"
    MANUAL = "manual"


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """An enrolment token: for the one id `device`, or for every id that matches `pattern`.

    `sources` are networks in CIDR notation from which it is taken; none means any.
    """

    id: str
    digest: bytes = field(repr=False)
    device: DeviceId | None
    pattern: str | None
    role: Role
    groups: tuple[str, ...]
    profile: str
    replace: bool
    uses: int
    uses_left: int
    created_at: datetime
    expires_at: datetime
    revoked_at: datetime | None = None
    sources: tuple[str, ...] = ()
    approval: Approval = Approval.AUTO


class ApprovalState(StrEnum):
    """How far a request is that an admin has to approve. One that is past its time is none at all."""

    WAITING = "waiting"
    APPROVED = "approved"  # the device has not come for its certificate yet
    DENIED = "denied"
    ISSUED = "issued"


@dataclass(frozen=True, slots=True)
class ApprovalRecord:
    """A request for the id `device` with the key whose SHA-256 is `key`.

    It comes with a token, or from the holder of the expired certificate `recovers`; without either it is a pairing.
    `hardware_serial` and `model` are what the device says of itself. `network` is what counts as one address.
    """

    id: str
    token: str | None
    device: DeviceId
    key: bytes
    state: ApprovalState
    address: str
    network: str
    hardware_serial: str
    model: str
    created_at: datetime
    expires_at: datetime
    decided_by: str = ""
    reason: str = ""
    certificate: int | None = None
    recovers: Serial | None = None

    @property
    def is_pairing(self) -> bool:
        """Whether nothing but the admin's eyes stands for it."""
        return self.token is None and self.recovers is None

    @property
    def is_open(self) -> bool:
        """Whether it could still become a certificate, if its time has not come."""
        return self.state in (ApprovalState.WAITING, ApprovalState.APPROVED)


@dataclass(frozen=True, slots=True)
class ManufacturerCa:
    """A CA whose certificates prove what hardware a device is; `fingerprint` is the SHA-256 of its certificate."""

    fingerprint: bytes
    manufacturer: str
    der: bytes = field(repr=False)
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ClaimRecord:
    """The hardware with that serial of that manufacturer may have the id `device`, once; with `replace` once more."""

    manufacturer: str
    hardware_serial: str
    device: DeviceId
    groups: tuple[str, ...]
    profile: str
    replace: bool
    created_at: datetime
    certificate: int | None = None


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One entry of the log."""

    seq: int
    at: datetime
    event: str
    fields: str
    digest: bytes


class CommandState(StrEnum):
    """How far a command has come; the last three are final."""

    QUEUED = "queued"
    SENT = "sent"  # the broker has it
    ACCEPTED = "accepted"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    EXPIRED = "expired"

    @property
    def is_final(self) -> bool:
        return self in (CommandState.DONE, CommandState.FAILED, CommandState.EXPIRED)

    def may_become(self, reported: ResultState) -> bool:
        """Whether a device's report moves a command on; reports arrive late, twice, and out of order.

        A command that the fleet gave up may have been begun in time all the same: its outcome still counts.
        """
        if self is CommandState.EXPIRED:
            return reported in (ResultState.DONE, ResultState.FAILED)
        return not self.is_final and _ORDER.index(self) < _ORDER.index(CommandState(reported.value))


_ORDER = tuple(CommandState)
UNDELIVERED: Final = (CommandState.QUEUED, CommandState.SENT)
"""Those of a command that its device has not accepted."""


@dataclass(frozen=True, slots=True)
class CommandRecord:
    """An order to one device. `args` and `output` are JSON texts; there is no output before the end."""

    id: str
    device: DeviceId
    epoch: int
    name: str
    args: str
    state: CommandState
    created_at: datetime
    deadline: datetime
    changed_at: datetime
    output: str | None = None
    error: str = ""

    def at(self, now: datetime) -> CommandRecord:
        """As it is then: what was not accepted by its deadline is over, also while nobody writes that down."""
        is_over = self.deadline <= now and self.state in UNDELIVERED
        return replace(self, state=CommandState.EXPIRED) if is_over else self


@dataclass(frozen=True, slots=True)
class PresenceRecord:
    """Whether a device is connected, since when, and when it was last heard of.

    `is_claimed` and `said` are its own word: that it is online and takes commands, and what is wrong, or why it left.
    `boot` and `session` name the session that its broker has or had last, if it tells. `changes` were counted so far.
    """

    is_online: bool
    reason: str
    agent_version: str
    changed_at: datetime
    last_seen: datetime
    is_claimed: bool = True
    said: str = ""
    boot: str = ""
    session: int = 0
    address: str = ""
    broker: str = ""
    changes: int = 0


@dataclass(frozen=True, slots=True)
class PresenceChange:
    """A device came or went, by that number the so many-th time. `before`: since when it had been the other."""

    number: int
    at: datetime
    is_online: bool
    reason: str
    said: str
    address: str
    broker: str
    before: datetime | None
