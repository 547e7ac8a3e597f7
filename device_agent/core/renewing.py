"""The certificate's renewal: when it begins, what becomes of it, and the way back if the fleet does not take it.

    IDLE -> PREPARING -> TRYING -> IDLE, and confirmed
      ^         |           |
      '---------'       FALLING_BACK -> IDLE, and tried again
        it failed           the broker refuses what it took for the proof

The present certificate stays in use until its successor was proven; the connection is made anew once. One that has
expired is followed in the same way: what makes the successor finds another way to ask for it.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any, Final, assert_never

from device_agent.clock import Moment
from device_agent.core import connection
from device_agent.core.effects import (
    Confirm,
    Effect,
    ForgetPredecessor,
    Log,
    Renew,
    Tell,
    UsePredecessor,
    UseSuccessor,
)
from device_agent.core.events import (
    ConfirmationFailed,
    Confirmed,
    IdentityChanged,
    RenewalEvent,
    RenewalFailed,
    RenewalPutOff,
    SuccessorReady,
)
from device_agent.core.shelf import NEVER
from device_agent.core.state import Renewal, Stage, State, Stopped, Stopping
from device_agent.failures import Cause, Failure
from device_agent.renewal import Code, Problem
from fleet.messages import format_time

# However far off the time is: the clock on the wall may be set meanwhile.
_LOOK_SECONDS: Final = 3_600.0
_SOONEST_SECONDS: Final = 0.05
# Without any server in reach there is nobody to renew with either.
_UNCONFIRMED_SECONDS: Final = 1.0
# A server that closes each connection may not tell that it is because of the time.
_CLOSED_BEFORE_DOUBT: Final = 3
# What applications may ask for, then one a minute: each costs a process, and the fleet a certificate.
_ASKED_AT_ONCE: Final = 5
_ASKED_EVERY_SECONDS: Final = 60.0
# A broker that restarts closes connections as one that refuses does.
_CLOSED_IN_A_ROW: Final = 3
# A successor may not come to a connection for the whole of its life: then it is renewed all the same.
_LOOKING: Final = (Stage.IDLE, Stage.TRYING)
_READ_ONLY: Final = Problem(
    Code.DISK, "the storage is read-only: a new key could not be kept", "see what befell the card: dmesg; replace it"
)
_REFUSALS: Final = (Cause.REFUSED, Cause.OWN_EXPIRED, Cause.LOCAL)


def begin(state: State, moment: Moment) -> State:
    """At the start: what is overdue is not begun in the moment in which a whole site gets its power back."""
    life = state.settings.life
    is_overdue = moment.utc >= life.due
    spread = life.spread_seconds(moment.chance, is_over=moment.utc >= life.not_after)
    return _with(state, look_at=moment.monotonic + (spread if is_overdue else 0.0))


def next_time(state: State) -> float:
    """When there is something to do (monotonic)."""
    renewal = state.renewal
    if isinstance(state.link, Stopping | Stopped):
        return NEVER
    return min(renewal.confirm_at, renewal.look_at if renewal.stage in _LOOKING else NEVER)


def ask(state: State, app: int, moment: Moment, effects: list[Effect]) -> State:
    """Somebody wants a new certificate now, and hears what became of it; or that it was asked for too often."""
    if app in state.renewal.askers:
        return state
    state, problem = begin_now(state, moment)
    if problem is not None:
        told = {"state": "failed", "code": problem.code, "message": problem.message, "hint": problem.hint}
        effects.append(Tell(app, {"type": "renewal", **told}))
        return state
    return _with(state, askers=(*state.renewal.askers, app))


def begin_now(state: State, moment: Moment) -> tuple[State, Problem | None]:
    """A new certificate, whatever the age of this one; why not, if it was asked for too often."""
    if state.renewal.stage is Stage.TRYING:  # it is made, and each broker that is away would cost another one
        return state, None
    if state.renewal.is_asked or state.renewal.stage is not Stage.IDLE:  # one is under way, and will do
        return _with(state, is_asked=True, look_at=moment.monotonic), None
    wait = state.ask_again_at - moment.monotonic - (_ASKED_AT_ONCE - 1) * _ASKED_EVERY_SECONDS
    if wait > 0:
        message = f"{_ASKED_AT_ONCE} certificates were asked for, and more of them at one a minute"
        return state, Problem(Code.TOO_SOON, message, f"ask in {wait:.0f} s")
    state = replace(state, ask_again_at=max(state.ask_again_at, moment.monotonic) + _ASKED_EVERY_SECONDS)
    return _with(state, is_asked=True, look_at=moment.monotonic), None


def settle(before: State, after: State, moment: Moment, effects: list[Effect]) -> State:
    """After any event: what the connection tells of the certificate, and what is due."""
    if isinstance(after.link, Stopping | Stopped):
        return after
    state = _watch_connection(before, _hurry(before, after, moment), moment, effects)
    state = _watch_life(state, moment, effects)
    if state.renewal.confirm_at <= moment.monotonic:
        effects.append(Confirm())
        state = _with(state, confirm_at=NEVER)
    if state.renewal.stage in _LOOKING and state.renewal.look_at <= moment.monotonic:
        return _begin_if_due(state, moment, effects)
    return state


def is_over(state: State, moment: Moment) -> bool:
    """Whether the certificate has expired: by a server's word, or by what we know of the time."""
    failure = state.failure
    return moment.utc >= state.settings.not_after or (failure is not None and failure.tells_expiry)


