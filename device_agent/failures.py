"""Why a connection does not come about, in words a person can act on."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from fleet.identity import DeviceId


class Cause(StrEnum):
    """What kind of failure it was."""

    NO_NAME = "no-name"
    UNREACHABLE = "unreachable"
    TIMED_OUT = "timed-out"
    NOT_TLS = "not-tls"
    NOT_OUR_CA = "not-our-ca"
    WRONG_HOST = "wrong-host"
    IMPOSTOR = "impostor"
    NOT_YET_VALID = "not-yet-valid"
    PEER_EXPIRED = "peer-expired"
    OWN_EXPIRED = "own-expired"
    REFUSED = "refused"
    CLOSED = "closed"
    LOST = "lost"
    SHORT_LIVED = "short-lived"
    BAD_ANSWER = "bad-answer"
    NO_BROKER = "no-broker"
    LOCAL = "local"
    USED_TWICE = "identity-used-twice"


@dataclass(frozen=True, slots=True)
class Failure:
    """One failure: with whom (`HOST:PORT`, or empty), and what was seen."""

    cause: Cause
    peer: str = ""
    detail: str = ""

    @property
    def tells_expiry(self) -> bool:
        """Whether the peer has said, in TLS, that our certificate is over: by its clock, which is what counts."""
        return self.cause in (Cause.REFUSED, Cause.OWN_EXPIRED) and "certificate expired" in self.detail


@dataclass(frozen=True, slots=True)
class Words:
    """What to tell a person: what is wrong, and what to do about it."""

    message: str
    hint: str


def words(failure: Failure, device: DeviceId | None, not_after: datetime | None = None) -> Words:
    """`failure` as a sentence and the next step."""
    who = device or "this device"
    expiry = f" on {not_after:%Y-%m-%d %H:%M} UTC" if not_after else ""
    message, hint = _TEXTS[failure.cause]
    fields = {
        "peer": failure.peer or "the server",
        "detail": failure.detail or "no detail",
        "who": who,
        "expiry": expiry,
    }
    return Words(message.format_map(fields), hint.format_map(fields))


_ASK_ADMIN = "ask an admin what became of it: enroll device show {who}"

_TEXTS: dict[Cause, tuple[str, str]] = {
    Cause.NO_NAME: (
        "no network, or no such host: the name of {peer} cannot be looked up ({detail})",
        "check cable or Wi-Fi, then the name: getent hosts NAME",
    ),
    Cause.UNREACHABLE: (
        "nothing answers at {peer} ({detail})",
        "is the server running, and does a firewall let TCP through to it?",
    ),
    Cause.TIMED_OUT: (
        "{peer} does not answer in time ({detail})",
        "check the network; a firewall that drops packets looks like this",
    ),
    Cause.NOT_TLS: (
        "{peer} does not speak TLS ({detail})",
        "check the port: the server's ready line prints its address",
    ),
    Cause.NOT_OUR_CA: (
        "{peer} is not of our fleet: its certificate does not end in our root ({detail})",
        "a captive portal or a proxy that intercepts TLS looks like this; from the right network, check the address",
    ),
    Cause.WRONG_HOST: (
        "{peer} shows a certificate of our fleet for another host name ({detail})",
        "use a name in the certificate, or add this one: enroll init --host NAME",
    ),
    Cause.IMPOSTOR: (
        "{peer} holds a certificate of our fleet, but not the one for this service ({detail})",
        "check the address; if it is right, tell an admin: somebody uses a stolen certificate",
    ),
    Cause.NOT_YET_VALID: (
        "by this device's clock the certificate of {peer} is not valid yet: the clock is probably wrong ({detail})",
        "set the clock: timedatectl set-ntp true, or date -s",
    ),
    Cause.PEER_EXPIRED: (
        "by this device's clock the certificate of {peer} has expired ({detail})",
        "compare `date` with the real time; if it is right, an admin renews the server's certificate",
    ),
    Cause.OWN_EXPIRED: (
        "the certificate of {who} has expired{expiry}",
        "compare `date` with the real time; if it is right the agent recovers by itself, or now: device-agent renew",
    ),
    Cause.REFUSED: ("{peer} refuses {who}: revoked, suspended or unknown there ({detail})", _ASK_ADMIN),
    Cause.USED_TWICE: (
        "two devices use the identity of {who}; an admin decides which one is right",
        "tell an admin: enroll device show {who}; until then neither gets a new certificate",
    ),
    Cause.CLOSED: (
        "{peer} closes the connection before it answers: it may not admit {who} ({detail})",
        _ASK_ADMIN,
    ),
    Cause.LOST: ("the connection to {peer} broke ({detail})", "it is being made again; nothing to do"),
    Cause.SHORT_LIVED: (
        "{peer} ends the connection of {who} soon after it began ({detail})",
        "does another machine run with a copy of this identity? " + _ASK_ADMIN,
    ),
    Cause.BAD_ANSWER: (
        "{peer} answers what this agent does not understand ({detail})",
        "check the address and the versions of agent and service",
    ),
    Cause.NO_BROKER: (
        "the enrollment service names no broker ({detail})",
        "an admin starts one: broker serve",
    ),
    Cause.LOCAL: (
        "the identity on this device cannot be used ({detail})",
        "check owner and permissions of the home; else enrol again: enroll token create --device {who} --replace",
    ),
}
