"""One event at a time: the table from events to what handles them."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import datetime
from typing import assert_never

from device_agent.clock import Moment
from device_agent.core import (
    applications,
    catalogue,
    commands,
    connection,
    downlink,
    renewing,
    shadowing,
    spooling,
    storage,
)
from device_agent.core.downlink import Accepted
from device_agent.core.effects import Acknowledge, Effect, Log, Publish
from device_agent.core.events import (
    AppJoined,
    AppLeft,
    AppSaid,
    Arrived,
    ConfigFailed,
    ConfigFetched,
    ConfirmationFailed,
    Confirmed,
    Connected,
    Disconnected,
    Event,
    IdentityChanged,
    Journalled,
    RenewalFailed,
    RenewalPutOff,
    Sent,
    ShadowSaved,
    SpoolFailed,
    SpoolOpened,
    SpoolRead,
    SpoolWritten,
    Started,
    StopRequested,
    StorageChanged,
    Subscribed,
    SuccessorReady,
    Tick,
    UploadEnded,
    Verified,
)
from device_agent.core.shelf import NEVER
from device_agent.core.state import Online, State, Stopping, Subscribing
from fleet import messages, topics
from fleet.errors import InvalidInput

_TO_DEVICES = topics.Command | topics.Control | topics.DesiredState | topics.Job


def step(state: State, event: Event, moment: Moment) -> tuple[State, tuple[Effect, ...]]:
    """What the agent knows after `event`, and what it does about it."""
    effects: list[Effect] = []
    after = renewing.settle(state, _handle(state, event, moment, effects), moment, effects)
    after = commands.on_renewal(state, after, effects)
    if after.is_online != state.is_online:
        applications.tell_all(after, effects)
    after = downlink.settle(spooling.settle(after, moment, effects))
    return _publish(after, effects), tuple(effects)


def _handle(state: State, event: Event, moment: Moment, effects: list[Effect]) -> State:
    match event:
        case Started():
            state = renewing.begin(commands.resume(state, moment, effects), moment)
            return connection.begin(spooling.begin(state), moment, effects)
        case Tick():
            state = downlink.on_tick(connection.on_tick(state, moment, effects), moment, effects)
            state = shadowing.on_tick(catalogue.on_tick(state, moment), moment, effects)
            return commands.on_tick(state, moment, effects)
        case ConfigFetched() | ConfigFailed():
            return _on_config(state, event, moment, effects)
        case Connected():
            return connection.on_connected(state, event, moment, effects)
        case Subscribed():
            after = connection.on_subscribed(state, event, moment, effects)
            return _on_online(after, moment, effects) if after is not state else state
        case Disconnected():
            return connection.on_disconnected(state, event, moment, effects)
        case Arrived() | Verified():
            return _on_arrived(state, event, moment, effects)
        case Sent():
            return _on_sent(state, event, moment, effects)
        case Journalled() | UploadEnded():
            return commands.on_event(state, event, moment, effects)
        case ShadowSaved() | StorageChanged():
            return _on_storage(state, event, moment, effects)
        case SpoolOpened() | SpoolWritten() | SpoolRead() | SpoolFailed():
            return spooling.on_event(state, event, moment, effects)
        case AppJoined() | AppSaid() | AppLeft():
            return applications.on_event(state, event, moment, effects)
        case (
            SuccessorReady()
            | RenewalPutOff()
            | RenewalFailed()
            | IdentityChanged()
            | Confirmed()
            | ConfirmationFailed()
        ):
            return renewing.on_event(state, event, moment, effects)
        case StopRequested():
            return connection.on_stop(state, moment, effects)
        case _:
            assert_never(event)


def _on_online(state: State, moment: Moment, effects: list[Effect]) -> State:
    """The time is confirmed by now, which some of what an earlier run left has waited for."""
    state = commands.hand_over(commands.on_online(state, moment), moment, effects)
    return shadowing.on_online(state, moment)


def _on_storage(state: State, event: ShadowSaved | StorageChanged, moment: Moment, effects: list[Effect]) -> State:
    if isinstance(event, ShadowSaved):
        return shadowing.on_saved(state, event, moment, effects)
    return storage.on_changed(state, event, moment, effects)


def _on_config(state: State, event: ConfigFetched | ConfigFailed, moment: Moment, effects: list[Effect]) -> State:
    if isinstance(event, ConfigFailed):
        return connection.on_config_failed(downlink.on_config_failed(state, moment), event, moment, effects)
    state, accepted = downlink.on_config(state, event, moment, effects)
    return connection.on_config(_act(state, accepted, moment, effects), event, moment, effects)


def _on_arrived(state: State, event: Arrived | Verified, moment: Moment, effects: list[Effect]) -> State:
    """Everything that arrives is acknowledged, now or when it is on disk: a broker would send it for ever."""
    if isinstance(event, Verified):
        return _act(*downlink.on_verified(state, event, moment, effects), moment, effects)
    if event.epoch != state.epoch or not isinstance(state.link, Subscribing | Online):
        return state
    try:
        topic = topics.parse(event.topic)
        if isinstance(topic, _TO_DEVICES) and topic.device == state.settings.device:
            return _act(*downlink.on_arrived(state, event, moment, effects), moment, effects)
        reason = "this agent does not handle the topic"
    except InvalidInput as error:
        reason = error.message
    return _set_aside(state, event, reason, effects)


def _act(state: State, accepted: tuple[Accepted, ...], moment: Moment, effects: list[Effect]) -> State:
    """Do what the fleet has said."""
    for event, until in accepted:
        try:
            state = _act_on(state, event, until, moment, effects)
        except InvalidInput as error:
            state = _set_aside(state, event, error.message, effects)
    return state


def _act_on(state: State, event: Arrived, until: datetime | None, moment: Moment, effects: list[Effect]) -> State:
    """Raises: InvalidInput for what cannot be read, or comes too late."""
    topic, acknowledge = topics.parse(event.topic), Acknowledge(event.epoch, event.mid, event.qos)
    if isinstance(topic, topics.Command):  # which says itself until when it may begin, and answers
        return commands.on_command(state, topic, event.payload, acknowledge, moment, effects)
    if until is not None and moment.utc > until:
        raise InvalidInput(f"it was good until {messages.format_time(until)}")
    if isinstance(topic, topics.DesiredState):
        return shadowing.on_desired(state, event.payload, acknowledge, moment, effects)
    if isinstance(topic, topics.Control):
        control = messages.decode_control(event.payload, topic.device)
        effects.append(acknowledge)
        return connection.on_control(state, control, effects)
    raise InvalidInput("this agent does not handle the topic")


def _set_aside(state: State, event: Arrived, reason: str, effects: list[Effect]) -> State:
    acknowledge = Acknowledge(event.epoch, event.mid, event.qos)
    effects += [acknowledge, Log(logging.WARNING, "message.set_aside", (("topic", event.topic), ("reason", reason)))]
    return replace(state, set_aside=state.set_aside + 1)


def _on_sent(state: State, event: Sent, moment: Moment, effects: list[Effect]) -> State:
    if event.epoch != state.epoch:
        return state
    outbox, message = state.outbox.confirm(event.handle)
    state = replace(state, outbox=outbox)
    if message is not None:
        state = spooling.on_confirmed(commands.on_confirmed(state, message, moment), message, moment)
    if isinstance(state.link, Stopping) and state.link.handle == event.handle:
        return connection.say_goodbye(state, effects)
    return state


def _publish(state: State, effects: list[Effect]) -> State:
    """Hand to the connection what its window has room for."""
    if not isinstance(state.link, Online | Stopping):
        return state
    outbox, taken = state.outbox.take(state.spool.held)
    effects += [Publish(state.link.epoch, message) for message in taken]
    return replace(state, outbox=outbox)


def next_deadline(state: State) -> float | None:
    """The monotonic time at which a `Tick` is due; None if only others' events can change anything."""
    times = [
        state.tell_commands_at,
        commands.next_time(state),
        connection.next_time(state),
        spooling.next_time(state),
        renewing.next_time(state),
        downlink.next_time(state),
        shadowing.next_time(state),
    ]
    return None if min(times) == NEVER else min(times)
