"""The broker itself: sessions, routes, retained messages, and what each packet does to them. No IO, no waiting.

Every method runs to its end before another packet or directory change is looked at, so whoever was found admitted is
still admitted when it is registered. That is why it is one file, and longer than others: what a packet, a change of the
directory and a kept session do to the same state stands side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from broker.directory import Change
from broker.engine import (
    Client,
    Clock,
    Connected,
    Denied,
    Disconnected,
    Event,
    Reason,
    Refused,
    Rules,
    SessionsExpired,
    Slowed,
    Stats,
)
from broker.engines.amqtt import admission, packets
from broker.engines.amqtt.admission import Admitted, Rejected
from broker.engines.amqtt.identity import PeerIdentity
from broker.engines.amqtt.journal import Journal, StoredRetained, StoredSession, StoredWill
from broker.engines.amqtt.packets import (
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    ProtocolViolation,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Subscribe,
    Unsubscribe,
)
from broker.engines.amqtt.rates import Usage
from broker.engines.amqtt.routing import Retained, Subscriptions
from broker.engines.amqtt.session import FleetSession, Link
from fleet import topics
from fleet.errors import InvalidInput
from fleet.identity import DeviceId, Principal, Role, Serial, State
from fleet.limits import Limits
from fleet.messages import Envelope, Presence, StatusMessage
from fleet.policy import Action
from fleet.topics import Status

_MAX_GRANTED_TOPICS: Final = 256
_SUBSCRIPTION_FAILED: Final = 0x80
_BY_STATE: Final = {
    State.REVOKED: Reason.REVOKED,
    State.SUSPENDED: Reason.SUSPENDED,
    State.REMOVED: Reason.REMOVED,
    State.ACTIVE: Reason.SUPERSEDED,
}


class Hub:
    """All sessions of one broker."""

    def __init__(
        self,
        rules: Rules,
        limits: Limits,
        now: Clock,
        observe: Callable[[Event], None],
        journal: Journal | None = None,
    ) -> None:
        self.rules = rules
        self.limits = limits
        self.now = now
        self.observe = observe
        self.sessions: dict[str, FleetSession] = {}
        self.retained = Retained(limits)
        self.subscriptions: Subscriptions[FleetSession] = Subscriptions()
        self._of_owner: dict[DeviceId, list[FleetSession]] = {}
        self._usages: dict[DeviceId, Usage] = {}
        self.counted = Stats()
        # What is told under `$SYS/`, by the second level: called before somebody is subscribed to it.
        self.refreshers: dict[str, Callable[[], None]] = {}
        # With a journal, what was promised outlives the broker: answers wait for the commit that they speak of.
        self.journal = journal
        if journal is not None:
            self.retained.on_change = self._keep_retained

    def stats(self) -> Stats:
        """The counters now."""
        found = self.counted.copy()
        found.sessions = len(self.sessions)
        found.subscriptions = self.subscriptions.count
        found.retained = len(self.retained)
        found.retained_bytes = self.retained.size_bytes
        found.inflight = sum([len(session.deliveries) for session in self.sessions.values()])
        queues = [session.waiting for session in self.sessions.values() if session.waiting]
        depths = [len(queue) for queue in queues]
        found.queued, found.deepest_queue = sum(depths), max(depths, default=0)
        found.queued_bytes = sum(queue.size_bytes for queue in queues)
        for session in self.sessions.values():
            if (unloaded := session.unloaded) is not None:
                found.queued += unloaded.count
                found.queued_bytes += unloaded.size_bytes
                found.deepest_queue = max(found.deepest_queue, unloaded.count + len(session.waiting))
        return found

    def live(self) -> list[tuple[FleetSession, Client]]:
        """Every session with a connection."""
        return [(s, s.client) for s in self.sessions.values() if s.client is not None]

    # Coming and going

    def refused(self, event: Refused) -> None:
        """Count and tell a connection that was not let in."""
        self.counted.refused[event.reason] += 1
        self.observe(event)

    def slowed(self, session: FleetSession) -> None:
        """Tell that a client is read more slowly from now on."""
        self.counted.slowed += 1
        if session.client is not None:
            self.observe(Slowed(session.client))

    def usage(self, principal: Principal, now_seconds: float) -> Usage:
        """What a principal used of its rates; kept as long as the directory lists it."""
        found = self._usages.get(principal.id)
        if found is None:
            found = self._usages[principal.id] = Usage(self.limits, principal.role, now_seconds)
        return found

    def decide(self, connect: Connect, peer: PeerIdentity) -> Admitted | Rejected:
        """Whether a CONNECT is let in now; changes nothing."""
        rules = self.rules
        entry = rules.directory.entry(peer.device)
        decision = admission.decide(
            connect, peer, entry, rules.policy, is_fresh=rules.is_fresh(), has_session=self.sessions.__contains__
        )
        if isinstance(decision, Admitted) and self._others(peer.device, decision.client_id) >= (
            self.limits.sessions_per_principal
        ):
            return Rejected(admission.UNAVAILABLE, Reason.TOO_MANY_CONNECTIONS)
        return decision

    def _others(self, owner: DeviceId, client_id: str) -> int:
        return sum(s.link is not None and s.client_id != client_id for s in self._of_owner.get(owner, ()))

    def register(
        self, connect: Connect, decision: Admitted, serial: Serial, peer_address: str, link: Link
    ) -> FleetSession:
        """Make the session of a CONNECT that was just decided, in the place of the one that had its client id.

        Its predecessor's messages are loaded. Where something of this has to be on disk first, or of what its
        predecessor was promised, CONNACK and all else waits for it.
        """
        if self.journal is not None:
            self.journal.is_touched = False
        old = self.sessions.get(decision.client_id)
        if old is not None:
            self.leave(old, Reason.TAKEN_OVER)  # its will goes out before the new client can say anything
        session = FleetSession(connect, decision.client_id, decision.entry, self.limits, self.retained, self.counted)
        session.grants = decision.grants
        is_present = self._succeed(session, self.sessions.get(decision.client_id))
        self.add(session)
        session.client = Client(decision.client_id, decision.entry.principal, serial, peer_address)
        session.link = link
        commit = self._keep(session)
        connack = packets.connack(admission.ACCEPTED, session_present=is_present)
        if self.journal is not None and commit > self.journal.committed:
            link.send_after(commit, connack, is_door=True)  # then `send_again`
        else:
            link.send(connack)
        self.counted.accepted += 1
        self.counted.connections += 1
        self.observe(Connected(session.client, is_present))
        if not link.is_congested:
            session.send_again()
        return session

    def _keep(self, session: FleetSession) -> int:
        """Note a session that has a connection now; the commit that CONNACK has to wait for."""
        journal = self.journal
        if journal is None:
            return 0
        if not session.clean_session:
            is_new = not session.number
            session.keep_in(journal, session.number or journal.new_session())
            journal.session(session.number, _stored(session, None), is_new=is_new)
        if session.will is not None:
            journal.will(session.client_id, StoredWill(session.will, session.principal, session.epoch))
            session.has_stored_will = True
        return journal.number if journal.is_touched else session.promised

    def _succeed(self, session: FleetSession, old: FleetSession | None) -> bool:
        """Hand over what is kept of a session that was there; whether there was any (3.2.2.2)."""
        if old is None:
            return False
        is_kept = not session.clean_session and old.epoch == session.epoch and old.owner == session.owner
        if is_kept:
            session.take_over(old)
        self._forget(old)
        for topic_filter, qos in list(session.filters.items()):
            # Decided again: the rules may have changed since.
            if session.grants.decide(Action.SUBSCRIBE, topic_filter).allowed:
                self.subscriptions.add(topic_filter, session, qos)
            else:
                del session.filters[topic_filter]
                self._keep_filter(session, topic_filter, None)
        return is_kept

    def add(self, session: FleetSession) -> None:
        """Have a session; of its owner's that are absent, the oldest gives way if there are too many."""
        self.sessions[session.client_id] = session
        owned = self._of_owner.setdefault(session.owner, [])
        owned.append(session)
        absent = [s for s in owned if s.client is None and s is not session]
        for surplus in absent[: max(0, len(owned) - self.limits.sessions_per_principal)]:
            self._forget(surplus)

    def _forget(self, session: FleetSession) -> None:
        """Drop a session and all that it holds."""
        if self.sessions.get(session.client_id) is session:
            del self.sessions[session.client_id]
        owned = self._of_owner.get(session.owner, [])
        if session in owned:
            owned.remove(session)
            if not owned:
                del self._of_owner[session.owner]
        for topic_filter in session.filters:
            self.subscriptions.remove(topic_filter, session)
        if session.journal is not None:
            session.journal.purge(session.number)
            session.journal, session.number = None, 0
        session.purge()

    def leave(self, session: FleetSession, reason: Reason, detail: str = "", *, fires_will: bool = True) -> None:
        """End the session's connection, if it has one; publish its will, forget it if it was clean (3.1.2.4, .5)."""
        link, client, will = session.link, session.client, session.will
        session.link = session.client = session.will = None
        if link is None or client is None:
            return
        if session.clean_session:
            self._forget(session)
        if self.journal is not None:
            self._keep_left(session, self.journal, reason)
        link.end(reason)
        self.counted.ended[reason] += 1
        self.counted.connections -= 1
        self.observe(Disconnected(client, reason, detail))
        if will is not None and fires_will and session.grants.decide(Action.PUBLISH, will.topic).allowed:
            self.route(Publish.of(will.topic, will.payload, will.qos, retain=will.retain), session.owner)

    def _keep_left(self, session: FleetSession, journal: Journal, reason: Reason) -> None:
        if session.number:
            journal.session(session.number, _stored(session, self.now().timestamp()))
        if session.has_stored_will and reason is not Reason.STOPPED:  # then it is for the next start
            journal.will(session.client_id, None)
        session.has_stored_will = False

    def _keep_filter(self, session: FleetSession, topic_filter: str, qos: int | None) -> None:
        if session.journal is not None:
            session.journal.filter(session.number, topic_filter, qos)
            session.promised = session.journal.number

    def _keep_retained(self, topic: str, message: Publish | None, owner: DeviceId | None) -> None:
        """What is retained for a topic has changed; the broker's counters are its own affair."""
        if self.journal is None or topic[:1] == "$":
            return
        self.journal.retain(topic, None if message is None else self.stored_retained(message, owner))

    def stored_retained(self, message: Publish, owner: DeviceId | None) -> StoredRetained:
        """A retained message as it is kept."""
        return StoredRetained(message, owner, self._epoch(owner), self._epoch(subject_of(message.topic)))

    def _epoch(self, id: DeviceId | None) -> int:
        entry = self.rules.directory.entry(id) if id is not None else None
        return entry.epoch if entry is not None else 0

    def pass_time(self, seconds: float, expiry_seconds: float) -> None:
        """So much time has passed: forget who was away for longer than `expiry_seconds`."""
        expired = []
        for session in self.sessions.values():
            if session.client is None:
                session.absent_seconds += seconds
                if session.absent_seconds >= expiry_seconds:
                    expired.append(session)
        for session in expired:
            self._forget(session)
        if expired:
            self.counted.sessions_expired += len(expired)
            self.observe(SessionsExpired(len(expired)))

    def unloaded(self, connect: Connect, client_id: str) -> FleetSession | None:
        """The session that this CONNECT goes on with, if it has to be loaded first."""
        session = self.sessions.get(client_id)
        return session if session is not None and session.unloaded is not None and not connect.clean_session else None

    def leave_all(self, reason: Reason) -> None:
        """End every connection; no will is fired, for nobody is there to read it."""
        for session, _ in self.live():
            self.leave(session, reason, fires_will=False)

    def disconnect(self, target: Principal | Serial, reason: Reason) -> int:
        """End the connections of a principal or a serial; how many there were."""
        found = [s for s, client in self.live() if target in (client.principal, client.serial)]
        for session in found:
            self.leave(session, reason)
        return len(found)

    def apply(self, change: Change) -> None:
        """Cut whom the directory no longer admits. Nobody who was cut leaves a will behind, or anything that waits.

        Of who is gone for good, or has a successor under its name, no retained message is left either.
        """
        entry = change.after
        cut = [s for s in self._of_owner.get(change.principal.id, ()) if not _is_still_admitted(s, change)]
        reason = _BY_STATE[entry.state] if entry is not None else Reason.REMOVED
        if reason is Reason.SUPERSEDED and entry is not None and not entry.serials:
            reason = Reason.REVOKED
        for session in cut:
            self.leave(session, reason, fires_will=False)
            if reason is not Reason.SUPERSEDED or _is_over(change) or entry is None or session.epoch != entry.epoch:
                self._forget(session)
        if _is_over(change):
            self.retained.forget_all_of(change.principal.id)
            self.retained.forget_matching(topics.own_down(change.principal.id))  # nor what it was told
            self._usages.pop(change.principal.id, None)
        was_admitted = change.before is not None and bool(change.ends())
        # Whoever was let in by a look-up is cut by the first change that we hear of.
        if change.principal.role is Role.DEVICE and (cut or (was_admitted and reason is not Reason.SUPERSEDED)):
            self._publish_offline(change.principal.id, reason)

    def _publish_offline(self, device: DeviceId, reason: Reason) -> None:
        envelope = Envelope(device, self.now(), "broker", 0)
        status = StatusMessage(envelope, Presence.OFFLINE, reason.value)
        self.publish_own(Publish.of(Status(device).format(), status.encode(), 1, retain=True))

    def publish_own(self, message: Publish) -> None:
        """Publish for the broker itself: it does not pass its own door."""
        self.route(message, None)

    # Packets

    def handle(self, session: FleetSession, packet: Packet) -> None:
        """Do what a packet of a connected client asks. Raises: ProtocolViolation."""
        match packet:
            case Publish():
                self.publish(session, packet)
            case Puback(packet_id):
                session.acknowledged(packet_id)
                session.pump()
            case Pubrec(packet_id):
                session.received(packet_id)
            case Pubcomp(packet_id):
                session.completed(packet_id)
            case Pubrel(packet_id):
                self._release(session, packet_id)
            case Pingreq():
                self._pong(session)
            case Subscribe():
                self._subscribe(session, packet)
            case Unsubscribe():
                self._unsubscribe(session, packet)
            case Disconnect():
                session.will = None
                self.leave(session, Reason.DISCONNECTED)
            case _:
                raise ProtocolViolation("MQTT-3.1.0-2", "a second CONNECT")

    def _pong(self, session: FleetSession) -> None:
        """After the answers that were asked for before it; but whoever hears nothing for long takes us for dead."""
        if session.link is None:
            return
        if self.journal is None or self.journal.is_failing:
            session.link.send(packets.PINGRESP)
        else:
            session.link.send_after(0, packets.PINGRESP)

    def _begin(self) -> None:
        """What is promised from here on is what `_promise` speaks of."""
        if self.journal is not None:
            self.journal.is_touched = False

    def _promise(self, session: FleetSession, frame: bytes, *, is_door: bool = False) -> None:
        """Answer, once what the answer speaks of is on disk, and in order (4.6)."""
        link, journal = session.link, self.journal
        if link is None:
            return
        if journal is None:
            link.send(frame)
        elif journal.is_touched:
            session.promised = journal.number
            link.send_after(journal.number, frame, is_door=is_door)
        else:
            link.send_after(0, frame, is_door=is_door)

    def _release(self, session: FleetSession, packet_id: int) -> None:
        """PUBREL: the id may be used for another message once PUBCOMP has come (4.3.3)."""
        self._begin()
        if packet_id in session.received_ids:
            session.received_ids.discard(packet_id)
            if session.journal is not None:
                session.journal.received(session.number, packet_id, False)
        self._promise(session, packets.pubcomp(packet_id))

    def publish(self, session: FleetSession, packet: Publish) -> None:
        """Authorise, route, acknowledge: in this order. Raises: ProtocolViolation."""
        self.counted.messages_received += 1
        if self.journal is not None:
            self.journal.is_touched = False
        if packet.topic not in session.granted_topics and not self._may_publish(session, packet):
            return
        if packet.retain and not self.retained.has_room(packet, session.owner):
            self._refuse_publish(session, packet, Reason.TOO_MANY_RETAINED)
            return
        if packet.qos == 2 and not self._is_first(session, packet.packet_id):
            self._promise(session, packets.pubrec(packet.packet_id))
            return
        self.route(packet, session.owner)
        if packet.qos:
            self._promise(
                session, packets.puback(packet.packet_id) if packet.qos == 1 else packets.pubrec(packet.packet_id)
            )

    def _is_first(self, session: FleetSession, packet_id: int) -> bool:
        """Whether this QoS 2 message was not routed yet (4.3.3, method B)."""
        if packet_id in session.received_ids:
            return False
        if len(session.received_ids) >= self.limits.inflight_per_session:
            raise ProtocolViolation("4.3.3", "too many messages of QoS 2 without PUBREL")
        session.received_ids.add(packet_id)
        if session.journal is not None:
            session.journal.received(session.number, packet_id, True)
        return True

    def _may_publish(self, session: FleetSession, packet: Publish) -> bool:
        if session.grants.may_publish(packet.topic):
            if len(session.granted_topics) >= _MAX_GRANTED_TOPICS:
                session.granted_topics.clear()
            session.granted_topics.add(packet.topic)
            return True
        self._refuse_publish(session, packet, Reason.PUBLISH_DENIED)
        return False

    def _refuse_publish(self, session: FleetSession, packet: Publish, reason: Reason) -> None:
        self._deny(session, Action.PUBLISH, packet.topic)
        if packet.qos:
            # 3.3.5: acknowledge, or close. An acknowledgement would be believed.
            self.leave(session, reason, packet.topic)

    def _deny(self, session: FleetSession, action: Action, topic: str) -> None:
        self.counted.denied += 1
        session.denials += 1
        if session.client is not None:
            self.observe(Denied(session.client, action, topic, session.denials))
        if session.denials >= self.limits.denials_per_connection:
            self.leave(session, Reason.TOO_MANY_DENIALS)

    def route(self, publish: Publish, owner: DeviceId | None) -> None:
        """Keep a retained message, and hand a message to everyone subscribed. `owner` is None for the broker itself."""
        if publish.retain:
            self._retain(publish, owner)
        message_qos, sent = publish.qos, 0
        for session, granted_qos in self.subscriptions.route(publish.topic):
            if session.deliver(publish, min(message_qos, granted_qos), owner):
                sent += 1
        self.counted.messages_sent += sent

    def _retain(self, publish: Publish, owner: DeviceId | None) -> None:
        if owner is None or self.retained.has_room(publish, owner):
            self.retained.set(publish, owner)
        else:
            self.counted.messages_dropped += 1  # a will: nobody is there to be told

    def _subscribe(self, session: FleetSession, packet: Subscribe) -> None:
        self._begin()
        within = self.limits.subscriptions_per_session
        codes = [self._subscribe_one(session, topic_filter, qos) for topic_filter, qos in packet.requests[:within]]
        codes += [_SUBSCRIPTION_FAILED] * (len(packet.requests) - len(codes))
        if session.link is None:
            return  # cut for what it tried: nothing is kept for it
        self._promise(session, packets.suback(packet.packet_id, codes), is_door=True)
        for (topic_filter, _), code in zip(packet.requests, codes, strict=True):
            if code != _SUBSCRIPTION_FAILED:
                self._send_retained(session, topic_filter, code)

    def _subscribe_one(self, session: FleetSession, topic_filter: str, qos: int) -> int:
        if session.link is None:
            return _SUBSCRIPTION_FAILED
        if not session.grants.decide(Action.SUBSCRIBE, topic_filter).allowed:
            self._deny(session, Action.SUBSCRIBE, topic_filter)
            return _SUBSCRIPTION_FAILED
        if topic_filter not in session.filters and not self._has_room_for_a_filter(session):
            return _SUBSCRIPTION_FAILED
        if topic_filter.startswith("$SYS/"):
            self._refresh(topic_filter.split("/", 2)[1])
        if session.filters.get(topic_filter) != qos:
            self._keep_filter(session, topic_filter, qos)
        session.filters[topic_filter] = qos
        self.subscriptions.add(topic_filter, session, qos)
        return qos

    def _refresh(self, level: str) -> None:
        """Before it is subscribed: what is retained by now is what it gets."""
        for name, refresh in self.refreshers.items():
            if level in (name, "+", "#"):
                refresh()

    def _has_room_for_a_filter(self, session: FleetSession) -> bool:
        limits = self.limits
        return (
            len(session.filters) < limits.subscriptions_per_session
            and self.subscriptions.count < limits.max_subscriptions
        )

    def _send_retained(self, session: FleetSession, topic_filter: str, qos: int) -> None:
        for message in self.retained.matching(topic_filter):
            session.owe_retained(message.topic, qos)
        session.pump()

    def _unsubscribe(self, session: FleetSession, packet: Unsubscribe) -> None:
        self._begin()
        for topic_filter in packet.filters:
            if session.filters.pop(topic_filter, None) is not None:
                self.subscriptions.remove(topic_filter, session)
                self._keep_filter(session, topic_filter, None)
        self._promise(session, packets.unsuback(packet.packet_id))


def _stored(session: FleetSession, absent_since: float | None) -> StoredSession:
    return StoredSession(session.client_id, session.principal, session.epoch, absent_since)


def subject_of(topic: str) -> DeviceId | None:
    """The device whose topic this is, if it is one's."""
    kind, _, rest = topic.partition("/")
    try:
        return DeviceId(rest.partition("/")[0]) if kind == "devices" else None
    except InvalidInput:
        return None


def _is_over(change: Change) -> bool:
    """Whether this enrolment has ended: whoever has the name from now on is another."""
    before, after = change.before, change.after
    if after is None or after.state in (State.REVOKED, State.REMOVED):
        return True
    return before is not None and (before.epoch, before.principal) != (after.epoch, after.principal)


def _is_still_admitted(session: FleetSession, change: Change) -> bool:
    """A live session by its serial, an absent one by its principal and epoch."""
    entry = change.after
    if entry is None or entry.state is not State.ACTIVE or not entry.serials or entry.epoch != session.epoch:
        return False
    if change.before is not None and change.before.principal != entry.principal:
        return False  # another role: its grants were another's
    return session.client is None or entry.admits(session.client.serial)
