"""A file system that takes no more writing, as the kernel leaves that of a worn card: the agent goes on from memory.

Telemetry waits in the outbox, which is bounded; a command that comes is refused, for after a restart nothing would say
that it had begun; no key is made. Whoever looks after the fleet is told, and when writing works again what waited for
it is written at once.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from device_agent.clock import Moment
from device_agent.core import connection, renewing
from device_agent.core.effects import Effect, Log
from device_agent.core.events import StorageChanged
from device_agent.core.state import State


def on_changed(state: State, event: StorageChanged, moment: Moment, effects: list[Effect]) -> State:
    """Say so; after a recovery, go on."""
    if event.is_read_only == state.is_read_only:
        return state
    state = replace(state, is_read_only=event.is_read_only)
    if event.is_read_only:
        effects.append(Log(logging.ERROR, "storage.read_only"))
    else:
        effects.append(Log(logging.INFO, "storage.works"))
        state = renewing.on_writable(_written_soon(state, moment), moment)
    if state.is_online:
        state = connection.say_online(state, moment)
    return state.tell_fleet("storage", {"state": "read-only" if state.is_read_only else "writable"}, moment)


def _written_soon(state: State, moment: Moment) -> State:
    """What could not be: messages, commands that were refused, the state of the device."""
    shadowing = state.shadowing
    if shadowing.error:
        shadowing = replace(shadowing, save_at=moment.monotonic)
    spool = replace(state.spool, retry_at=0.0, read_at=0.0)
    return replace(state, save_journal_at=moment.monotonic, shadowing=shadowing, spool=spool)
