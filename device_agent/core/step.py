"""One event at a time: the table from events to what handles them."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import assert_never

from device_agent.clock import Moment
from device_agent.core import applications, catalogue, commands, connection, renewing, spooling
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
    SpoolFailed,
    SpoolOpened,
    SpoolRead,
    SpoolWritten,
    Started,
    StopRequested,
    Subscribed,
    SuccessorReady,
    Tick,
    UploadEnded,
)
from device_agent.core.shelf import NEVER
from device_agent.core.state import Online, State, Stopping, Subscribing
from fleet import messages, topics
from fleet.errors import InvalidInput


def step(state: State, event: Event, moment: Moment) -> tuple[State, tuple[Effect, ...]]:
    """What the agent knows after `event`, and what it does about it."""
    effects: list[Effect] = []
    after = renewing.settle(state, _handle(state, event, moment, effects), moment, effects)
    if after.is_online != state.is_online:
        applications.tell_all(after, effects)
    return _publish(spooling.settle(after, moment, effects), effects), tuple(effects)


def _handle(state: State, event: Event, moment: Moment, effects: list[Effect]) -> State:
    match event:
        case Started():
            state = renewing.begin(commands.resume(state, moment), moment)
            return connection.begin(spooling.begin(state), moment, effects)
        case Tick():
            state = catalogue.on_tick(connection.on_tick(state, moment, effects), moment)
            return commands.on_tick(state, moment, effects)
        case ConfigFetched():
            return connection.on_config(state, event, moment, effects)
        case ConfigFailed():
            return connection.on_config_failed(state, event, moment, effects)
        case Connected():
            return connection.on_connected(state, event, moment, effects)
        case Subscribed():
            return connection.on_subscribed(state, event, moment, effects)
        case Disconnected():
            return connection.on_disconnected(state, event, moment, effects)
        case Arrived():
            return _on_arrived(state, event, moment, effects)
        case Sent():
            return _on_sent(state, event, moment, effects)
        case Journalled() | UploadEnded():
            return commands.on_event(state, event, moment, effects)
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


def _on_arrived(state: State, event: Arrived, moment: Moment, effects: list[Effect]) -> State:
    """Everything that arrives is acknowledged, now or when it is on disk: a broker would send it for ever."""
    if event.epoch != state.epoch or not isinstance(state.link, Subscribing | Online):
        return state
    acknowledge = Acknowledge(event.epoch, event.mid, event.qos)
    try:
        topic = topics.parse(event.topic)
        if isinstance(topic, topics.Command) and topic.device == state.settings.device:
            return commands.on_command(state, topic, event.payload, acknowledge, moment, effects)
        if isinstance(topic, topics.Control) and topic.device == state.settings.device:
            effects.append(acknowledge)
            return connection.on_control(state, messages.decode_control(event.payload, topic.device), effects)
        reason = "this agent does not handle the topic"
    except InvalidInput as error:
        reason = error.message
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
    ]
    return None if min(times) == NEVER else min(times)
