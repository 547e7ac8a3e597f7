"""The broker's view of the directory: who may connect, as of the last line of the feed, and its file.

Lines come from `fleet.directory`. The file holds the same lines: a snapshot, then what changed since. Starting is
reading it back, so a revocation outlives a restart even with the enrollment service away.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import assert_never

from broker.restored import listed_anew, succeeded
from fleet import directory
from fleet.directory import Current, Entry, FeedLine, SnapshotStart
from fleet.errors import FleetError, InvalidInput
from fleet.identity import DeviceId, Principal, Serial, State


@dataclass(frozen=True, slots=True)
class Change:
    """One principal, before and after a line of the feed; None where it was, or is, not listed."""

    before: Entry | None
    after: Entry | None

    @property
    def principal(self) -> Principal:
        entry = self.after or self.before
        assert entry is not None
        return entry.principal

    def ends(self) -> frozenset[Serial]:
        """The serials that might connect before and may not now."""
        return _open_serials(self.before) - _open_serials(self.after)


def _open_serials(entry: Entry | None) -> frozenset[Serial]:
    return entry.serials if entry is not None and entry.state is State.ACTIVE else frozenset()


@dataclass(frozen=True, slots=True)
class Position:
    """How far the feed was followed; `mark` names the newest entry of the service's log, as it said itself."""

    feed: str
    seq: int
    mark: str = field(default="", compare=False)


class Directory:
    """All principals. An older line never wins over a newer one, in whatever order they come.

    A snapshot replaces everything at once, when it is complete. A second one tells of another history: a registry that
    was restored from a backup, or made anew. What this broker knows as revoked is not let in again by it: that takes an
    admin (`restored`). `kept` is of whom something stays out against the newest snapshot; `snapshots` counts them.
    """

    def __init__(self) -> None:
        self._entries: dict[DeviceId, Entry] = {}
        self._snapshot: dict[DeviceId, Entry] | None = None
        self._position: Position | None = None
        self.kept: frozenset[DeviceId] = frozenset()
        self.snapshots = 0

    @property
    def position(self) -> Position | None:
        """Where to go on following; None before the first snapshot is complete."""
        return self._position

    @property
    def entries(self) -> Mapping[DeviceId, Entry]:
        return MappingProxyType(self._entries)

    def entry(self, device: DeviceId) -> Entry | None:
        return self._entries.get(device)

    def admits(self, device: DeviceId, serial: Serial) -> bool:
        """Whether a certificate with this common name and serial may connect now."""
        entry = self._entries.get(device)
        return entry is not None and entry.admits(serial)

    def forget_partial_snapshot(self) -> None:
        """A stream ended: what it began to send is worth nothing."""
        self._snapshot = None

    def apply(self, line: FeedLine) -> tuple[Change, ...]:
        """Take in a line of the stream; what changed by it."""
        match line:
            case Entry():
                return self._apply_streamed(line)
            case SnapshotStart():
                self._snapshot = {}
                return ()
            case Current(feed, seq, mark):
                return self._apply_current(Position(feed, seq, mark))
            case _:
                assert_never(line)

    def apply_found(self, entry: Entry) -> tuple[Change, ...]:
        """Take in an entry that was asked for by serial: it says nothing of how far the stream was followed."""
        known = self._entries.get(entry.principal.id)
        if known is not None and known.seq >= entry.seq:
            return ()
        entry = self._entries[entry.principal.id] = succeeded(known, entry)
        return (Change(known, entry),)

    def _apply_streamed(self, entry: Entry) -> tuple[Change, ...]:
        if self._snapshot is not None:
            self._snapshot[entry.principal.id] = entry
            return ()
        if self._position is not None and entry.seq > self._position.seq:
            self._position = replace(self._position, seq=entry.seq)
        return self.apply_found(entry)

    def _apply_current(self, position: Position) -> tuple[Change, ...]:
        snapshot, self._snapshot = self._snapshot, None
        if snapshot is None:
            if self._position is None or position.feed != self._position.feed:
                raise InvalidInput("the directory feed began without a snapshot")
            self._position = replace(position, seq=max(position.seq, self._position.seq))
            return ()
        self.snapshots += 1
        if self._position is None:
            self.kept, merged = frozenset(), {**snapshot, **self._found_since(snapshot, position)}
        else:
            merged = dict(self._listed_anew(snapshot, position))
            self.kept = frozenset(id_ for id_, entry in merged.items() if entry.only is not None)
        before, self._entries, self._position = self._entries, merged, position
        ids = sorted(before.keys() | merged.keys())
        changes = (Change(before.get(id_), merged.get(id_)) for id_ in ids)
        return tuple(change for change in changes if change.before != change.after)

    def _found_since(self, snapshot: Mapping[DeviceId, Entry], position: Position) -> dict[DeviceId, Entry]:
        """Whom a look-up by serial found while the first snapshot came, if it is newer than what that says."""
        listed = {id_: snapshot[id_].seq if id_ in snapshot else position.seq for id_ in self._entries}
        return {id_: known for id_, known in self._entries.items() if known.seq > listed[id_]}

    def _listed_anew(self, snapshot: Mapping[DeviceId, Entry], position: Position) -> Iterator[tuple[DeviceId, Entry]]:
        for id_ in sorted(self._entries.keys() | snapshot.keys()):
            found = listed_anew(self._entries.get(id_), snapshot.get(id_), position.seq)
            if found is not None:
                yield id_, found

    def snapshot(self) -> tuple[FeedLine, ...]:
        """The whole view as lines of a feed; none before the first snapshot is complete."""
        current = self.current()
        return () if current is None else (SnapshotStart(current.feed, current.seq), *self._entries.values(), current)

    def current(self) -> Current | None:
        """The line that says how far the feed was followed; None before the first snapshot is complete."""
        at = self._position
        return None if at is None else Current(at.feed, at.seq, at.mark)


