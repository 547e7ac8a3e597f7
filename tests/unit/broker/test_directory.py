"""The broker's view of the directory, and its file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.directory import Change, Directory, Journal, Position, load
from broker.restored import MAX_ENDED
from fleet import directory
from fleet.directory import Current, Entry, FeedLine, SnapshotStart
from fleet.errors import InvalidInput
from fleet.identity import DeviceId, Principal, Role, Serial, State

PUMP, VALVE = DeviceId("pump-07"), DeviceId("valve-1")
OLD, NEW = Serial("aa"), Serial("bb")


def entry(seq: int, id: DeviceId = PUMP, state: State = State.ACTIVE, *serials: Serial, epoch: int = 1) -> Entry:
    return Entry(seq, Principal(Role.DEVICE, id), state, epoch, frozenset(serials or (OLD,)))


def followed(*lines: FeedLine) -> Directory:
    found = Directory()
    for line in lines:
        found.apply(line)
    return found


START = (SnapshotStart("f", 2), entry(1), entry(2, VALVE), Current("f", 2))
ENCODED = [directory.encode(line) for line in START]


def test_a_snapshot_counts_when_it_is_complete() -> None:
    """Half of a directory would lock the other half out."""
    found = followed(*START[:-1])
    assert (None, False) == (found.position, found.admits(PUMP, OLD))
    assert 2 == len(found.apply(START[-1]))
    assert (Position("f", 2), True) == (found.position, found.admits(PUMP, OLD))


def test_only_listed_serials_of_that_very_principal_are_admitted() -> None:
    """A certificate would open another's door."""
    found = followed(SnapshotStart("f", 2), entry(1), entry(2, VALVE, State.ACTIVE, NEW), Current("f", 2))
    assert [True, False, False, True] == [found.admits(i, s) for i in (PUMP, VALVE) for s in (OLD, NEW)]


def test_whoever_is_missing_in_a_later_snapshot_is_gone() -> None:
    """A principal that was removed while the broker was away would be let in for ever."""
    found = followed(*START, SnapshotStart("f", 5), entry(1))
    changes = found.apply(Current("f", 5))
    assert (Change(entry(2, VALVE), None),) == changes
    assert frozenset({OLD}) == changes[0].ends()
    assert not found.admits(VALVE, OLD)


def test_a_stream_that_broke_off_leaves_everything_as_it_was() -> None:
    """The snapshot of the next connection would be mixed with half of the last one."""
    found = followed(*START, SnapshotStart("f", 9))
    found.forget_partial_snapshot()
    found.apply(entry(3, PUMP, State.REVOKED))
    assert not found.admits(PUMP, OLD)
    assert found.admits(VALVE, OLD)


@given(st.permutations([entry(3), entry(4, PUMP, State.REVOKED), entry(5, PUMP, State.ACTIVE, NEW)]))
def test_the_newest_line_wins_in_whatever_order_they_come(lines: list[Entry]) -> None:
    """A look-up that was slow would undo a revocation."""
    found = followed(*START)
    for line in lines:
        found.apply_found(line)
    assert (False, True) == (found.admits(PUMP, OLD), found.admits(PUMP, NEW))


def test_a_found_entry_does_not_move_the_position() -> None:
    """What lies between would never be asked for."""
    found = followed(*START)
    found.apply_found(entry(40, PUMP, State.ACTIVE, NEW))
    assert Position("f", 2) == found.position
    found.apply(entry(41, PUMP, State.ACTIVE, NEW))
    assert Position("f", 41) == found.position


def test_who_is_found_while_the_first_snapshot_comes_is_not_lost_by_it() -> None:
    """Whoever connects at once would be cut, and who was revoked meanwhile let in, until the stream has come so far."""
    found = followed(SnapshotStart("f", 2), entry(1), entry(2, VALVE))
    found.apply_found(entry(3, DeviceId("new")))
    found.apply_found(entry(4, PUMP, State.REVOKED))
    found.apply(Current("f", 2))
    assert (False, True) == (found.admits(PUMP, OLD), found.admits(DeviceId("new"), OLD))
    assert frozenset() == found.kept


