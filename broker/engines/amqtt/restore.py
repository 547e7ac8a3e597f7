"""What a store held, decided again by directory and rules, into a hub; and a hub's state as a batch. No IO.

A session whose principal may not connect any more, or is enrolled anew, is purged; so is a subscription that the rules
no longer allow, and a retained message of an enrolment that is over: a successor is promised nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from broker.engine import Restored
from broker.engines.amqtt.hub import Hub, subject_of
from broker.engines.amqtt.journal import Batch, Journal, Queued, StoredRetained, StoredSession, StoredWill
from broker.engines.amqtt.packets import Connect, Publish
from broker.engines.amqtt.session import FleetSession, Unloaded
from broker.engines.amqtt.store import Contents, Kept, Summary
from fleet import topics
from fleet.directory import Entry
from fleet.identity import DeviceId, State
from fleet.policy import Action


def restore(hub: Hub, journal: Journal, kept: Kept, ask: Callable[[FleetSession], None]) -> Restored:
    """Fill a hub that has just been made; `ask` is called for a session that has to be loaded."""
    journal.start_after(kept.newest_session, kept.newest_row)
    on_change, hub.retained.on_change = hub.retained.on_change, None  # what is there already is not noted again
    refused = sum(not _restore_retained(hub, each) for each in kept.retained)
    hub.retained.on_change = on_change
    newest = {each.session.client_id: each.number for each in kept.sessions}
    refused_sessions = refused_subscriptions = messages = 0
    for each in kept.sessions:
        if newest[each.session.client_id] != each.number or (entry := _entry(hub, each.session)) is None:
            journal.purge(each.number)
            refused_sessions += 1
            continue
        refused_subscriptions += _restore_session(hub, journal, each, entry, ask)
        messages += each.count
    for client_id, will in kept.wills:
        journal.will(client_id, None)
        _fire(hub, will)
    counts = (len(hub.sessions), messages, len(hub.retained))
    return Restored(*counts, refused_sessions, refused_subscriptions, refused)


def _entry(hub: Hub, stored: StoredSession | StoredWill) -> Entry | None:
    """The directory's entry of who this belongs to, if it is the same enrolment, and may connect."""
    entry = hub.rules.directory.entry(stored.owner.id)
    if entry is None or entry.state is not State.ACTIVE or not entry.serials:
        return None
    return entry if (entry.principal, entry.epoch) == (stored.owner, stored.epoch) else None


def _restore_session(
    hub: Hub, journal: Journal, kept: Summary, entry: Entry, ask: Callable[[FleetSession], None]
) -> int:
    """How many of its subscriptions are not allowed any more."""
    stored, refused = kept.session, 0
    connect = Connect(stored.client_id, clean_session=False, keep_alive=0, will=None)
    session = FleetSession(connect, stored.client_id, entry, hub.limits, hub.retained, hub.counted)
    session.grants = hub.rules.policy.grants(entry.principal)
    session.keep_in(journal, kept.number)
    now = hub.now().timestamp()
    if stored.absent_since is None:  # the broker ended before its connection
        journal.session(kept.number, StoredSession(stored.client_id, stored.owner, stored.epoch, now))
    else:
        session.absent_seconds = max(0.0, now - stored.absent_since)
    session.unloaded = Unloaded(kept.count, kept.size_bytes, lambda: ask(session))
    for topic_filter, qos in kept.filters.items():
        if session.grants.decide(Action.SUBSCRIBE, topic_filter).allowed:
            session.filters[topic_filter] = qos
            hub.subscriptions.add(topic_filter, session, qos)
        else:
            journal.filter(kept.number, topic_filter, None)
            refused += 1
    hub.add(session)
    return refused


def _restore_retained(hub: Hub, kept: StoredRetained) -> bool:
    """Whether this retained message is still there."""
    topic = kept.message.topic
    is_kept = kept.owner is None or _is_same(hub, kept.owner, kept.owner_epoch)
    subject = subject_of(topic)
    if is_kept and subject is not None and topics.matches(topics.own_down(subject), topic):
        is_kept = _is_same(hub, subject, kept.subject_epoch)
    if is_kept:
        hub.retained.set(kept.message, kept.owner)
    elif hub.journal is not None:
        hub.journal.retain(topic, None)
    return is_kept


def _is_same(hub: Hub, id: DeviceId, epoch: int) -> bool:
    entry = hub.rules.directory.entry(id)
    return entry is not None and entry.epoch == epoch and entry.state not in (State.REVOKED, State.REMOVED)


def _fire(hub: Hub, stored: StoredWill) -> None:
    """Publish the will of a connection that the broker did not outlive (3.1.2.5)."""
    entry, will = _entry(hub, stored), stored.will
    if entry is not None and hub.rules.policy.decide(entry.principal, Action.PUBLISH, will.topic).allowed:
        hub.route(Publish.of(will.topic, will.payload, will.qos, retain=will.retain), entry.principal.id)


def fill(session: FleetSession, contents: Contents) -> None:
    """Put what was loaded into a session."""
    session.fill(contents.waiting, contents.received, contents.owed)


def snapshot(hub: Hub) -> tuple[Batch, int]:
    """All that is in memory and has to be on disk; and how many messages are not in memory, and so not part of it.

    Those are lost with the file that they are in: their sessions are told to do without.
    """
    batch, lost = Batch(), 0
    for session in hub.sessions.values():
        if session.will is not None:
            batch.wills[session.client_id] = StoredWill(session.will, session.principal, session.epoch)
        if not session.number:
            continue
        if session.unloaded is not None:
            lost += session.unloaded.count
            session.unloaded = None
        _add(batch, session, hub.now().timestamp())
    for message, owner in hub.retained.all():
        if message.topic[:1] != "$":
            batch.retained[message.topic] = hub.stored_retained(message, owner)
    return batch, lost


def _add(batch: Batch, session: FleetSession, now: float) -> None:
    number = session.number
    absent_since = None if session.client is not None else now - session.absent_seconds
    batch.sessions[number] = StoredSession(session.client_id, session.principal, session.epoch, absent_since)
    batch.filters.update({(number, topic_filter): qos for topic_filter, qos in session.filters.items()})
    batch.owed.update({(number, topic): qos for topic, qos in session.owed.items()})
    batch.received.update({(number, packet_id): True for packet_id in session.received_ids})
    for delivery in session.deliveries.values():
        qos, packet_id = delivery.qos or 0, delivery.packet_id or 0
        queued = Queued(number, delivery.publish, qos, None, packet_id, bool(delivery.retain))
        queued.is_released = delivery.is_released
        batch.queued[delivery.row] = queued
    for sender, (publish, qos, row) in session.waiting.others():
        batch.queued[row] = Queued(number, publish, qos, sender, 0, False)
