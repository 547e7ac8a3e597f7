"""The files that the owner of the device shares: regular ones in the folders named, and nothing else.

A path is opened part by part, and no link is followed below a shared folder: whoever can write into one cannot lend
the fleet what lies elsewhere. The agent's home is not entered, whatever is shared.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fleet.errors import FleetError, InvalidInput, reason_of
from fleet.messages import JsonObject
from fleet.uploads import check_file_name

MAX_LOOKED_AT: Final = 20_000
"""How many files and folders are looked at for a listing."""
MAX_DEPTH: Final = 32
"""How many folders below a shared one are entered for a listing: each holds a descriptor meanwhile."""
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# O_NONBLOCK: whoever puts a pipe where a file was must not stop the agent.
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class NotShared(FleetError):
    """The device does not give that away, or cannot."""


def check_shares(folders: Sequence[Path], home: Path) -> tuple[Path, ...]:
    """`folders` as absolute paths; they need not be there yet. Raises: InvalidInput if one holds the agent's home."""
    for folder in folders:
        there, own = folder.resolve(), home.resolve()
        if there.is_relative_to(own) or own.is_relative_to(there):
            raise InvalidInput(
                f"{folder} cannot be shared: the agent's home is {home}", hint="share a folder beside it"
            )
    return tuple(Path(os.path.abspath(folder)) for folder in folders)  # noqa: PTH100 - without .., with its links


@dataclass(frozen=True, slots=True)
class Shares:
    """What is shared, and the agent's home, which never is. `most`: files and folders of a listing."""

    folders: tuple[Path, ...]
    home: Path
    most: int = MAX_LOOKED_AT

    def open(self, name: str) -> int:
        """A descriptor of the regular file with that absolute path. Raises: InvalidInput, NotShared."""
        path = Path(check_file_name(name))
        folder = next((each for each in self.folders if path.is_relative_to(each) and path != each), None)
        if not self.folders:
            raise NotShared("this device shares no folder", hint="device-agent run --share DIR")
        if folder is None:
            raise NotShared(f"{name} is in no shared folder", hint="enroll fetch listing ID shows what is")
        try:
            return self._open(folder, path.relative_to(folder).parts)
        except OSError as error:
            is_link = error.errno in (errno.ELOOP, errno.ENOTDIR)
            reason = "a link, or below what is no folder" if is_link else reason_of(error)
            raise NotShared(f"{name} cannot be read: {reason}") from error

    def _open(self, folder: Path, parts: Sequence[str]) -> int:
        at = os.open(folder, _FOLDER)
        try:
            self._check_folder(folder, at)
            for part in parts[:-1]:
                above, at = at, os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=at)
                os.close(above)
                self._check_folder(folder, at)
            _check_regular(os.stat(parts[-1], dir_fd=at, follow_symlinks=False))  # a device is not even opened
            file = os.open(parts[-1], _FILE, dir_fd=at)
        finally:
            os.close(at)
        try:
            _check_regular(os.fstat(file))
        except BaseException:
            os.close(file)
            raise
        return file

    def _check_folder(self, folder: Path, file: int) -> None:
        """Raises: NotShared for the agent's home, and for what was swapped for a folder in it."""
        if self._is_home(os.fstat(file)) or folder.resolve().is_relative_to(self.home.resolve()):
            raise NotShared("the agent's home is not shared")

    def _is_home(self, status: os.stat_result) -> bool:
        return os.path.samestat(status, self.home.stat())

    def listing(self, max_bytes: int) -> bytes:
        """What there is to ask for: a JSON object a line, sorted within each folder; the last says if it is not all.

        Raises: NotShared.
        """
        if not self.folders:
            raise NotShared("this device shares no folder", hint="device-agent run --share DIR")
        lines, size = [], 0
        for entry in self._entries():
            line = json.dumps(entry).encode() + b"\n"
            size += len(line)
            if size > max_bytes - 100:
                lines.append(b'{"is_cut": true}\n')
                break
            lines.append(line)
        return b"".join(lines)

    def _entries(self) -> Iterator[JsonObject]:
        left, is_cut = self.most, False
        for folder in self._there():
            with self._opened(folder) as at:
                for root, folders, names, file in os.fwalk(".", dir_fd=at):
                    left -= len(names)
                    found = sorted(names)[: len(names) + min(0, left)]
                    entries = (_entry(os.path.normpath(folder / root / name), name, file) for name in found)
                    yield from (entry for entry in entries if entry is not None)
                    if folders and root.count("/") >= MAX_DEPTH:
                        is_cut = True
                        folders.clear()
                    left -= len(folders)
                    if left < 0:
                        yield {"is_cut": True}
                        return
                    folders[:] = sorted(each for each in folders if not self._leads_home(each, file))
        if is_cut:
            yield {"is_cut": True}

    def _there(self) -> Sequence[Path]:
        """The folders that are there by now; all of them if none is, so that it is said why."""
        return [folder for folder in self.folders if os.path.exists(folder)] or self.folders  # noqa: PTH110 - which never raises

    @contextlib.contextmanager
    def _opened(self, folder: Path) -> Iterator[int]:
        """Raises: NotShared."""
        try:
            at = os.open(folder, _FOLDER)
        except OSError as error:
            raise NotShared(f"{folder} cannot be read: {reason_of(error)}") from error
        try:
            self._check_folder(folder, at)
            yield at
        finally:
            os.close(at)

    def _leads_home(self, name: str, folder: int) -> bool:
        try:
            return self._is_home(os.stat(name, dir_fd=folder, follow_symlinks=False))
        except OSError:
            return True


def _check_regular(status: os.stat_result) -> None:
    """Raises: NotShared."""
    if stat.S_ISLNK(status.st_mode):
        raise NotShared("it is a link")
    if not stat.S_ISREG(status.st_mode):
        raise NotShared("it is no regular file")


def _entry(path: str, name: str, folder: int) -> JsonObject | None:
    """One file; None for what cannot be asked for."""
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if stat.S_ISREG(status.st_mode):
            return {"name": check_file_name(path), "bytes": status.st_size, "modified": int(status.st_mtime)}
    except (OSError, InvalidInput):  # it went, or its name is no text
        pass
    return None
