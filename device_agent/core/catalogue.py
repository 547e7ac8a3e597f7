"""Which commands this device takes: what its applications have declared, told to the fleet and kept to.

An application that went away is expected back: what it takes stays declared, until it or its namesake says otherwise.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from device_agent.clock import Moment
from device_agent.core.shelf import NEVER
from device_agent.core.state import Declared, State
from device_agent.outbox import Class
from device_agent.requests import Register
from fleet import topics
from fleet.arguments import Schema
from fleet.catalogue import MAX_CATALOGUE_BYTES, MAX_COMMANDS, Catalogue, CatalogueMessage, size_bytes

MAX_DECLARED: Final = 16  # names of applications, as many as may be connected
GATHER_SECONDS: Final = 0.5  # applications start together, and the fleet is told once
EVERY_SECONDS: Final = 10.0  # an application that changes its mind all the time does not fill the fleet's registry


def declare(state: State, request: Register, moment: Moment) -> State | None:
    """With what the application has declared in the place of what it had; None if that is more than the fleet takes."""
    others = tuple(each for each in state.declared if each.app != request.app)[-(MAX_DECLARED - 1) :]
    taken = {name: request.schemas.get(name) for name in request.commands}
    after = replace(state, declared=(*others, Declared(request.app, taken)))
    whole = of(after)
    if len(whole) > MAX_COMMANDS or size_bytes(whole) > MAX_CATALOGUE_BYTES:
        return None
    if state.declared and of(state) == whole:
        return after
    due = max(moment.monotonic + GATHER_SECONDS, state.told_commands_at + EVERY_SECONDS)
    return replace(after, tell_commands_at=min(due, state.tell_commands_at))


def of(state: State) -> Catalogue:
    """All commands; of two that have one name the one that was declared last."""
    found: dict[str, Schema | None] = {}
    for each in state.declared:
        found |= each.commands
    return found


def on_tick(state: State, moment: Moment) -> State:
    """Tell what has changed, when it is time; after the next hello, if there is no connection."""
    if moment.monotonic < state.tell_commands_at:
        return state
    return tell(state, moment) if state.is_online else replace(state, tell_commands_at=NEVER)


def tell(state: State, moment: Moment) -> State:
    """Tell the fleet, if any application has declared anything yet."""
    if not state.declared:
        return state
    state = replace(state, tell_commands_at=NEVER, told_commands_at=moment.monotonic)
    state, envelope = state.envelope(moment)
    payload = CatalogueMessage(envelope, of(state)).encode()
    return state.queue(Class.HELLO, topics.DeclaredCommands(state.settings.device).format(), payload)