def _may_be_over(state: State, moment: Moment) -> bool:
    """Whether it is worth a look, although our clock says nothing: asking costs little, and never asking the device."""
    failure = state.failure
    is_shut_out = failure is not None and failure.cause is Cause.CLOSED and state.failures >= _CLOSED_BEFORE_DOUBT
    return (is_shut_out and state.renewal.stage is Stage.IDLE) or is_over(state, moment)


def _hurry(before: State, after: State, moment: Moment) -> State:
    """A server lets the certificate in no more, and our clock did not say so: look now, not when it does."""
    if after.failures == before.failures or not _may_be_over(after, moment):
        return after
    if after.renewal.failures or after.renewal.stage not in _LOOKING:
        return after
    spread = after.settings.life.spread_seconds(moment.chance, is_over=True)
    return _with(after, look_at=min(after.renewal.look_at, moment.monotonic + spread))


def _begin_if_due(state: State, moment: Moment, effects: list[Effect]) -> State:
    renewal, due = state.renewal, state.settings.life.due
    if moment.utc < due and not renewal.is_asked and not _may_be_over(state, moment):
        seconds = (due - moment.utc).total_seconds()
        return _with(state, look_at=moment.monotonic + min(max(seconds, _SOONEST_SECONDS), _LOOK_SECONDS))
    if not moment.is_confirmed and not renewal.is_asked:  # a clock that nobody has confirmed may say 2040
        return _with(state, look_at=moment.monotonic + _UNCONFIRMED_SECONDS)
    if state.is_read_only:  # the service would certify a key that nothing remembers
        return _failed(state, _READ_ONLY, moment, effects)
    effects.append(Renew(renewal.is_paced or renewal.is_asked, renewal.is_fresh))
    effects.append(Log(logging.INFO, "renewal.begun", (("serial", state.settings.serial),)))
    return _with(state, stage=Stage.PREPARING)


def _watch_life(state: State, moment: Moment, effects: list[Effect]) -> State:
    """The alarm, once for each certificate."""
    life = state.settings.life
    if state.renewal.is_alarmed or not moment.is_confirmed or not life.is_alarming(moment.utc):
        return state
    left = f"{max(0.0, life.remaining(moment.utc)):.0%}"
    fields = (("serial", life.serial), ("not_after", format_time(life.not_after)), ("left", left))
    effects.append(Log(logging.ERROR, "renewal.alarm", fields))
    return _tell_fleet(_with(state, is_alarmed=True), {"state": "alarm", "left": left}, moment)


def _watch_connection(before: State, after: State, moment: Moment, effects: list[Effect]) -> State:
    """A certificate is proven by a connection, and given back if connections fail because of it.

    Not where it is over: the one before has expired as well, and the key of this one may be what recovers.
    """
    if after.renewal.stage is not Stage.TRYING:
        return after
    if after.is_online:
        return _proven(after, moment, effects)
    if after.failures > before.failures and after.failure is not None:
        return after if is_over(after, moment) else _doubt(after, after.failure, effects)
    return after


def _doubt(state: State, failure: Failure, effects: list[Effect]) -> State:
    refusals = state.renewal.refusals + (failure.cause is Cause.CLOSED)
    if failure.cause not in _REFUSALS and refusals < _CLOSED_IN_A_ROW:
        return _with(state, refusals=refusals)
    problem = Problem(
        Code.BROKER_REFUSES,
        f"{failure.peer} does not take the new certificate ({failure.detail})",
        "the one before is used again; the broker's log says why",
    )
    effects.append(UsePredecessor())
    return _with(state, stage=Stage.FALLING_BACK, problem=problem)


def _proven(state: State, moment: Moment, effects: list[Effect]) -> State:
    settings = state.settings
    fields = (("serial", settings.serial), ("not_after", format_time(settings.not_after)))
    effects.append(Log(logging.INFO, "renewal.done", fields))
    told = {"state": "renewed", "serial": str(settings.serial), "not_after": format_time(settings.not_after)}
    effects += [Tell(app, {"type": "renewal", **told}) for app in state.renewal.askers]
    renewal = Renewal(
        look_at=moment.monotonic,
        confirm_at=moment.monotonic,
        done=state.renewal.done + 1,
        failed=state.renewal.failed,
    )
    return _tell_fleet(replace(state, renewal=renewal), told, moment)


def on_event(state: State, event: RenewalEvent, moment: Moment, effects: list[Effect]) -> State:
    """What became of an order."""
    match event:
        case SuccessorReady():
            if state.renewal.stage is not Stage.PREPARING or isinstance(state.link, Stopping | Stopped):
                return state
            effects.append(UseSuccessor())
            return state
        case RenewalPutOff(wait_seconds):
            return _on_put_off(state, wait_seconds, moment, effects)
        case RenewalFailed(problem):
            return _failed(state, problem, moment, effects)
        case IdentityChanged():
            return _on_changed(state, event, moment, effects)
        case Confirmed():
            effects += [
                ForgetPredecessor(),
                Log(logging.INFO, "renewal.confirmed", (("serial", state.settings.serial),)),
            ]
            return _with(state, confirm_failures=0)
        case ConfirmationFailed(problem):
            return _on_unconfirmed(state, problem, moment, effects)
        case _:
            assert_never(event)