@pytest.mark.parametrize("feed", ["f", "restored"])
def test_a_restored_registry_does_not_bring_back_who_was_revoked(feed: str) -> None:
    """A backup from before a theft would let the thief in; or the broker would take no word of it any more."""
    found = followed(*START, entry(7, PUMP, State.REVOKED), entry(8, DeviceId("lost")))
    for line in (SnapshotStart(feed, 5), entry(4), entry(5, VALVE), Current(feed, 5)):
        found.apply(line)
    assert (False, True) == (found.admits(PUMP, OLD), found.admits(VALVE, OLD))
    assert (None, frozenset({PUMP})) == (found.entry(DeviceId("lost")), found.kept)
    found.apply(entry(6, PUMP, State.ACTIVE, OLD, NEW))
    assert not found.admits(PUMP, NEW), "who was revoked has had the certificate renewed, which the service takes"
    for line in (entry(7, PUMP, State.SUSPENDED, OLD), entry(8, PUMP)):  # an admin decided
        found.apply(line)
    assert found.admits(PUMP, OLD)
    found.apply(entry(7, VALVE, State.REVOKED))  # a number that another line had before
    assert not found.admits(VALVE, OLD)


def test_what_a_restored_registry_says_itself_is_not_kept_against_it() -> None:
    """Whoever was given its name again meanwhile would be locked out, and an admin told of what is settled."""
    found = followed(*START, entry(7, PUMP, State.REVOKED), entry(8, VALVE, State.REVOKED))
    anew = entry(4, PUMP, State.ACTIVE, NEW, epoch=2)
    for line in (SnapshotStart("f", 5), anew, entry(5, VALVE, State.REVOKED), Current("f", 5)):
        found.apply(line)
    assert (True, frozenset()) == (found.admits(PUMP, NEW), found.kept)


def test_a_feed_that_begins_without_a_snapshot_is_refused() -> None:
    """Lines of another history would be taken for ours."""
    for lines in ((Current("f", 1),), (*START, Current("g", 3))):
        found = followed(*lines[:-1])
        with pytest.raises(InvalidInput):
            found.apply(lines[-1])


def test_what_was_kept_is_what_is_read(tmp_path: Path) -> None:
    """A revocation would not outlive a restart."""
    path = tmp_path / "directory.ndjson"
    found, journal = followed(*START), Journal(path)
    assert journal.is_rewrite_due(0)
    journal.rewrite(map(directory.encode, found.snapshot()))
    change = entry(3, PUMP, State.REVOKED)
    found.apply(change)
    assert not journal.is_rewrite_due(1)
    journal.append([directory.encode(change)])
    again = load(path)
    assert (found.entries, found.position) == (again.entries, again.position)
    assert 0o600 == path.stat().st_mode & 0o777


def test_a_kept_revocation_against_a_restored_registry_is_kept_on_disk_too(tmp_path: Path) -> None:
    """A restart after the restore would let the thief in."""
    path = tmp_path / "directory.ndjson"
    found = followed(*START, entry(7, PUMP, State.REVOKED))
    for line in (SnapshotStart("restored", 5), entry(4), Current("restored", 5)):
        found.apply(line)
    Journal(path).rewrite(map(directory.encode, found.snapshot()))
    again = load(path)
    assert not again.admits(PUMP, OLD)
    again.apply(entry(6, PUMP, State.ACTIVE, NEW))
    assert not again.admits(PUMP, NEW)
    again.apply(entry(7, PUMP, State.ACTIVE, NEW, epoch=2))
    assert again.admits(PUMP, NEW)


def restored(*listed: Entry) -> Directory:
    """A broker that saw one of two serials end, and then was sent the snapshot of an older backup."""
    found = followed(SnapshotStart("f", 2), entry(1, PUMP, State.ACTIVE, OLD, NEW), Current("f", 2))
    found.apply(entry(3, PUMP, State.ACTIVE, NEW))
    lines: list[FeedLine] = [SnapshotStart("f", 2), *listed, Current("f", 2, "other")]
    for line in lines:
        found.apply(line)
    return found


