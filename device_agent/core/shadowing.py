"""What the device is to be, and is: kept on disk, told to applications, and told to the fleet until it knows.

What is said to the fleet is what is true when it is said, never a queue of changes: so an application that reports all
the time, or for a week without a broker, costs one message and one file every PACE_SECONDS.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any, Final

from device_agent.clock import Moment
from device_agent.core.effects import Acknowledge, Effect, Log, SaveShadow, Tell
from device_agent.core.events import ShadowSaved
from device_agent.core.shelf import NEVER
from device_agent.core.state import State
from device_agent.outbox import Class
from fleet import topics
from fleet.messages import InvalidMessage, JsonObject
from fleet.state import Document, Marks, ReportedMessage, decode_desired, diff

GATHER_SECONDS: Final = 0.2  # what was received and what firmware makes of it go into one message
PACE_SECONDS: Final = 2.0
ANSWER_SECONDS: Final = 30.0  # doubled each time that no answer has come
MAX_ANSWER_SECONDS: Final = 600.0
# A registry that was restored while the device was connected is noticed at last.
COMPARE_SECONDS: Final = 86_400.0
RETRY_SAVE_SECONDS: Final = 60.0


def on_online(state: State, moment: Moment) -> State:
    """Hello has said what is here, and is answered if the registry has something else; if it was lost, it is said."""
    return _with(state, attempts=0, say_at=_later(state, moment))


def on_desired(state: State, payload: bytes, acknowledge: Acknowledge, moment: Moment, effects: list[Effect]) -> State:
    """The fleet says what is wanted, and what it knows. Raises: InvalidMessage."""
    before = state.shadowing.shadow
    after, must_answer = before.heard(decode_desired(payload, state.settings.device))
    state = _with(state, shadow=after, attempts=0)
    if after.marks != before.marks:
        state = _save(state, moment, effects)
    effects.append(acknowledge)
    if after.desired is not before.desired:
        effects.append(Log(logging.INFO, "state.received", (("version", after.desired.version),)))
        line = _line(after.desired, before.desired)
        effects += [Tell(app.number, line) for app in state.apps if app.rank]
    return _with(state, say_at=_soon(state, moment) if must_answer else _later(state, moment))


def report(state: State, app: int, patch: JsonObject, moment: Moment, effects: list[Effect]) -> State:
    """An application says what is."""
    before = state.shadowing
    try:
        after = before.shadow.report(patch)
    except InvalidMessage as error:
        effects.append(Tell(app, {"type": "error", "message": error.message}))
        return state
    if after is before.shadow:
        return state
    save_at = min(before.save_at, max(moment.monotonic + GATHER_SECONDS, before.saved_at + PACE_SECONDS))
    return _with(state, shadow=after, save_at=save_at, say_at=min(before.say_at, _soon(state, moment)))


def tell(state: State, app: int, effects: list[Effect], *, is_asked: bool = False) -> None:
    """What is wanted, to an application that has come, if anything is; to one that asks also what was reported."""
    shadow = state.shadowing.shadow
    if is_asked:
        effects.append(Tell(app, _line(shadow.desired) | {"reported": shadow.reported.value}))
    elif shadow.desired.version:
        effects.append(Tell(app, _line(shadow.desired)))


def on_saved(state: State, event: ShadowSaved, moment: Moment, effects: list[Effect]) -> State:
    """What is not on disk would be lost with the power, and be asked for and reported again: it is tried again."""
    if event.error and event.error != state.shadowing.error:
        effects.append(Log(logging.ERROR, "state.not_written", (("reason", event.error),)))
    retry_at = moment.monotonic + RETRY_SAVE_SECONDS if event.error else state.shadowing.save_at
    return _with(state, error=event.error, save_at=min(state.shadowing.save_at, retry_at))


def on_tick(state: State, moment: Moment, effects: list[Effect]) -> State:
    """It is time to write, or to say, what is."""
    is_due = state.is_online and moment.monotonic >= state.shadowing.say_at
    if state.shadowing.save_at < NEVER and (is_due or moment.monotonic >= state.shadowing.save_at):
        state = _save(state, moment, effects)
    return _say(state, moment) if is_due else state


def next_time(state: State) -> float:
    """When it is time to write, or to say, what is (monotonic)."""
    return min(state.shadowing.save_at, state.shadowing.say_at if state.is_online else NEVER)


def _say(state: State, moment: Moment) -> State:
    shadow, part = state.shadowing.shadow.says()
    state, envelope = state.envelope(moment)
    payload = ReportedMessage(envelope, shadow.desired.mark, part).encode()
    state = state.queue(Class.STATE, topics.ReportedState(state.settings.device).format(), payload)
    said = replace(state.shadowing, shadow=shadow, said_at=moment.monotonic, attempts=state.shadowing.attempts + 1)
    state = replace(state, shadowing=said)
    return _with(state, say_at=_later(state, moment))


def _soon(state: State, moment: Moment) -> float:
    return max(moment.monotonic + GATHER_SECONDS, state.shadowing.said_at + PACE_SECONDS)


def _later(state: State, moment: Moment) -> float:
    """When to say it again if nothing is heard; nothing is said of what has never been."""
    own = state.shadowing
    if own.shadow.marks == Marks():
        return NEVER
    again = min(ANSWER_SECONDS * 2.0 ** min(max(own.attempts - 1, 0), 10), MAX_ANSWER_SECONDS)
    pause = COMPARE_SECONDS if own.shadow.is_told else again
    return moment.monotonic + pause * (0.5 + moment.chance)


def _save(state: State, moment: Moment, effects: list[Effect]) -> State:
    effects.append(SaveShadow(state.shadowing.shadow))
    return _with(state, save_at=NEVER, saved_at=moment.monotonic)


def _line(desired: Document, before: Document | None = None) -> JsonObject:
    """The `state` line: the whole, and beside it what has changed, where that is less."""
    line: JsonObject = {"type": "state", "version": desired.version, "desired": desired.value}
    patch = None if before is None or not before.version else diff(before.value, desired.value)
    return line if patch is None or len(str(patch)) > len(str(desired.value)) else line | {"patch": patch}


def _with(state: State, **changes: Any) -> State:
    return replace(state, shadowing=replace(state.shadowing, **changes))
