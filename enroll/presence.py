"""Whether a device is connected, and why not, from what it says itself and what its broker says (pure).

A broker that tells of its sessions is believed before the device: a status may be retained from long ago, and a will
may be lost. Then the status has the device's own words and version, and says whether it can take commands. With a
broker that does not tell (Mosquitto), status and will are all there is.

Each function gives what there is to record, or None where nothing is new. Whatever order reports come in, and however
often, the last word of the broker, by its numbers, is what is recorded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from enroll.registry.records import PresenceChange, PresenceRecord
from enroll.reports import HelloSeen, SessionOver, SessionSeen, StatusSeen
from fleet.messages import Presence
from fleet.sessions import Ending


@dataclass(frozen=True, slots=True)
class Fused:
    """A device's presence from now on, and what changed."""

    after: PresenceRecord
    changes: tuple[PresenceChange, ...] = ()


def status(before: PresenceRecord | None, seen: StatusSeen, now: datetime, *, is_witnessed: bool) -> Fused | None:
    """What is retained is not news: it must not make a silent device look alive whenever dispatch connects."""
    said = seen.status
    is_online = said.presence is Presence.ONLINE
    heard_at = min(said.envelope.sent_at, now) if seen.is_retained else now
    known = before or _unknown(heard_at, now)
    has_changed = before is None or known.is_claimed != is_online or (not is_witnessed and known.is_online != is_online)
    has_changed = has_changed or (is_online and known.said != said.reason)
    if seen.is_retained and not has_changed:
        return None
    after = replace(
        known,
        agent_version=said.agent_version or known.agent_version,
        last_seen=max(heard_at, known.last_seen),
        is_claimed=is_online,
        said=said.reason,
    )
    if is_witnessed:
        return Fused(replace(after, reason=Ending.NO_SESSION.value) if before is None and is_online else after)
    return _by_its_own_word(before, after, is_online, said.reason, now)


def hello(before: PresenceRecord | None, seen: HelloSeen, now: datetime, *, is_witnessed: bool) -> Fused:
    """It takes commands now. It may have gone since it said so: that it is there is for the broker to say."""
    known = before or _unknown(now, now)
    after = replace(known, agent_version=seen.agent_version, last_seen=now, is_claimed=True, said=_of_online(known))
    if is_witnessed:
        return Fused(after)
    return _by_its_own_word(before, after, True, after.said, now)


def session_seen(before: PresenceRecord | None, seen: SessionSeen, now: datetime) -> Fused | None:
    """It is online, in this session. The end of another that nobody told is noted too."""
    known = before or _unknown(seen.since, now)
    is_same = known.boot == seen.boot
    if is_same and (seen.number < known.session or (known.is_online and seen.number == known.session)):
        return None
    at = max(seen.since, known.changed_at) if before is not None else seen.since
    changes: tuple[PresenceChange, ...] = ()
    if known.is_online and known.boot:
        known, changes = _moved(known, False, Ending.UNHEARD.value, at)
    here = {"boot": seen.boot, "session": seen.number, "address": seen.address, "broker": seen.broker}
    known = replace(known, last_seen=max(known.last_seen, at), **here)  # type: ignore[arg-type]
    if known.is_online:  # by its own word so far
        return Fused(known)
    after, came = _moved(replace(known, said=_of_online(known)), True, "", at, is_first=before is None)
    return Fused(after, changes + came)


def session_over(before: PresenceRecord | None, seen: SessionOver, now: datetime) -> Fused | None:
    """It is offline, unless it has a newer session already."""
    if before is None or not before.is_online or (before.boot == seen.boot and before.session > seen.number):
        return None
    at = min(max(seen.at, before.changed_at), now)
    after, changes = _moved(replace(before, broker=seen.broker), False, seen.ending.value, at)
    return Fused(after, changes)


def _by_its_own_word(
    before: PresenceRecord | None, after: PresenceRecord, is_online: bool, reason: str, now: datetime
) -> Fused:
    alone = replace(after, boot="", session=0, address="", broker="")
    if before is not None and before.is_online == is_online:
        return Fused(replace(alone, reason=reason))
    alone = replace(alone, said=reason if is_online else "")
    moved, changes = _moved(alone, is_online, reason, now, is_first=before is None)
    return Fused(moved, changes)


def _moved(
    before: PresenceRecord, is_online: bool, reason: str, at: datetime, *, is_first: bool = False
) -> tuple[PresenceRecord, tuple[PresenceChange, ...]]:
    said = "" if is_online else before.said
    since = None if is_first else before.changed_at
    change = PresenceChange(before.changes, at, is_online, reason, said, before.address, before.broker, since)
    after = replace(before, is_online=is_online, reason=reason, changed_at=at, changes=before.changes + 1)
    return replace(after, last_seen=max(after.last_seen, at)), (change,)


def _of_online(known: PresenceRecord) -> str:
    """What is wrong with it by its own word; not why it left some time ago."""
    return known.said if known.is_claimed else ""


def _unknown(seen: datetime, now: datetime) -> PresenceRecord:
    return PresenceRecord(False, "", "", now, seen, is_claimed=False)