def on_writable(state: State, moment: Moment) -> State:
    """What failed for want of storage need not wait for its next turn; nor longer, if the card comes and goes."""
    problem = state.renewal.problem
    if state.renewal.stage is not Stage.IDLE or problem is None or problem.code != Code.DISK:
        return state
    spread = state.settings.life.spread_seconds(moment.chance, is_over=is_over(state, moment))
    return _with(state, look_at=min(state.renewal.look_at, moment.monotonic + spread))


def _on_put_off(state: State, wait_seconds: float, moment: Moment, effects: list[Effect]) -> State:
    seconds = state.settings.life.paced_seconds(moment.utc, wait_seconds)
    effects.append(Log(logging.INFO, "renewal.put_off", (("seconds", f"{seconds:.1f}"),)))
    return _with(state, stage=Stage.IDLE, is_paced=True, look_at=moment.monotonic + seconds)


def _on_changed(state: State, event: IdentityChanged, moment: Moment, effects: list[Effect]) -> State:
    if event.error:
        problem = Problem(Code.DISK, f"the home cannot be written: {event.error}", "free some space")
        return _failed(state, problem, moment, effects)
    life = event.life
    settings = replace(state.settings, serial=life.serial, not_before=life.not_before, not_after=life.not_after)
    state = connection.change_identity(replace(state, settings=settings), moment, effects)
    if state.renewal.stage is not Stage.FALLING_BACK:
        effects.append(Log(logging.INFO, "renewal.trying", (("serial", life.serial),)))
        trying = Renewal(
            Stage.TRYING,
            moment.monotonic,
            done=state.renewal.done,
            failed=state.renewal.failed,
            askers=state.renewal.askers,
        )
        return replace(state, renewal=trying)
    assert state.renewal.problem is not None
    return _failed(_with(state, is_fresh=True), state.renewal.problem, moment, effects)


def _failed(state: State, problem: Problem, moment: Moment, effects: list[Effect]) -> State:
    """Again after a pause, for ever; told once, twice, the fourth time, the eighth."""
    renewal, failures = state.renewal, state.renewal.failures + 1
    pause = _pause(state, problem, failures, moment)
    fields: tuple[tuple[str, object], ...] = (
        ("code", problem.code),
        ("reason", problem.message),
        ("failures", failures),
    )
    if moment.utc >= state.settings.life.due:  # else somebody had asked for it, and may again
        fields = (*fields, ("retry_seconds", f"{pause:.1f}"))
    is_known = problem.code == Code.WAITING and renewal.problem is not None and renewal.problem.code == problem.code
    if not is_known:
        effects.append(Log(logging.WARNING, "renewal.failed", fields))
    if problem.code == Code.UNDER_WAY and renewal.is_asked:  # nothing was done that could be too much
        state = replace(state, ask_again_at=state.ask_again_at - _ASKED_EVERY_SECONDS)
    told = {"state": "failed", "code": problem.code, "message": problem.message, "hint": problem.hint}
    effects += [Tell(app, {"type": "renewal", **told}) for app in renewal.askers]
    state = _with(
        state,
        stage=Stage.IDLE,
        look_at=moment.monotonic + pause,
        is_asked=False,
        failures=failures,
        problem=problem,
        failed_at=moment.utc,
        failed=renewal.failed + 1,
        askers=(),
    )
    is_news = failures & (failures - 1) == 0
    return _tell_fleet(state, told | {"failures": failures}, moment) if is_news else state


def _pause(state: State, problem: Problem, failures: int, moment: Moment) -> float:
    life = state.settings.life
    if problem.code == Code.WAITING:
        return life.waiting_seconds(moment.chance, problem.retry_seconds)
    return life.retry_seconds(failures, moment.chance, problem.retry_seconds)


def _on_unconfirmed(state: State, problem: Problem, moment: Moment, effects: list[Effect]) -> State:
    """Nothing hangs on it but the end of the certificate before: its own, or the next renewal, comes as well."""
    failures = state.renewal.confirm_failures + 1
    pause = state.settings.life.retry_seconds(failures, moment.chance, problem.retry_seconds)
    fields = (("code", problem.code), ("reason", problem.message), ("retry_seconds", f"{pause:.1f}"))
    effects.append(Log(logging.WARNING, "renewal.not_confirmed", fields))
    return _with(state, confirm_failures=failures, confirm_at=moment.monotonic + pause)


def _tell_fleet(state: State, told: dict[str, Any], moment: Moment) -> State:
    """An event to whoever listens."""
    return state.tell_fleet("renewal", told, moment)


def _with(state: State, **changes: Any) -> State:
    return replace(state, renewal=replace(state.renewal, **changes))
