"""When a device was heard of last, and what its own word counts beside its broker's."""

from __future__ import annotations

from enroll import presence
from fleet.messages import Presence
from tests.unit.enroll.test_presence import at, seen, status


def test_what_the_broker_had_kept_was_said_when_it_was_sent() -> None:
    """A device that fell silent an hour ago seems alive to a dispatch that connects for the first time."""
    kept, said = status(Presence.ONLINE, is_retained=True), status(Presence.ONLINE)
    first = presence.status(None, kept, at(3600), is_witnessed=True)
    assert first is not None
    assert at(0) == first.after.last_seen
    assert presence.status(first.after, kept, at(7200), is_witnessed=True) is None
    again = presence.status(first.after, said, at(7200), is_witnessed=True)
    assert again is not None
    assert at(7200) == again.after.last_seen, "what it says again is a sign of life"


def test_who_is_there_by_its_own_word_does_not_leave_when_the_broker_says_so_too() -> None:
    """Each device has left once, unheard, when its broker begins to tell of sessions."""
    alone = presence.status(None, status(Presence.ONLINE), at(0), is_witnessed=False)
    assert alone is not None
    both = presence.session_seen(alone.after, seen(1, 1), at(1))
    assert both is not None
    assert (True, ()) == (both.after.is_online, both.changes)
