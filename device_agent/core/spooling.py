"""What goes to disk and comes back: memory first, the disk while offline or for what no broker confirms in time.

SD cards wear, so messages are written in groups, and what a working connection confirms within FLUSH_SECONDS never
touches the disk at all. `spool` performs; everything is decided here.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Final, assert_never

from device_agent.clock import Moment
from device_agent.core.effects import Effect, Log, OpenSpool, ReadSpool, Removal, Row, SpoolOrder, Trim, WriteSpool
from device_agent.core.events import SpoolFailed, SpoolOpened, SpoolRead, SpoolWritten
from device_agent.core.shelf import NEVER, Shelf, Spool
from device_agent.core.state import Online, State, Stopped, Stopping
from device_agent.outbox import MAX_BYTES as MAX_MEMORY_BYTES
from device_agent.outbox import NO_LOSSES, SPOOLED, WINDOW, Class, Losses, Outgoing
from fleet import messages, topics

FLUSH_SECONDS: Final = 2.0
# Who is written because of an older message must have waited a little too: the rest is probably confirmed in time.
GATHER_SECONDS: Final = 1.0
GROUP_MESSAGES: Final = 50
GROUP_BYTES: Final = MAX_MEMORY_BYTES // 4
CONFIRMED_SECONDS: Final = 1.0
LOSSES_SECONDS: Final = 10.0
RETRY_SECONDS: Final = 60.0
# A disk that damages all that is written to it must not be written to in a loop.
DAMAGE_SECONDS: Final = 10.0
EXPIRE_SECONDS: Final = 3_600.0
REPORT_SECONDS: Final = 60.0
# A flood while the broker is away would wear out a card in weeks: so much a second may be written, after a burst.
WRITTEN_BYTES_A_SECOND: Final = 64 * 1024
BURST_SECONDS: Final = 128.0
PAGE_MESSAGES: Final = 50
PAGE_BYTES: Final = 256 * 1024
# A full class gives way by so much at once: a little for every message would double what is written.
_SLACK: Final = 64
DROPPED_EVENT: Final = "messages-dropped"


def begin(state: State) -> State:
    """At the start: what is on disk is asked for."""
    return replace(state, spool=replace(state.spool, retry_at=0.0))


def settle(state: State, moment: Moment, effects: list[Effect]) -> State:
    """After every event: the next order to the disk, if one is due and none is under way."""
    state = _report_losses(_count_losses(state, moment, effects), moment)
    if state.spool.order is not None:
        return state
    if state.outbox.unspooled and moment.monotonic >= state.spool.look_at:
        oldest = min(message.accepted for message in state.outbox.unspooled_messages())
        state = replace(state, spool=replace(state.spool, look_at=oldest + FLUSH_SECONDS))
    order = _next_order(state, moment)
    if order is not None:
        effects.append(order)
    spool, now = replace(state.spool, order=order), moment.monotonic
    if now >= spool.expire_at:
        spool = replace(spool, expire_at=now + EXPIRE_SECONDS)
    if now >= spool.read_at:
        spool = replace(spool, read_at=0.0)
    return replace(state, spool=spool)


def next_time(state: State) -> float:
    """When `settle` may have something to do although nothing happens (monotonic)."""
    spool = state.spool
    if not spool.is_open:
        return spool.retry_at
    times = [spool.dirty_at]
    if state.outbox.unspooled:
        times.append(max(spool.look_at, spool.paid_until))
    if spool.unloaded:
        times.append(spool.expire_at)
    times = [max(min(times), spool.retry_at)]
    if state.is_online and spool.losses.total:
        times.append(spool.report_at)
    if state.is_online and spool.unloaded:
        times.append(spool.read_at or NEVER)
    return min(times)


def on_event(
    state: State,
    event: SpoolOpened | SpoolWritten | SpoolRead | SpoolFailed,
    moment: Moment,
    effects: list[Effect],
) -> State:
    """What came of the last order."""
    match event:
        case SpoolOpened():
            return _on_opened(state, event, moment, effects)
        case SpoolWritten():
            return _on_written(state, event, moment, effects)
        case SpoolRead():
            return _on_read(state, event, moment)
        case SpoolFailed():
            return _on_failed(state, event, moment, effects)
        case _:
            assert_never(event)


def _on_opened(state: State, event: SpoolOpened, moment: Moment, effects: list[Effect]) -> State:
    """What is on disk is known; or is lost, and begins anew."""
    before = state.spool
    spool = Spool(
        event.telemetry,
        event.alarms,
        before.bounds,
        is_open=True,
        second_at_open=event.second,
        opened_at=moment.monotonic,
        dirty_at=before.dirty_at,
        retry_at=moment.monotonic + DAMAGE_SECONDS if event.problem else 0.0,
        paid_until=before.paid_until,
        report_at=before.report_at,
        log_at=before.log_at,
        problem=event.problem or before.problem,
        dropped=before.dropped,
        logged=before.logged,
        losses=Losses(before.losses.telemetry + event.losses.telemetry, before.losses.alarms + event.losses.alarms),
        recorded=event.losses,
    )
    if event.problem:
        effects.append(Log(logging.ERROR, "spool.damaged", (("reason", event.problem),)))
        for kind in SPOOLED:
            spool = spool.lose(kind, before.shelf(kind).unloaded)
    elif spool.unloaded:
        fields = (("messages", spool.unloaded), ("bytes", spool.size_bytes))
        effects.append(Log(logging.INFO, "spool.opened", fields))
    return replace(state, spool=spool, outbox=state.outbox.without_rows() if before.is_open else state.outbox)


def _on_written(state: State, event: SpoolWritten, moment: Moment, effects: list[Effect]) -> State:
    """What waits leaves the memory, and what was dropped is counted."""
    spool, order = state.spool, state.spool.order
    if not isinstance(order, WriteSpool):
        return state
    outbox = state.outbox.written({row.message.handle: row.number for row in order.rows})
    recorded = order.losses
    for row in order.rows:
        spool = spool.with_shelf(row.kind, _put(spool.shelf(row.kind), row))
    for kind in SPOOLED:
        shelf = spool.shelf(kind)
        spool = spool.with_shelf(kind, replace(shelf, loaded=max([shelf.loaded, *outbox.rows(kind)])))
    for trimmed in event.trimmed:
        shelf = spool.shelf(trimmed.kind)
        left = max(0, shelf.size_bytes - trimmed.size_bytes)
        shelf = replace(shelf, loaded=max(shelf.loaded, trimmed.upto), size_bytes=left)
        spool = spool.with_shelf(trimmed.kind, shelf).lose(trimmed.kind, trimmed.count)
        recorded = recorded.plus(trimmed.kind, trimmed.count)
    if spool.error:
        effects.append(Log(logging.INFO, "spool.works"))
    paid_until = max(spool.paid_until, moment.monotonic - BURST_SECONDS)
    paid_until += sum(row.message.disk_bytes for row in order.rows) / WRITTEN_BYTES_A_SECOND
    spool = replace(spool, order=None, error="", retry_at=0.0, look_at=0.0, recorded=recorded, paid_until=paid_until)
    return replace(state, outbox=outbox, spool=replace(spool, dirty_at=NEVER, confirmed=0))


def _on_read(state: State, event: SpoolRead, moment: Moment) -> State:
    """The oldest are in memory, and sent with QoS 1: the whole outage could vanish in a half-open connection else."""
    outgoing = [
        Outgoing(state.handles + at, event.kind, each.topic, each.payload, accepted=moment.monotonic, row=each.row)
        for at, each in enumerate(event.messages)
    ]
    outbox = state.outbox.put_read(outgoing)
    shelf = replace(state.spool.shelf(event.kind), loaded=event.upto)
    if not shelf.unloaded:
        known = [each for each in outbox.in_flight + outbox.waiting if each.kind is event.kind and each.row]
        shelf = replace(shelf, size_bytes=sum(each.disk_bytes for each in known))
    spool = replace(state.spool.with_shelf(event.kind, shelf), order=None)
    if event.damaged:
        spool = _dirty(spool.lose(event.kind, event.damaged), moment.monotonic + LOSSES_SECONDS)
    return replace(state, outbox=outbox, spool=spool, handles=state.handles + len(outgoing))


def _on_failed(state: State, event: SpoolFailed, moment: Moment, effects: list[Effect]) -> State:
    """The agent goes on in memory, says so once, and tries the disk again later."""
    if event.error != state.spool.error:
        effects.append(Log(logging.ERROR, "spool.failed", (("reason", event.error),)))
    spool = replace(state.spool, order=None, error=event.error)
    if isinstance(state.spool.order, ReadSpool):
        return replace(state, spool=replace(spool, read_at=moment.monotonic + DAMAGE_SECONDS))
    return replace(state, spool=replace(spool, retry_at=moment.monotonic + RETRY_SECONDS))


def on_confirmed(state: State, message: Outgoing, moment: Moment) -> State:
    """The broker has it: soon it will not be on disk any more."""
    if not message.row:
        return state
    shelf = state.spool.shelf(message.kind)
    shelf = replace(shelf, size_bytes=max(0, shelf.size_bytes - message.disk_bytes))
    spool = state.spool.with_shelf(message.kind, shelf)
    spool = replace(spool, confirmed=spool.confirmed + 1)
    return replace(state, spool=_dirty(spool, moment.monotonic + CONFIRMED_SECONDS))


def on_stopped(state: State) -> State:
    """The last chance: a disk that failed a moment ago is tried once more."""
    return replace(state, spool=replace(state.spool, retry_at=0.0))


def _dirty(spool: Spool, at: float) -> Spool:
    return replace(spool, dirty_at=min(spool.dirty_at, at))


def _put(shelf: Shelf, row: Row) -> Shelf:
    size = shelf.size_bytes + row.message.disk_bytes
    return replace(shelf, last=row.number, upto_bytes=row.upto_bytes, size_bytes=size)


def _next_order(state: State, moment: Moment) -> SpoolOrder | None:
    spool = state.spool
    if not spool.is_open:
        return OpenSpool() if moment.monotonic >= spool.retry_at else None
    write = _write(state, moment) if moment.monotonic >= spool.retry_at else None
    return write or (_read(state) if moment.monotonic >= spool.read_at else None)


def _read(state: State) -> ReadSpool | None:
    """The next page, if the connection will soon have sent what was read before."""
    if not isinstance(state.link, Online):
        return None
    for kind in (Class.ALARM, Class.TELEMETRY):
        shelf = state.spool.shelf(kind)
        ready = sum(each.kind is kind and each.row > 0 for each in state.outbox.waiting)
        if shelf.unloaded and ready < WINDOW:
            return ReadSpool(kind, shelf.loaded, PAGE_MESSAGES, PAGE_BYTES)
    return None


def _write(state: State, moment: Moment) -> WriteSpool | None:
    spool, now = state.spool, moment.monotonic
    rows = _number(spool, _due(state, moment), spool.second(now))
    for row in rows:
        spool = spool.with_shelf(row.kind, _put(spool.shelf(row.kind), row))
    trims = _trims(spool, now)
    is_ending = isinstance(state.link, Stopped) and spool.dirty_at < NEVER
    if not (rows or trims or is_ending or now >= spool.dirty_at or spool.confirmed >= GROUP_MESSAGES):
        return None
    return WriteSpool(rows, _removals(state), trims, spool.losses)


def _due(state: State, moment: Moment) -> list[Outgoing]:
    """What is to be written now."""
    outbox, now = state.outbox, moment.monotonic
    if not outbox.unspooled:
        return []
    is_offline = not isinstance(state.link, Online | Stopping)
    is_crowded = outbox.unspooled >= GROUP_MESSAGES or outbox.waiting_bytes >= GROUP_BYTES
    if isinstance(state.link, Stopped):
        return outbox.unspooled_messages()
    if now < state.spool.paid_until or (now < state.spool.look_at and not (is_offline and is_crowded)):
        return []
    latest = now if is_offline else now - GATHER_SECONDS
    return [each for each in outbox.unspooled_messages() if each.accepted <= latest]


def _number(spool: Spool, due: list[Outgoing], second: int) -> tuple[Row, ...]:
    rows = []
    for message in due:
        shelf = spool.shelf(message.kind)
        row = Row(message.kind, shelf.last + 1, second, shelf.upto_bytes + message.disk_bytes, message)
        spool = spool.with_shelf(message.kind, _put(shelf, row))
        rows.append(row)
    return tuple(rows)


def _removals(state: State) -> tuple[Removal, ...]:
    """All that was read or in flight once, and is in memory no more: the broker has it."""
    removals = []
    for kind in SPOOLED if state.spool.dirty_at < NEVER else ():
        rows, loaded = set(state.outbox.rows(kind)), state.spool.shelf(kind).loaded
        upto = min(rows, default=loaded + 1) - 1
        if upto or rows:
            removals.append(Removal(kind, upto, tuple(row for row in range(upto + 1, loaded + 1) if row not in rows)))
    return tuple(removals)


def _trims(spool: Spool, now: float) -> tuple[Trim, ...]:
    """What the bounds demand: of the lowest class the oldest."""
    bounds = spool.bounds
    of_alarms = max(0, spool.alarms.size_bytes - bounds.max_alarm_bytes)
    of_telemetry = max(0, spool.size_bytes - of_alarms - bounds.max_bytes)
    trims = []
    for kind, excess in ((Class.TELEMETRY, of_telemetry), (Class.ALARM, of_alarms)):
        shelf = spool.shelf(kind)
        before = spool.second(now) - bounds.max_seconds(kind) if now >= spool.expire_at else 0
        if shelf.unloaded and (excess or before > 0):
            slack = bounds.bytes_of(kind) // _SLACK if excess else 0
            trims.append(Trim(kind, shelf.loaded, max(before, 0), excess + slack))
    return tuple(trims)


def _count_losses(state: State, moment: Moment, effects: list[Effect]) -> State:
    """What the memory dropped counts as the rest does, and the log says so, though not for each."""
    spool, dropped = state.spool, state.outbox.dropped
    if dropped.total:
        spool = spool.lose(Class.TELEMETRY, dropped.telemetry).lose(Class.ALARM, dropped.alarms)
        spool = _dirty(spool, moment.monotonic + LOSSES_SECONDS)
        state = replace(state, outbox=replace(state.outbox, dropped=NO_LOSSES), spool=spool)
    if spool.dropped != spool.logged and moment.monotonic >= spool.log_at:
        fields = (("telemetry", spool.dropped.telemetry), ("alarms", spool.dropped.alarms))
        effects.append(Log(logging.WARNING, "messages.dropped", fields))
        spool = replace(spool, logged=spool.dropped, log_at=moment.monotonic + REPORT_SECONDS)
    return replace(state, spool=spool)


def _report_losses(state: State, moment: Moment) -> State:
    """The fleet hears of it as an event, once it can be heard."""
    losses = state.spool.losses
    if not losses.total or not isinstance(state.link, Online) or moment.monotonic < state.spool.report_at:
        return state
    state, envelope = state.envelope(moment)
    data = {"telemetry": losses.telemetry, "alarms": losses.alarms}
    payload = messages.encode_object(envelope.fields() | {"data": data})
    topic = topics.Event(state.settings.device, DROPPED_EVENT).format()
    spool = replace(state.spool, losses=NO_LOSSES, report_at=moment.monotonic + REPORT_SECONDS)
    state = replace(state, spool=_dirty(spool, moment.monotonic + CONFIRMED_SECONDS))
    return state.queue(Class.ALARM, topic, payload, accepted=moment.monotonic)
