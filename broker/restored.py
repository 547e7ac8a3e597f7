"""What a broker holds against a registry that was restored from a backup, until an admin decides (pure).

The registry has forgotten what was revoked since; whoever holds it would be let in again. So a broker notes of each
principal which serials it saw end (`Entry.ended`). If a restored registry lists one of them, or a principal that this
broker knows as revoked, then no other serials get in than those that were good in both (`Entry.only`): not the one that
was revoked, nor what the service has made of it since, to which it is as good as any.

An admin decides by another state (suspend, then resume, or revoke), by a new enrolment, or by revoking in the registry
what is kept out here, as long as nothing unknown came of it. An enrolment is new if it has a higher epoch than was seen
here: of a name that the backup has forgotten, or knows from before it was enrolled again, the first one may not.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from fleet.directory import Entry
from fleet.identity import State

# Each outlives its renewal by a third of a life at most: a serial is long expired when so many others have followed.
MAX_ENDED: Final = 16
_OUT: Final = (State.REVOKED, State.REMOVED)


def succeeded(known: Entry | None, line: Entry) -> Entry:
    """A newer line of the same registry, as it is taken."""
    if known is None:
        return line
    line = _noted(known, line)
    if known.only is None or line.only is not None or _is_decided(known, known.only, line):
        return _let_in(line)
    if known.state in _OUT:
        return replace(line, state=known.state, only=known.only)
    return replace(line, serials=line.serials & known.only, only=known.only)


def _noted(known: Entry, line: Entry) -> Entry:
    """With the serials that ended by it, the newest last forgotten."""
    over = sorted(known.serials - line.serials)
    ended = [serial for serial in (*known.ended, *over) if serial not in line.ended]
    return replace(line, ended=(*ended, *line.ended)[-MAX_ENDED:]) if ended else line


def _let_in(line: Entry) -> Entry:
    """What an admin lets in again has not ended: another restore finds it good."""
    if line.state is not State.ACTIVE or line.only is not None or line.serials.isdisjoint(line.ended):
        return line
    return replace(line, ended=tuple(serial for serial in line.ended if serial not in line.serials))


def _is_decided(known: Entry, only: frozenset[object], line: Entry) -> bool:
    if line.state is not State.ACTIVE or line.epoch > known.epoch:
        return True
    return known.state is State.ACTIVE and line.serials <= only and line.serials.isdisjoint(line.ended)


def listed_anew(known: Entry | None, listed: Entry | None, seq: int) -> Entry | None:
    """What is taken of a principal from the snapshot of another history, which is at `seq`; None if it is not there.

    `Entry.only` tells whether something is kept.
    """
    if known is None:
        return listed
    if known.state in _OUT and not _is_settled(known, listed):
        return replace(known, seq=seq, only=frozenset())
    if listed is None:
        return None
    listed = replace(listed, ended=known.ended)
    if listed.state is not State.ACTIVE:
        return listed
    # A newer epoch is a new enrolment, or what had come before an older backup was restored first.
    if listed.serials.isdisjoint(known.ended) and (known.only is None or listed.epoch > known.epoch):
        return listed
    good = known.serials if known.only is None else known.only
    only = (listed.serials & good).difference(known.ended)
    return replace(listed, serials=only, only=only)


def _is_settled(known: Entry, listed: Entry | None) -> bool:
    """Whether the registry itself knows it, or has let somebody else in by that name."""
    return listed is not None and (listed.state is known.state or listed.epoch > known.epoch)
