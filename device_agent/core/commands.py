"""What becomes of a command: on disk, to an application, its answer to the fleet. `journal` draws the phases."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

from device_agent.clock import Moment
from device_agent.core import connection, renewing
from device_agent.core.effects import Acknowledge, Effect, Log, SaveJournal, Tell, Upload
from device_agent.core.events import Journalled, UploadEnded
from device_agent.core.shelf import NEVER
from device_agent.core.spooling import CONFIRMED_SECONDS
from device_agent.core.state import App, State
from device_agent.journal import MAX_UNFINISHED, REMEMBERED, Entry, Phase
from device_agent.outbox import Class, Outgoing
from fleet import messages, topics, upkeep, uploads
from fleet.errors import InvalidInput
from fleet.messages import InvalidMessage, ResultMessage, ResultState

# A clock that is set back by less cannot make anything good again that the fleet was told is over.
LONG_OVER: Final = timedelta(days=1)


def resume(state: State, moment: Moment, effects: list[Effect]) -> State:
    """At the start: what the broker has not confirmed is sent again; an earlier run may not have come to it.

    An upload that an earlier run left is on disk as one of this run before it is gone on with.
    """
    if state.journal.of(Phase.RECEIVED):
        effects.append(SaveJournal(state.journal))
    for entry in state.journal.of(Phase.FINAL):
        if not entry.is_confirmed:
            state = _queue_final(state, entry, moment)
    return state


def on_online(state: State, moment: Moment) -> State:
    """A list of commands that was lost is dated: by a clock that a handshake confirmed, or it might be in 2040.

    Where only a lower bound of the time is known nothing is taken for new until the service has told it.
    """
    is_unsure = not moment.is_confirmed or (moment.reading is not None and moment.reading.is_lower_bound)
    if not state.journal.is_lost or is_unsure or not state.is_online:
        return state
    return replace(state, journal=state.journal.dated(moment.utc), save_journal_at=moment.monotonic)


def on_command(
    state: State, topic: topics.Command, payload: bytes, acknowledge: Acknowledge, moment: Moment, effects: list[Effect]
) -> State:
    """A command has come, for the first time or again. Raises: InvalidMessage."""
    known = state.journal.find(topic.command_id)
    if known is not None:
        return _on_repeated(state, known, acknowledge, moment, effects)
    command = messages.decode_command(payload, topic.device)
    entry = Entry(topic.command_id, topic.name, deadline=command.deadline, args=command.args, sent_at=command.sent_at)
    if state.journal.may_have_forgotten(command.sent_at, moment.utc):
        entry = entry.finished(ResultState.FAILED, error="it is so old that this device may have run it before")
    elif moment.utc > command.deadline:
        entry = entry.finished(ResultState.EXPIRED, error="it arrived after its deadline")
    elif state.journal.unfinished >= MAX_UNFINISHED:
        entry = entry.finished(ResultState.FAILED, error=f"{MAX_UNFINISHED} commands are unfinished on this device")
    fields = (("command", entry.name), ("command_id", entry.id))
    effects.append(Log(logging.INFO, "command.received", fields))
    if entry.phase is Phase.FINAL and moment.is_confirmed and moment.utc - LONG_OVER > command.deadline:
        return _decline(state, entry, acknowledge, moment, effects)
    return _save(replace(state, unacknowledged=(*state.unacknowledged, acknowledge)), entry, effects)


def _decline(state: State, entry: Entry, acknowledge: Acknowledge, moment: Moment, effects: list[Effect]) -> State:
    """Nothing was begun, nor ever will be: the fleet is told, and nothing is written.

    A broker that repeats what it kept of years would wear out the flash, or fill the memory.
    """
    effects.append(acknowledge)
    is_told = state.outbox.holds_result(entry.id) or state.outbox.results >= REMEMBERED
    return state if is_told else _queue_final(state, entry, moment)


def on_event(state: State, event: Journalled | UploadEnded, moment: Moment, effects: list[Effect]) -> State:
    """What was ordered of the disk or of an upload has come to its end."""
    if isinstance(event, UploadEnded):
        return _on_upload_ended(state, event, effects)
    return _on_journalled(state, event, moment, effects)


def _on_journalled(state: State, event: Journalled, moment: Moment, effects: list[Effect]) -> State:
    """The journal is on disk: acknowledge, hand over, answer."""
    effects += state.unacknowledged
    state = replace(state, unacknowledged=())
    if event.error:
        effects.append(Log(logging.ERROR, "journal.not_written", (("reason", event.error),)))
    for entry in state.journal.of(Phase.RECEIVED):
        if event.error:
            # Begun now, it could begin a second time after a restart. The failure itself needs no memory.
            failed = entry.finished(ResultState.FAILED, error=f"the device cannot remember it: {event.error}")
            state = replace(state, journal=state.journal.put(failed))
        else:
            held = replace(entry, phase=Phase.HELD, hold_until=_hold_until(state, entry, moment))
            state = replace(state, journal=state.journal.put(held))
    return _answer_final(hand_over(state, moment, effects), moment)


def on_tick(state: State, moment: Moment, effects: list[Effect]) -> State:
    """Commands that nobody took in time have failed, or expired; what was confirmed is written down."""
    state = on_online(state, moment)
    if moment.monotonic >= state.save_journal_at:
        effects.append(SaveJournal(state.journal))
        state = replace(state, save_journal_at=NEVER)
    return hand_over(state, moment, effects)


def hand_over(state: State, moment: Moment, effects: list[Effect]) -> State:
    """Every held command goes to the application that takes it, or fails when its time is over."""
    for entry in state.journal.of(Phase.HELD):
        app = state.owner_of(entry.name)
        if entry.name == uploads.COMMAND:
            state = _begin_upload(state, entry, moment, effects)
        elif entry.name in upkeep.NAMES:
            state = _begin_upkeep(state, entry, moment, effects)
        elif entry.deadline is not None and moment.utc > entry.deadline:
            state = finish(
                state, entry, ResultState.EXPIRED, None, "no application took it before its deadline", effects
            )
        elif app is not None and (wrong := _misfit(app, entry)):
            state = finish(state, entry, ResultState.FAILED, None, f"the arguments do not fit: {wrong}", effects)
        elif app is not None:
            state = _open(state, entry, app.number, moment, effects)
        elif moment.monotonic >= entry.hold_until:
            state = finish(state, entry, ResultState.FAILED, None, _nobody_takes(state, entry), effects)
    return state


def _on_upload_ended(state: State, event: UploadEnded, effects: list[Effect]) -> State:
    """The fleet has what it asked for, or will not get it; once that is on disk the next upload begins."""
    entry = state.journal.find(event.command_id)
    if entry is None or entry.phase is not Phase.OPEN:
        return state
    result = ResultState.FAILED if event.error else ResultState.DONE
    return finish(state, entry, result, event.output, event.error, effects)


def _begin_upkeep(state: State, entry: Entry, moment: Moment, effects: list[Effect]) -> State:
    """The agent's own: a new certificate at the drawn moment, or when to come back after a loss."""
    if entry.deadline is None or moment.utc > entry.deadline:
        return finish(state, entry, ResultState.EXPIRED, None, "its deadline came before it was begun", effects)
    try:
        order = upkeep.decode_upkeep(entry.name, entry.args)
    except InvalidInput as error:
        return finish(state, entry, ResultState.FAILED, None, error.message, effects)
    if isinstance(order, upkeep.PaceOrder):
        state = connection.pace(state, order.reconnect_seconds)
        return finish(state, entry, ResultState.DONE, order.encode(), "", effects)
    if moment.monotonic < entry.hold_until:
        return state
    state, problem = renewing.begin_now(state, moment)
    if problem is not None:
        return finish(state, entry, ResultState.FAILED, None, f"{problem.message}: {problem.hint}", effects)
    opened = replace(entry, phase=Phase.OPEN, args={})
    return queue_result(replace(state, journal=state.journal.put(opened)), opened, ResultState.ACCEPTED, moment)


