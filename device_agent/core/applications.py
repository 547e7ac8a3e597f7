"""What applications ask for, and what they are told (docs/application-socket.md)."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any, Final, assert_never

from device_agent.clock import Moment
from device_agent.core import catalogue, commands, renewing, shadowing
from device_agent.core.connection import APPLICATION_GRACE_SECONDS
from device_agent.core.effects import Effect, Log, Tell
from device_agent.core.events import AppJoined, AppLeft, AppSaid
from device_agent.core.report import status_line
from device_agent.core.state import App, State
from device_agent.journal import Phase
from device_agent.outbox import Class
from device_agent.requests import (
    AskRenewal,
    AskState,
    AskStatus,
    PublishEvent,
    PublishTelemetry,
    Register,
    ReportResult,
    ReportState,
)
from fleet import messages, topics
from fleet.messages import InvalidMessage, ResultState

PROTOCOL: Final = 1


def on_event(state: State, event: AppJoined | AppSaid | AppLeft, moment: Moment, effects: list[Effect]) -> State:
    """An application came, said something, or went."""
    match event:
        case AppJoined():
            return _on_joined(state, event, effects)
        case AppSaid():
            return _on_said(state, event, moment, effects)
        case AppLeft():
            return _on_left(state, event, moment, effects)
        case _:
            assert_never(event)


def _on_joined(state: State, event: AppJoined, effects: list[Effect]) -> State:
    """Say who we are."""
    welcome = {"type": "welcome", "v": PROTOCOL, "device": str(state.settings.device), "online": state.is_online}
    effects.append(Tell(event.app, welcome))
    return replace(state, apps=(*state.apps, App(event.app)))


def _on_left(state: State, event: AppLeft, moment: Moment, effects: list[Effect]) -> State:
    """What it had not answered has failed; its successor may take what is not begun."""
    gone = next((app for app in state.apps if app.number == event.app), None)
    if gone is None:
        return state
    state = replace(state, apps=tuple(app for app in state.apps if app is not gone))
    if gone.commands:
        state = replace(state, applications_expected_until=moment.monotonic + APPLICATION_GRACE_SECONDS)
        effects.append(Log(logging.INFO, "application.left", (("app", gone.name),)))
    for entry in state.journal.of(Phase.OPEN):
        if entry.app == event.app:
            error = "the application went away before it answered"
            state = commands.finish(state, entry, ResultState.FAILED, None, error, effects)
    return state


def _on_said(state: State, event: AppSaid, moment: Moment, effects: list[Effect]) -> State:
    """Do what was asked for, or say why not."""
    match event.request:
        case Register() as request:
            return _register(state, event.app, request, moment, effects)
        case PublishTelemetry(stream, data, qos):
            topic = topics.Telemetry(state.settings.device, stream).format()
            return _publish(state, event.app, Class.TELEMETRY, topic, data, qos, moment, effects)
        case PublishEvent(kind, data):
            topic = topics.Event(state.settings.device, kind).format()
            return _publish(state, event.app, Class.ALARM, topic, data, 1, moment, effects)
        case ReportResult() as request:
            return _report(state, event.app, request, moment, effects)
        case AskStatus():
            effects.append(Tell(event.app, status_line(state, moment)))
            return state
        case ReportState(patch):
            return shadowing.report(state, event.app, patch, moment, effects)
        case AskState():
            shadowing.tell(state, event.app, effects, is_asked=True)
            return state
        case AskRenewal():
            return renewing.ask(state, event.app, moment, effects)
        case _:
            assert_never(event.request)


def tell_all(state: State, effects: list[Effect]) -> None:
    """Every application learns that the connection came or went."""
    effects += [Tell(app.number, {"type": "online", "online": state.is_online}) for app in state.apps]


def _register(state: State, number: int, request: Register, moment: Moment, effects: list[Effect]) -> State:
    declared = catalogue.declare(state, request, moment)
    if declared is None:
        return _refuse(state, number, "the commands of all applications, with their schemas, are too much", effects)
    state, rank = declared, state.registrations + 1
    registered = App(number, request.app, request.commands, rank, request.schemas)
    apps = tuple(registered if app.number == number else app for app in state.apps)
    fields = (("app", request.app), ("commands", ",".join(request.commands)))
    effects.append(Log(logging.INFO, "application.registered", fields))
    shadowing.tell(state, number, effects)
    return commands.hand_over(replace(state, apps=apps, registrations=rank), moment, effects)


def _publish(
    state: State, app: int, kind: Class, topic: str, data: Any, qos: int, moment: Moment, effects: list[Effect]
) -> State:
    state, envelope = state.envelope(moment)
    try:
        payload = messages.encode_object(envelope.fields() | {"data": data})
    except InvalidMessage as error:
        return _refuse(state, app, error.message, effects)
    return state.queue(kind, topic, payload, qos, accepted=moment.monotonic)


def _report(state: State, app: int, request: ReportResult, moment: Moment, effects: list[Effect]) -> State:
    entry = state.journal.find(request.command_id)
    if entry is None or entry.phase is not Phase.OPEN or entry.app != app:
        return _refuse(state, app, f"{request.command_id} is not a command that waits for your answer", effects)
    if request.state.is_final:
        return commands.finish(state, entry, request.state, request.output, request.error, effects)
    progress = replace(entry, output=request.output, error=request.error)
    return commands.queue_result(state, progress, request.state, moment)


def _refuse(state: State, app: int, message: str, effects: list[Effect]) -> State:
    effects.append(Tell(app, {"type": "error", "message": message}))
    return state
