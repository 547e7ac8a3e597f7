"""The state of the agent in words and as the `status` line of the application socket."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final, assert_never

from device_agent.backoff import STABLE_SECONDS
from device_agent.clock import Moment
from device_agent.core import renewing
from device_agent.core.connection import SUSPICIOUS_SHORT_LIVES
from device_agent.core.shelf import NEVER
from device_agent.core.state import (
    Connecting,
    Fetching,
    Online,
    Stage,
    State,
    Stopped,
    Stopping,
    Subscribing,
    Waiting,
)
from device_agent.failures import Cause, Failure, Words, words
from device_agent.journal import Phase
from device_agent.outbox import SPOOLED
from device_agent.renewal import Code
from device_agent.verdicts import words_of
from fleet.messages import format_time


def state_name(state: State) -> str:
    """One word for programs: online, connecting, waiting, stopping."""
    match state.link:
        case Online():
            return "online"
        case Connecting() | Subscribing() | Fetching():
            return "connecting"
        case Waiting():
            return "waiting"
        case Stopping() | Stopped():
            return "stopping"
        case _:
            assert_never(state.link)


def code(state: State, moment: Moment) -> str:
    """What is the matter, for programs: `ok`, `connecting`, or the cause of the last failure."""
    if isinstance(state.link, Online):
        return Cause.SHORT_LIVED.value if _is_suspicious(state, state.link, moment) else "ok"
    if renewing.is_over(state, moment):
        return _recovery_code(state)
    return state.failure.cause.value if state.failure else "connecting"


def _is_suspicious(state: State, link: Online, moment: Moment) -> bool:
    """Whether this connection follows several that broke at once, and has not lasted yet: two may fight over it."""
    is_young = moment.monotonic - link.since < STABLE_SECONDS
    return is_young and state.short_lives >= SUSPICIOUS_SHORT_LIVES


def describe(state: State, moment: Moment) -> Words:
    """What a person wants to know of the connection, and what to do about it."""
    if isinstance(state.link, Online):
        text = f"connected to {state.link.broker} since {format_time(state.link.since_utc)}"
        if not _is_suspicious(state, state.link, moment):
            return Words(text, "")
        failure = Failure(Cause.SHORT_LIVED, str(state.link.broker), f"{state.short_lives} times")
        found = words(failure, state.settings.device)
        return Words(f"{text}; {found.message}", found.hint)
    if renewing.is_over(state, moment):
        return _recovery(state, moment)
    if state.failure is None:
        return Words("connecting for the first time", "")
    found = words(state.failure, state.settings.device, state.settings.not_after)
    again = "trying again now"
    if isinstance(state.link, Waiting):
        again = f"trying again in {max(0.0, state.link.until - moment.monotonic):.0f} s"
    return Words(f"{found.message}; {again}", found.hint)


_DECIDED: Final = (Code.WAITING, Code.DENIED, Code.RECOVERY_REFUSED)
"""What `code` says of a certificate that has expired: these, or that it is being tried."""
RECOVERING: Final = "recovering"


def _recovery_code(state: State) -> str:
    problem = state.renewal.problem
    return str(problem.code) if problem is not None and problem.code in _DECIDED else RECOVERING


def _recovery(state: State, moment: Moment) -> Words:
    """How it comes back whose certificate has expired."""
    settings, problem = state.settings, state.renewal.problem
    said = f"the certificate of {settings.device} has expired on {settings.not_after:%Y-%m-%d %H:%M} UTC"
    again = "trying now"
    if state.renewal.stage is Stage.IDLE:
        again = f"trying again in {max(0.0, state.renewal.look_at - moment.monotonic):.0f} s"
    match _recovery_code(state):
        case Code.WAITING:
            assert problem is not None
            return Words(f"{said}: {problem.message}; {again}", problem.hint)
        case Code.DENIED | Code.RECOVERY_REFUSED:
            assert problem is not None
            return Words(f"{said}: {problem.message}; {again}", problem.hint)
    if problem is None:
        return Words(f"{said}: recovering; {again}", "it comes back by itself if `date` is right")
    return Words(f"{said}: recovering, not yet done ({problem.code}): {problem.message}; {again}", problem.hint)


def status_line(state: State, moment: Moment) -> dict[str, Any]:
    """The answer to an application's `status`."""
    said, settings = describe(state, moment), state.settings
    broker = str(state.link.broker) if isinstance(state.link, Online | Subscribing | Connecting) else None
    return {
        "type": "status",
        "device": str(settings.device),
        "state": state_name(state),
        "code": code(state, moment),
        "words": said.message,
        "hint": said.hint,
        "broker": broker,
        "since": format_time(state.link.since_utc) if isinstance(state.link, Online) else None,
        "cause": state.failure.cause.value if state.failure else None,
        "failures": state.failures,
        "serial": str(settings.serial),
        "not_after": format_time(settings.not_after),
        "renewal": _renewal(state, moment),
        **({"clock": moment.reading.fields()} if moment.reading else {}),
        "agent": settings.version,
        "boot": settings.boot,
        "applications": [{"app": app.name, "commands": list(app.commands)} for app in state.apps if app.rank],
        "waiting_messages": len(state.outbox.waiting) + len(state.outbox.in_flight) + state.spool.unloaded,
        "dropped_messages": state.spool.dropped.total,
        "spool": {
            "messages": state.spool.unloaded + sum(len(state.outbox.rows(kind)) for kind in SPOOLED),
            "bytes": state.spool.size_bytes,
            "max_bytes": state.spool.bounds.max_bytes,
            "error": state.spool.error,
            "problem": state.spool.problem,
        },
        "storage": {"is_read_only": state.is_read_only},
        "set_aside_messages": state.set_aside,
        "downlink": _downlink(state),
        "unfinished_commands": state.journal.unfinished,
        "unconfirmed_results": sum(not entry.is_confirmed for entry in state.journal.of(Phase.FINAL)),
    }


def _downlink(state: State) -> dict[str, Any]:
    """Whether what comes down is believed, and what was refused last."""
    known = state.downlink
    fields = {
        "trust": known.trust.value,
        "keys": len(known.key_ids),
        "verified_count": known.verified,
        "waiting": len(known.held),
        "problem": known.problem,
        "refused_count": known.refused,
    }
    if known.last is None:
        return fields
    topic, verdict, at = known.last
    said = words_of(verdict)
    last = {"topic": topic, "code": verdict.value, "at": format_time(at), "words": said.message, "hint": said.hint}
    return fields | {"refused": last}


def _renewal(state: State, moment: Moment) -> dict[str, Any]:
    """When the certificate is renewed, and why it was not. `next_at` is the drawn point, or the next attempt."""
    renewal, life = state.renewal, state.settings.life
    again = moment.utc + timedelta(seconds=max(0.0, renewal.look_at - moment.monotonic))
    problem = renewal.problem
    return {
        "state": renewal.stage.value,
        "next_at": format_time(life.due if moment.utc < life.due else again),
        "is_confirmed": renewal.stage is Stage.IDLE and not renewal.confirm_failures and renewal.confirm_at == NEVER,
        "is_alarming": life.is_alarming(moment.utc),
        "failures": renewal.failures,
        "failed_at": format_time(renewal.failed_at) if renewal.failed_at else None,
        "code": str(problem.code) if problem else None,
        "words": problem.message if problem else None,
        "hint": problem.hint if problem else None,
        "renewed_count": renewal.done,
        "failed_count": renewal.failed,
    }