def on_renewal(before: State, after: State, effects: list[Effect]) -> State:
    """A renewal has come to an end; who asked for it hears how, at the first failure too."""
    is_done = after.renewal.done > before.renewal.done
    if not is_done and after.renewal.failed == before.renewal.failed:
        return after
    settings, problem = after.settings, after.renewal.problem
    for entry in after.journal.of(Phase.OPEN):
        if entry.name == upkeep.RENEW and is_done:
            output = {"serial": str(settings.serial), "not_after": messages.format_time(settings.not_after)}
            after = finish(after, entry, ResultState.DONE, output, "", effects)
        elif entry.name == upkeep.RENEW:
            reason = "" if problem is None else f" ({problem.code}): {problem.message}"
            after = finish(after, entry, ResultState.FAILED, None, f"not renewed{reason}", effects)
    return after


def finish(state: State, entry: Entry, result: ResultState, output: Any, error: str, effects: list[Effect]) -> State:
    """The final result: to disk first, then to the fleet."""
    fields = (("command", entry.name), ("command_id", entry.id), ("state", result.value))
    effects.append(Log(logging.INFO, "command.finished", fields))
    return _save(state, entry.finished(result, output, error), effects)


def queue_result(state: State, entry: Entry, result: ResultState, moment: Moment) -> State:
    """One result for the fleet. An output that no message can carry becomes an error."""
    state, envelope = state.envelope(moment)
    message = ResultMessage(envelope, result, entry.output, entry.error)
    try:
        payload = message.encode()
    except InvalidMessage as error:
        text = f"the output cannot be sent: {error.message}"
        payload = ResultMessage(envelope, result, None, text).encode()
    topic = topics.Result(state.settings.device, entry.id).format()
    return state.queue(Class.RESULT, topic, payload, command_id=entry.id if result.is_final else "")