BOTH = entry(2, PUMP, State.ACTIVE, OLD, NEW)


def test_a_restored_registry_does_not_bring_back_a_serial_that_was_revoked() -> None:
    """Whoever has stolen one certificate would be let in by a backup, beside the device itself."""
    found = restored(BOTH)
    assert (False, True, frozenset({PUMP})) == (found.admits(PUMP, OLD), found.admits(PUMP, NEW), found.kept)
    made_of_it = Serial("cc")
    for line in (entry(4, PUMP, State.ACTIVE, OLD, NEW, made_of_it), entry(5, PUMP, State.ACTIVE, made_of_it)):
        found.apply(line)
        assert not found.admits(PUMP, made_of_it), "the service renews what it takes for good"
    found.apply(entry(6, PUMP, State.ACTIVE, NEW, epoch=2))
    assert found.admits(PUMP, NEW)


@pytest.mark.parametrize(
    "decided",
    [
        [entry(4, PUMP, State.ACTIVE, NEW)],  # enroll cert revoke OLD
        [entry(4, PUMP, State.SUSPENDED, OLD, NEW), BOTH],
        [entry(4, PUMP, State.ACTIVE, Serial("dd"), epoch=2)],
    ],
)
def test_once_an_admin_has_decided_everything_goes_on(decided: list[Entry]) -> None:
    """A device could never be renewed again after a restore."""
    found, later = restored(BOTH), Serial("dd")
    for number, line in enumerate(decided):
        found.apply(replace(line, seq=4 + number))
    found.apply(entry(9, PUMP, State.ACTIVE, NEW, later, epoch=decided[-1].epoch))
    assert found.admits(PUMP, later)


def test_what_a_restored_registry_does_not_list_is_nothing_to_decide() -> None:
    """An admin would be told of each certificate that was ever renewed."""
    found = restored(entry(2, PUMP, State.ACTIVE, NEW))
    assert (True, frozenset()) == (found.admits(PUMP, NEW), found.kept)


def test_a_second_restore_keeps_what_the_first_one_did() -> None:
    """Whoever restores twice, an older backup the second time, would let the thief in."""
    found = restored(BOTH)
    for line in (SnapshotStart("g", 1), replace(BOTH, seq=1), Current("g", 1)):
        found.apply(line)
    assert (False, True, frozenset({PUMP})) == (found.admits(PUMP, OLD), found.admits(PUMP, NEW), found.kept)


def restored_again(found: Directory, *listed: Entry) -> Directory:
    lines: list[FeedLine] = [SnapshotStart("f", 2), *listed, Current("f", 2, "third")]
    for line in lines:
        found.apply(line)
    return found


def test_what_was_revoked_since_the_first_restore_stays_out_after_a_second() -> None:
    """What was good in both at the first one would be good for ever."""
    found = restored(BOTH)
    found.apply(entry(4, PUMP, State.ACTIVE, OLD))  # enroll cert revoke NEW
    restored_again(found, BOTH)
    assert (False, False) == (found.admits(PUMP, OLD), found.admits(PUMP, NEW))


def test_an_older_backup_by_mistake_does_not_make_the_right_one_a_new_enrolment() -> None:
    """Its epoch is newer than what was listed last: what was revoked in it would be let in."""
    new = entry(2, PUMP, State.ACTIVE, NEW, epoch=2)
    found = followed(SnapshotStart("f", 2), new, Current("f", 2))
    found.apply(entry(3, PUMP, State.ACTIVE, epoch=2))
    restored_again(restored_again(found, entry(1)), new)
    assert (False, frozenset({PUMP})) == (found.admits(PUMP, NEW), found.kept)
    found.apply(entry(4, PUMP, State.ACTIVE, NEW, epoch=3))
    assert found.admits(PUMP, NEW)


