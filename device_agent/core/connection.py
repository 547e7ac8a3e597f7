"""The connection to the fleet: which broker, when again, what is said at the beginning and at the end."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Final, assert_never

from device_agent import backoff
from device_agent.clock import Moment
from device_agent.core import catalogue, spooling
from device_agent.core.effects import AnnounceReady, Connect, Disconnect, Effect, Exit, FetchConfig, Log, Subscribe
from device_agent.core.events import ConfigFailed, ConfigFetched, Connected, Disconnected, Subscribed
from device_agent.core.shelf import NEVER
from device_agent.core.state import (
    Connecting,
    Fetching,
    Online,
    State,
    Stopped,
    Stopping,
    Subscribing,
    Waiting,
)
from device_agent.failures import Cause, Failure
from device_agent.outbox import Class, Outgoing
from fleet import topics
from fleet.messages import ControlMessage, HelloMessage, Presence, StatusMessage

# Longer than all time-outs of a shell together: when one of these ends a phase, a shell hangs.
CONNECT_SECONDS: Final = 60.0
SUBSCRIBE_SECONDS: Final = 20.0
FETCH_SECONDS: Final = 60.0
GOODBYE_SECONDS: Final = 3.0
# Time for DISCONNECT to arrive before the next connection takes over: no will is published then.
SWITCH_SECONDS: Final = 0.2
# Firmware starts beside the agent: commands that wait at the broker may come before it.
APPLICATION_GRACE_SECONDS: Final = 10.0
# What an admin reads of such a device, in its status.
READ_ONLY: Final = "storage is read-only"
# So many connections in a row that worked and broke at once are no accident.
SUSPICIOUS_SHORT_LIVES: Final = 3


def begin(state: State, moment: Moment, effects: list[Effect]) -> State:
    """At the start: connect if a broker is known, ask for one if not."""
    state = replace(state, applications_expected_until=moment.monotonic + APPLICATION_GRACE_SECONDS)
    return _connect(state, moment, effects) if state.brokers else _fetch(state, moment, effects)


def on_tick(state: State, moment: Moment, effects: list[Effect]) -> State:
    """What was waited for has not come in time, or the pause is over."""
    match state.link:
        case Waiting() | Fetching() | Connecting() | Subscribing() | Stopping() if moment.monotonic < state.link.until:
            return state
        case Waiting():
            is_exhausted = state.tried >= len(state.brokers)
            return _fetch(state, moment, effects) if is_exhausted else _connect(state, moment, effects)
        case Fetching():
            failure = Failure(Cause.TIMED_OUT, "the enrollment service", f"{FETCH_SECONDS:.0f} s")
            return on_config_failed(state, ConfigFailed(failure), moment, effects)
        case Connecting() | Subscribing():
            effects.append(Disconnect(state.link.epoch))
            failure = Failure(Cause.TIMED_OUT, str(state.link.broker), "no CONNACK or SUBACK")
            return _failed(_next_broker(state), failure, moment, effects)
        case Stopping():
            return say_goodbye(state, effects)
        case Online() | Stopped():
            return state
        case _:
            assert_never(state.link)


def next_time(state: State) -> float:
    """When what is waited for is late, or a pause over (monotonic)."""
    match state.link:
        case Waiting() | Fetching() | Connecting() | Subscribing() | Stopping():
            return state.link.until
        case Online() | Stopped():
            return NEVER
        case _:
            assert_never(state.link)


def on_config(state: State, event: ConfigFetched, moment: Moment, effects: list[Effect]) -> State:
    """Connect to the first broker of the fresh list."""
    if not isinstance(state.link, Fetching):
        return state
    effects.append(Log(logging.INFO, "config.fetched", (("brokers", ",".join(map(str, event.brokers))),)))
    if event.brokers != state.brokers:
        state = replace(state, brokers=event.brokers, broker_at=0)
    state = replace(state, tried=0)
    if not state.brokers:
        return _failed(state, Failure(Cause.NO_BROKER), moment, effects)
    return _connect(state, moment, effects)


def on_config_failed(state: State, event: ConfigFailed, moment: Moment, effects: list[Effect]) -> State:
    """The brokers known from before will do; without any, try again later."""
    if not isinstance(state.link, Fetching):
        return state
    if not state.brokers:
        return _failed(state, event.failure, moment, effects)
    effects.append(_log_failure("config.failed", event.failure))
    return _connect(replace(state, tried=0), moment, effects)


def on_connected(state: State, event: Connected, moment: Moment, effects: list[Effect]) -> State:
    """Subscribe, on a session that was kept as well: the broker may have lost it."""
    if not isinstance(state.link, Connecting) or event.epoch != state.link.epoch:
        return state
    effects.append(Subscribe(event.epoch, (topics.own_down(state.settings.device),)))
    until = moment.monotonic + SUBSCRIBE_SECONDS
    return replace(state, link=Subscribing(event.epoch, state.link.broker, until, event.session_present))


def on_subscribed(state: State, event: Subscribed, moment: Moment, effects: list[Effect]) -> State:
    """Ready: say so to the fleet, and ask for what is due."""
    if not isinstance(state.link, Subscribing) or event.epoch != state.link.epoch:
        return state
    link = Online(event.epoch, state.link.broker, moment.monotonic, moment.utc, state.link.session_present)
    fields = (("broker", link.broker), ("session_present", link.session_present))
    effects.append(Log(logging.INFO, "connection.ready", fields))
    if not state.was_ready:
        effects.append(AnnounceReady())
    state = replace(state, link=link, was_ready=True, failure=None, failed_at=None, tried=0)
    return catalogue.tell(greet(say_online(state, moment), moment), moment)


def say_online(state: State, moment: Moment) -> State:
    """Retained by the broker, with what is wrong with the device."""
    return _queue_presence(state, Presence.ONLINE, READ_ONLY if state.is_read_only else "", moment)


def greet(state: State, moment: Moment) -> State:
    """Say hello: dispatch answers with all that is due."""
    state, envelope = state.envelope(moment)
    settings = state.settings
    marks = state.shadowing.shadow.marks.fields()
    hello = HelloMessage(envelope, settings.version, settings.serial, settings.hardware, marks)
    return state.queue(Class.HELLO, topics.Hello(settings.device).format(), hello.encode())


def on_disconnected(state: State, event: Disconnected, moment: Moment, effects: list[Effect]) -> State:
    """Try again after a pause that only a connection that lasted makes short again."""
    if event.epoch != state.epoch:
        return state
    match state.link:
        case Stopping():
            return _stopped(state, effects)
        case Connecting() | Subscribing():
            return _failed(_next_broker(state), event.failure, moment, effects)
        case Online():
            lasted = moment.monotonic - state.link.since >= backoff.STABLE_SECONDS
            state = replace(state, short_lives=0 if lasted else state.short_lives + 1)
            if lasted:
                state = replace(state, failures=0)
            return _failed(state, _suspect(state, event.failure), moment, effects)
        case Waiting() | Fetching() | Stopped():
            return state
        case _:
            assert_never(state.link)


def on_control(state: State, control: ControlMessage, effects: list[Effect]) -> State:
    """When to come back after a loss."""
    state = pace(state, control.reconnect_seconds)
    effects.append(Log(logging.INFO, "control.received", (("reconnect_seconds", f"{state.spread_seconds:g}"),)))
    return state


def pace(state: State, reconnect_seconds: float) -> State:
    """Come back at a random point of so many seconds after a loss; for as long as the agent runs."""
    return replace(state, spread_seconds=min(reconnect_seconds, backoff.MAX_SPREAD_SECONDS))


def change_identity(state: State, moment: Moment, effects: list[Effect]) -> State:
    """What connections are made with has changed: make the next one soon, whatever the present one is at."""
    match state.link:
        case Online() | Connecting() | Subscribing():
            effects.append(Disconnect(state.epoch))
        case Waiting():
            pass  # and not for as long as the last failure wanted
        case Fetching() | Stopping() | Stopped():
            return state
        case _:
            assert_never(state.link)
    pause = SWITCH_SECONDS * (1 + moment.chance)
    outbox = state.outbox.disconnected()
    return replace(state, link=Waiting(moment.monotonic + pause), tried=0, outbox=outbox, unacknowledged=())


def on_stop(state: State, moment: Moment, effects: list[Effect]) -> State:
    """Tell the fleet, if it listens, and end: a DISCONNECT alone would leave the device online for ever."""
    match state.link:
        case Online():
            handle, link = state.handles, state.link
            state = _queue_presence(state, Presence.OFFLINE, "stopped", moment)
            return replace(state, link=Stopping(link.epoch, handle, moment.monotonic + GOODBYE_SECONDS))
        case Connecting() | Subscribing():
            effects.append(Disconnect(state.link.epoch))
            return _stopped(state, effects)
        case Waiting() | Fetching() | Stopping():
            return _stopped(state, effects)
        case Stopped():
            return state
        case _:
            assert_never(state.link)


def say_goodbye(state: State, effects: list[Effect]) -> State:
    """The farewell has arrived, or nobody takes it: DISCONNECT, so that no will is published after it."""
    effects.append(Disconnect(state.epoch))
    return _stopped(state, effects)


def _stopped(state: State, effects: list[Effect]) -> State:
    effects.append(Exit())
    return spooling.on_stopped(replace(state, link=Stopped()))


def _fetch(state: State, moment: Moment, effects: list[Effect]) -> State:
    effects.append(FetchConfig())
    return replace(state, link=Fetching(moment.monotonic + FETCH_SECONDS))


def _connect(state: State, moment: Moment, effects: list[Effect]) -> State:
    broker = state.brokers[state.broker_at % len(state.brokers)]
    state, envelope = state.envelope(moment)
    will = StatusMessage(envelope, Presence.OFFLINE, "connection lost", state.settings.version)
    topic = topics.Status(state.settings.device).format()
    epoch = state.epoch + 1
    last_words = Outgoing(-1, Class.PRESENCE, topic, will.encode(), retain=True)
    effects.append(Connect(epoch, broker, last_words, state.settings.keepalive_seconds))
    return replace(state, epoch=epoch, link=Connecting(epoch, broker, moment.monotonic + CONNECT_SECONDS))


def _next_broker(state: State) -> State:
    return replace(state, broker_at=state.broker_at + 1, tried=state.tried + 1)


def _failed(state: State, failure: Failure, moment: Moment, effects: list[Effect]) -> State:
    """Wait, with full jitter, and longer each time."""
    is_over = moment.utc > state.settings.not_after and failure.cause in (Cause.REFUSED, Cause.CLOSED)
    if failure.tells_expiry or is_over:
        failure = replace(failure, cause=Cause.OWN_EXPIRED)
    failures = state.failures + 1
    spread = state.spread_seconds if isinstance(state.link, Online) else 0.0
    pause = backoff.delay_seconds(failures, moment.chance, spread)
    effects.append(_log_failure("connection.failed", failure, retry_seconds=f"{pause:.1f}"))
    return replace(
        state,
        link=Waiting(moment.monotonic + pause),
        failures=failures,
        failure=failure,
        failed_at=moment.utc,
        outbox=state.outbox.disconnected(),
        unacknowledged=(),
    )


def _suspect(state: State, failure: Failure) -> Failure:
    if failure.cause is Cause.LOST and state.short_lives >= SUSPICIOUS_SHORT_LIVES:
        return replace(failure, cause=Cause.SHORT_LIVED)
    return failure


def _queue_presence(state: State, presence: Presence, reason: str, moment: Moment) -> State:
    state, envelope = state.envelope(moment)
    status = StatusMessage(envelope, presence, reason, state.settings.version)
    return state.queue(Class.PRESENCE, topics.Status(state.settings.device).format(), status.encode())


def _log_failure(name: str, failure: Failure, **fields: object) -> Log:
    shown = {"cause": failure.cause.value, "peer": failure.peer, "detail": failure.detail} | fields
    return Log(logging.WARNING, name, tuple(shown.items()))