def load(path: Path) -> Directory:
    """The directory as it was kept in `path`; empty if there is none. Raises: FleetError."""
    found = Directory()
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return found
    except OSError as error:
        raise FleetError(f"cannot read {path}: {error.strerror}") from error
    # Without its newline the last line was cut off by a crash while it was appended: it was not yet promised.
    *lines, _cut_off = data.split(b"\n")
    try:
        for line in lines:
            found.apply(directory.decode(line))
    except InvalidInput as error:
        raise InvalidInput(
            f"{path} is damaged: {error}",
            hint=f"remove it while the enrollment service can be reached: rm {path}",
        ) from error
    found.forget_partial_snapshot()
    return found


class Journal:
    """Keeps a directory in its file: appends what changed, and writes it anew when it has grown.

    What it was given is on disk when a method returns. Not for concurrent use. Raises: OSError.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._appended: int | None = None  # None: the file is not known to be whole
        self._size = 0

    def is_rewrite_due(self, changed: int) -> bool:
        """Whether the file should rather be written anew than `changed` lines appended."""
        return self._appended is None or self._appended + changed > self._size + 1000

    def append(self, lines: Iterable[bytes]) -> None:
        """Add lines, each with its newline."""
        added = list(lines)
        self._append(b"".join(added))
        self._appended = (self._appended or 0) + len(added)

    def rewrite(self, lines: Iterable[bytes]) -> None:
        """Replace everything by `lines`, atomically."""
        self._appended = None
        written = list(lines)
        self._rewrite(b"".join(written))
        self._appended, self._size = 0, len(written)

    def _append(self, data: bytes) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            _write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _rewrite(self, data: bytes) -> None:
        # write, fsync, rename, fsync of the folder: after a power cut there is the old file or the new one, whole.
        partial = self._path.with_suffix(".partial")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            _write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        partial.replace(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