def test_what_an_admin_let_in_again_is_good_after_another_restore() -> None:
    """Each restore would lock the device out once more."""
    found = restored(BOTH)
    found.apply(entry(4, PUMP, State.SUSPENDED, OLD, NEW))
    found.apply(entry(5, PUMP, State.ACTIVE, OLD, NEW))
    restored_again(found, BOTH)
    assert (True, True, frozenset()) == (found.admits(PUMP, OLD), found.admits(PUMP, NEW), found.kept)


def test_a_serial_that_is_kept_out_stays_so_after_a_restart(tmp_path: Path) -> None:
    """A restart of the broker would let the thief in; before the restore, or after it."""
    path, seen = tmp_path / "directory.ndjson", [entry(3, PUMP, State.ACTIVE, NEW)]
    before = followed(SnapshotStart("f", 2), entry(1, PUMP, State.ACTIVE, OLD, NEW), Current("f", 2), *seen)
    for found in (before, restored(BOTH)):
        Journal(path).rewrite(map(directory.encode, found.snapshot()))
        again = load(path)
        assert found.entries == again.entries
        for line in (SnapshotStart("g", 2), BOTH, Current("g", 2), entry(5, PUMP, State.ACTIVE, OLD, NEW)):
            again.apply(line)
        assert (False, True) == (again.admits(PUMP, OLD), again.admits(PUMP, NEW))


def test_what_is_remembered_of_a_principal_has_a_bound() -> None:
    """A device that renews every minute would fill the memory of every broker."""
    found = followed(SnapshotStart("f", 2), entry(1), Current("f", 2))
    for number in range(100):
        found.apply(entry(3 + number, PUMP, State.ACTIVE, Serial(f"{number + 1:x}")))
    newest = found.entries[PUMP]
    assert (MAX_ENDED, Serial("63")) == (len(newest.ended), newest.ended[-1])


def test_a_line_that_a_crash_cut_off_is_left_out(tmp_path: Path) -> None:
    """The broker would not start after a power cut."""
    path = tmp_path / "directory.ndjson"
    whole = b"".join(ENCODED)
    torn = directory.encode(entry(3, PUMP, State.REVOKED))
    for cut in range(len(torn) - 1):
        path.write_bytes(whole + torn[:cut])
        assert load(path).admits(PUMP, OLD)
    path.write_bytes(whole + torn)
    assert not load(path).admits(PUMP, OLD)


def test_what_is_appended_after_a_cut_off_line_is_not_lost(tmp_path: Path) -> None:
    """A revocation would be glued to the rest of a line and damage the file."""
    path = tmp_path / "directory.ndjson"
    path.write_bytes(b"".join(ENCODED) + b'{"type": "ent')
    found, journal = load(path), Journal(path)
    assert journal.is_rewrite_due(1)  # a journal that was not written by this process is never appended to
    found.apply(entry(3, PUMP, State.REVOKED))
    journal.rewrite(map(directory.encode, found.snapshot()))
    assert not load(path).admits(PUMP, OLD)


def test_a_damaged_file_says_so_and_what_to_do(tmp_path: Path) -> None:
    """A broker would start with a part of its directory, or with a traceback."""
    path = tmp_path / "directory.ndjson"
    path.write_bytes(directory.encode(START[0]) + b"{}\n")
    with pytest.raises(InvalidInput) as raised:
        load(path)
    assert str(path) in raised.value.message
    assert f"rm {path}" in raised.value.hint


def test_a_file_that_is_not_there_is_an_empty_directory(tmp_path: Path) -> None:
    """The first start would fail."""
    assert None is load(tmp_path / "none").position


def test_a_journal_that_has_grown_is_written_anew(tmp_path: Path) -> None:
    """The file would grow for ever."""
    journal = Journal(tmp_path / "directory.ndjson")
    journal.rewrite(ENCODED)
    journal.append(directory.encode(entry(seq)) for seq in range(3, 1003))
    assert not journal.is_rewrite_due(4)
    assert journal.is_rewrite_due(5)