def on_confirmed(state: State, message: Outgoing, moment: Moment) -> State:
    """The broker has the final result: soon the disk says so too, or the next run would send it again."""
    entry = state.journal.find(message.command_id)
    if entry is None:
        return state
    save_at = min(state.save_journal_at, moment.monotonic + CONFIRMED_SECONDS)
    return replace(state, journal=state.journal.put(replace(entry, is_confirmed=True)), save_journal_at=save_at)


def next_time(state: State) -> float:
    """When a command is held for too long, or confirmations are to be written (monotonic)."""
    return min([state.save_journal_at, *(entry.hold_until for entry in state.journal.of(Phase.HELD))])


def _on_repeated(state: State, known: Entry, acknowledge: Acknowledge, moment: Moment, effects: list[Effect]) -> State:
    if known.phase is Phase.RECEIVED:
        return replace(state, unacknowledged=(*state.unacknowledged, acknowledge))
    effects.append(acknowledge)
    is_due = known.phase is Phase.FINAL and not state.outbox.holds_result(known.id)
    return _queue_final(state, known, moment) if is_due else state


def _hold_until(state: State, entry: Entry, moment: Moment) -> float:
    """Until when an application may still appear, but not past the deadline."""
    until = max(moment.monotonic, state.applications_expected_until)
    if entry.name == uploads.COMMAND:  # which waits for others of its kind
        until = NEVER
    if entry.name in upkeep.NAMES:
        until = moment.monotonic + _drawn_seconds(entry, moment)
    if entry.deadline is None or entry.runs > 1:  # of an earlier run: nobody has confirmed the time yet
        return until
    return min(until, moment.monotonic + (entry.deadline - moment.utc).total_seconds())


def _drawn_seconds(entry: Entry, moment: Moment) -> float:
    """A random point of the time in which a whole fleet is to do it."""
    with suppress(InvalidInput):
        order = upkeep.decode_upkeep(entry.name, entry.args)
        if isinstance(order, upkeep.RenewOrder):
            return moment.chance * order.within_seconds
    return 0.0


def _open(state: State, entry: Entry, app: int, moment: Moment, effects: list[Effect]) -> State:
    deadline = messages.format_time(entry.deadline or moment.utc)
    line = {"type": "command", "command_id": entry.id, "name": entry.name, "args": entry.args, "deadline": deadline}
    effects.append(Tell(app, line))
    opened = replace(entry, phase=Phase.OPEN, app=app, args={})
    state = replace(state, journal=state.journal.put(opened))
    return queue_result(state, opened, ResultState.ACCEPTED, moment)


def _misfit(app: App, entry: Entry) -> str | None:
    """What the application has said that it does not take."""
    schema = app.schemas.get(entry.name)
    return None if schema is None else schema.violation(entry.args)


def _begin_upload(state: State, entry: Entry, moment: Moment, effects: list[Effect]) -> State:
    """The agent's own, for which no application is asked; one at a time, the others wait.

    One of an earlier run waits for a server that confirms the time: a clock that is wrong at the start may say 2040.
    """
    is_again = entry.runs > 1
    if is_again and not moment.is_confirmed:
        return state
    if entry.deadline is None or moment.utc > entry.deadline or moment.monotonic >= entry.hold_until:
        error = "the agent was not there until its deadline" if is_again else "others were sent until its deadline"
        return finish(state, entry, ResultState.EXPIRED, None, error, effects)
    if any(other.name == uploads.COMMAND for other in state.journal.of(Phase.OPEN)):
        return state
    try:
        order = uploads.decode_order(entry.args)
    except InvalidInput as error:
        return finish(state, entry, ResultState.FAILED, None, error.message, effects)
    left = min(entry.deadline - moment.utc, entry.deadline - (entry.sent_at or moment.utc))  # a clock may be far behind
    effects.append(Upload(entry.id, order, moment.monotonic + left.total_seconds()))
    if is_again:
        fields = (("command", entry.name), ("command_id", entry.id), ("run", entry.runs))
        effects.append(Log(logging.INFO, "command.resumed", fields))
    opened = replace(entry, phase=Phase.OPEN)  # with its arguments: the next run may have to go on with it
    return queue_result(replace(state, journal=state.journal.put(opened)), opened, ResultState.ACCEPTED, moment)


def _nobody_takes(state: State, entry: Entry) -> str:
    names = sorted({name for app in state.apps for name in app.commands})
    if not names:
        return f"no application on this device takes commands, {entry.name!r} neither"
    return f"no application on this device takes {entry.name!r}, but: {', '.join(names)}"[: messages.MAX_TEXT_CHARS]


def _save(state: State, entry: Entry, effects: list[Effect]) -> State:
    state = replace(state, journal=state.journal.put(entry))
    effects.append(SaveJournal(state.journal))
    return replace(state, save_journal_at=NEVER)


def _answer_final(state: State, moment: Moment) -> State:
    for entry in state.journal.of(Phase.FINAL):
        if not entry.is_confirmed and not state.outbox.holds_result(entry.id):
            state = _queue_final(state, entry, moment)
    return state


def _queue_final(state: State, entry: Entry, moment: Moment) -> State:
    return state if entry.state is None else queue_result(state, entry, entry.state, moment)
