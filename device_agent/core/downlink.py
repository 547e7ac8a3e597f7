"""What comes down to this device is acted on once it is known to be the fleet's own word; the rest is refused.

    arrived --key known--> being looked at --good--> acted on
       \\                        \\--anything else--> refused: acknowledged, counted, logged
        \\--key not known--> the service is asked --known now--> being looked at
                                              \\--still not--> refused

A broker that is asked nothing more forgets a message, so what is refused is acknowledged: else it would come for ever.
What was refused because nobody could look at it comes again all the same: hello is said once more, which is answered
with all that is due; a minute later at the earliest, and ever more rarely.
Before the service was ever asked nothing is acted on. One that is older than signatures names no signer: then
everything is taken, as long as it is the only thing that was ever heard from it.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from device_agent import backoff
from device_agent.clock import Moment
from device_agent.core import connection
from device_agent.core.effects import Acknowledge, Effect, FetchConfig, Log, Verify
from device_agent.core.events import Arrived, ConfigFetched, Verified
from device_agent.core.shelf import NEVER
from device_agent.core.state import Asking, Greeting, Held, Online, State, Subscribing
from device_agent.verdicts import Trust, Verdict, words_of
from fleet.messages import MAX_MESSAGE_BYTES, MAX_SIGNATURE_BYTES

if TYPE_CHECKING:
    from fleet.downlink import Signed

MAX_HELD: Final = 128
MAX_HELD_BYTES: Final = 2 << 20
MAX_ATTEMPTS: Final = 5
_RETRY_SECONDS: Final = 1.0  # doubled with each attempt
_ASK_SECONDS: Final = 60.0  # longer than all time-outs of a request: a thread that hangs in a name look-up
# Whoever invents keys has the service asked: ever more rarely, until a key that it names ends it.
_FRUITLESS_SECONDS: Final = 15.0
_MAX_FRUITLESS_SECONDS: Final = 3600.0
_GREET_SECONDS: Final = 60.0  # doubled with each hello, and begun anew when none was due for a while
_MAX_GREET_SECONDS: Final = 3600.0


Accepted = tuple[Arrived, datetime | None]
"""A message to act on, as it was signed; and until when it is good, if it says so."""

_Outcome = tuple[State, tuple[Accepted, ...]]


def on_arrived(state: State, event: Arrived, moment: Moment, effects: list[Effect]) -> _Outcome:
    """A message for this device has come. What of it is to be acted on now."""
    waiting = state.downlink.held
    if len(event.payload) > MAX_MESSAGE_BYTES + MAX_SIGNATURE_BYTES:
        return _refuse(state, event, Verdict.UNSIGNED, "", moment, effects), ()
    size = sum(len(each.arrived.payload) for each in waiting) + len(event.payload)
    if len(waiting) >= MAX_HELD or size > MAX_HELD_BYTES:
        return _refuse(state, event, Verdict.OVERRUN, "", moment, effects), ()
    number = state.downlink.numbers
    return _judge(_with(state, numbers=number + 1), Held(number, event), moment, effects)


def on_verified(state: State, event: Verified, moment: Moment, effects: list[Effect]) -> _Outcome:
    """Somebody has looked at a signature; what is to be acted on now."""
    held = next((each for each in state.downlink.held if each.number == event.number), None)
    if held is None:  # its connection has ended, and it comes again
        return state, ()
    if event.verdict is Verdict.FAILED:
        return _on_failed(state, held, event.detail, moment, effects), ()
    state = _with(_without(state, held), problem="")
    signed = _split(held.arrived.payload)
    if event.verdict is not Verdict.GOOD or signed is None:
        return _refuse(state, held.arrived, event.verdict, event.detail, moment, effects), ()
    accepted = replace(held.arrived, payload=signed.body), signed.until
    return _with(state, verified=state.downlink.verified + 1), (accepted,)


def on_config(state: State, event: ConfigFetched, moment: Moment, effects: list[Effect]) -> _Outcome:
    """The service has said who signs; what waited for that is looked at again."""
    if event.trust is None:
        return state, ()
    known = state.downlink
    if event.trust is not known.trust or event.key_ids != known.key_ids:
        fields = (("trust", event.trust.value), ("keys", len(event.key_ids)))
        effects.append(Log(logging.INFO, "signers.told", fields))
    waiting = tuple(each for each in known.held if each.is_asking)
    has_news = not set(event.key_ids) <= set(known.key_ids)
    fruitless = 0 if has_news else known.asking.fruitless + bool(waiting)
    pause = min(_FRUITLESS_SECONDS * 2.0 ** (fruitless - 1), _MAX_FRUITLESS_SECONDS) if fruitless else 0.0
    asking = Asking(fruitless=fruitless, refuses_until=moment.monotonic + pause)
    others = tuple(each for each in known.held if not each.is_asking)
    state = _with(state, trust=event.trust, key_ids=event.key_ids, asking=asking, held=others)
    accepted: list[Accepted] = []
    for each in waiting:
        state, more = _judge(state, each, moment, effects)
        accepted += more
    return state, tuple(accepted)


def on_config_failed(state: State, moment: Moment) -> State:
    """It could not be asked: what waits for its answer waits on, and it is asked again."""
    asking = state.downlink.asking
    if asking.until == NEVER:
        return state
    failures = asking.failures + 1
    again = moment.monotonic + backoff.delay_seconds(failures, moment.chance)
    return _with(state, asking=replace(asking, until=NEVER, failures=failures, again_at=again))


def on_tick(state: State, moment: Moment, effects: list[Effect]) -> State:
    """What failed is tried again, and an answer that does not come is no longer waited for."""
    now = moment.monotonic
    for each in state.downlink.held:
        if each.retry_at <= now:
            state = _look_at(_without(state, each), replace(each, retry_at=NEVER), moment, effects)
    if state.downlink.asking.until <= now:
        state = on_config_failed(state, moment)
    if state.downlink.asking.again_at <= now:
        is_wanted = any(each.is_asking for each in state.downlink.held)
        state = _ask(state, moment, effects) if is_wanted else _with(state, asking=Asking())
    return _say_hello(state, moment) if state.downlink.greeting.due_at <= now else state


def next_time(state: State) -> float:
    """When something is to be tried again (monotonic)."""
    asking, greeting = state.downlink.asking, state.downlink.greeting
    return min([asking.until, asking.again_at, greeting.due_at, *(each.retry_at for each in state.downlink.held)])


def settle(state: State) -> State:
    """What came on a connection that is over comes again on the next, and is forgotten; so does what was refused."""
    is_live = isinstance(state.link, Subscribing | Online)
    if not is_live and state.downlink.greeting.due_at != NEVER:
        state = _with(state, greeting=replace(state.downlink.greeting, due_at=NEVER))
    if not state.downlink.held:
        return state
    kept = tuple(each for each in state.downlink.held if is_live and each.arrived.epoch == state.epoch)
    return _with(state, held=kept) if len(kept) < len(state.downlink.held) else state


def _judge(state: State, held: Held, moment: Moment, effects: list[Effect]) -> _Outcome:
    """Look at it, ask who may have signed it, refuse it; or act on it, where nobody signs."""
    known, has_asked = state.downlink, held.is_asking
    if known.trust is Trust.UNKNOWN:
        return _wait_for_service(state, held, moment, effects), ()
    signed = _split(held.arrived.payload)
    if known.trust is Trust.UNSIGNED:
        if signed is None or has_asked or moment.monotonic < known.asking.refuses_until:
            return state, ((held.arrived, None),)
        return _wait_for_service(state, held, moment, effects), ()
    if signed is None:
        return _refuse(state, held.arrived, Verdict.UNSIGNED, "", moment, effects), ()
    if signed.key_id in known.key_ids:
        return _look_at(state, replace(held, is_asking=False), moment, effects), ()
    if has_asked or moment.monotonic < known.asking.refuses_until:
        return _refuse(state, held.arrived, Verdict.UNKNOWN_SIGNER, "", moment, effects), ()
    return _wait_for_service(state, held, moment, effects), ()


def _look_at(state: State, held: Held, moment: Moment, effects: list[Effect]) -> State:
    arrived = held.arrived
    effects.append(Verify(held.number, arrived.topic, arrived.payload, moment.utc, arrived.epoch))
    return _with(state, held=(*state.downlink.held, held))


def _wait_for_service(state: State, held: Held, moment: Moment, effects: list[Effect]) -> State:
    state = _with(state, held=(*state.downlink.held, replace(held, is_asking=True)))
    asking = state.downlink.asking
    is_idle = asking.until == NEVER and asking.again_at == NEVER
    return _ask(state, moment, effects) if is_idle else state


def _ask(state: State, moment: Moment, effects: list[Effect]) -> State:
    effects.append(FetchConfig())
    asking = replace(state.downlink.asking, until=moment.monotonic + _ASK_SECONDS, again_at=NEVER)
    return _with(state, asking=asking)


def _on_failed(state: State, held: Held, detail: str, moment: Moment, effects: list[Effect]) -> State:
    """Nobody could look: again, after a pause; a message that none survives is refused."""
    attempts, others = held.attempts + 1, _with(_without(state, held), problem=detail)
    fields = (("topic", held.arrived.topic), ("attempt", attempts), ("reason", detail))
    effects.append(Log(logging.ERROR, "verifier.failed", fields))
    if attempts >= MAX_ATTEMPTS:
        return _refuse(others, held.arrived, Verdict.FAILED, detail, moment, effects)
    retry_at = moment.monotonic + _RETRY_SECONDS * 2.0 ** (attempts - 1)
    again = replace(held, attempts=attempts, retry_at=retry_at)
    return _with(others, held=(*others.downlink.held, again))


def _refuse(
    state: State, event: Arrived, verdict: Verdict, detail: str, moment: Moment, effects: list[Effect]
) -> State:
    """Told in the log once, twice, the fourth time, the eighth: who floods us is not to fill the disk."""
    effects.append(Acknowledge(event.epoch, event.mid, event.qos))
    count = state.downlink.refused + 1
    if count & (count - 1) == 0:
        fields = (("topic", event.topic), ("code", verdict.value), ("reason", words_of(verdict).message))
        more = (("detail", detail),) if detail else ()
        effects.append(Log(logging.WARNING, "message.refused", (*fields, *more, ("refused", count))))
    greeting = state.downlink.greeting
    if verdict in (Verdict.OVERRUN, Verdict.FAILED):
        greeting = _due(greeting, moment)
    return _with(state, refused=count, last=(event.topic, verdict, moment.utc), greeting=greeting)


def _due(greeting: Greeting, moment: Moment) -> Greeting:
    """One hello for all that is refused until then."""
    if greeting.due_at != NEVER:
        return greeting
    is_quiet = moment.monotonic - greeting.said_at > 2 * _MAX_GREET_SECONDS
    count = 0 if is_quiet else greeting.count
    pause = min(_GREET_SECONDS * 2.0**count, _MAX_GREET_SECONDS) * (1 + moment.chance / 4)
    return replace(greeting, due_at=moment.monotonic + pause, count=count)


def _say_hello(state: State, moment: Moment) -> State:
    greeting = Greeting(said_at=moment.monotonic, count=state.downlink.greeting.count + 1)
    if not isinstance(state.link, Online):  # which begins with a hello
        return _with(state, greeting=replace(state.downlink.greeting, due_at=NEVER))
    return connection.greet(_with(state, greeting=greeting), moment)


def _split(payload: bytes) -> Signed | None:
    from fleet import downlink  # here, because it costs memory, and most of the time nothing comes

    return downlink.split(payload)


def _without(state: State, held: Held) -> State:
    return _with(state, held=tuple(each for each in state.downlink.held if each is not held))


def _with(state: State, **changes: Any) -> State:
    return replace(state, downlink=replace(state.downlink, **changes))
