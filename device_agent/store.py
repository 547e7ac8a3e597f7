"""The agent's files: credential generations that no crash can tear, one agent a home, small files replaced whole.

A generation is written in this order, and each step is on disk before the next begins:

    mkdir gen-N; key.pem (O_EXCL 0600, fsync); request.json (.new, fsync, rename); fsync gen-N; fsync HOME
    ... only now the CSR is sent; a crash before leaves a folder that nobody was told of, and it is removed ...
    trust.pem (.new, fsync, rename); fsync HOME
    cert.pem (.new, fsync, rename); meta.json (.new, fsync, rename); fsync gen-N
    ... the generation is whole ...
    symlink current.new -> gen-N; rename current.new -> current; fsync HOME

request.json says that the key may be known to the service: a key whose answer got lost is used again, and the service
answers the same key with the same certificate. meta.json comes last: a generation that has one is whole and was
verified, and is promoted at the next start if the crash came before `current`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from fleet.errors import FleetError, InvalidInput, NotFound
from fleet.identity import DeviceId
from fleet.layout import AgentHome, Credential, decode_credential
from fleet.messages import decode_object

_KEY: Final = "key.pem"
_REQUEST: Final = "request.json"
_META: Final = "meta.json"
_CERTIFICATE: Final = "cert.pem"
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


class Disk(Protocol):
    """The system calls that change a home: tests cut the power at each."""

    def make_folder(self, path: Path) -> None: ...
    def create(self, path: Path) -> int: ...
    def write(self, file: int, data: bytes) -> None: ...
    def sync(self, file: int) -> None: ...
    def close(self, file: int) -> None: ...
    def sync_folder(self, path: Path) -> None: ...
    def rename(self, source: Path, target: Path) -> None: ...
    def link(self, target: str, path: Path) -> None: ...
    def remove(self, path: Path) -> None: ...
    def remove_folder(self, path: Path) -> None: ...


class PosixDisk:
    """The real one. Folders are 0700, files 0600 and new."""

    def make_folder(self, path: Path) -> None:
        path.mkdir(mode=0o700)

    def create(self, path: Path) -> int:
        return os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def write(self, file: int, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(file, rest) :]

    def sync(self, file: int) -> None:
        os.fsync(file)

    def close(self, file: int) -> None:
        os.close(file)

    def sync_folder(self, path: Path) -> None:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def rename(self, source: Path, target: Path) -> None:
        source.replace(target)

    def link(self, target: str, path: Path) -> None:
        path.symlink_to(target)

    def remove(self, path: Path) -> None:
        path.unlink()

    def remove_folder(self, path: Path) -> None:
        path.rmdir()


def write_new(disk: Disk, path: Path, data: bytes) -> None:
    """`path` holds `data`, durably but for its name. Raises: OSError, FileExistsError too."""
    file = disk.create(path)
    try:
        disk.write(file, data)
        disk.sync(file)
    finally:
        disk.close(file)


def replace_file(disk: Disk, path: Path, data: bytes) -> None:
    """`path` holds either what it held or `data`, whenever the power goes. Raises: OSError."""
    fresh = path.with_name(path.name + ".new")
    if fresh.exists():
        disk.remove(fresh)
    write_new(disk, fresh, data)
    disk.rename(fresh, path)
    disk.sync_folder(path.parent)


@dataclass(frozen=True, slots=True)
class Pending:
    """A key that has no certificate yet, for which one may have been asked."""

    folder: Path
    device: DeviceId
    url: str

    @property
    def key(self) -> Path:
        return self.folder / _KEY


class Store:
    """The generations in one home."""

    def __init__(self, home: AgentHome, disk: Disk) -> None:
        self._home = home
        self._disk = disk

    def prepare(self) -> None:
        """A home of ours, 0700. Raises: FleetError if somebody else could read or change what is in it."""
        path = self._home.path
        try:
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                self._disk.make_folder(path)
                self._disk.sync_folder(path.parent)
            elif not any(path.iterdir()) and path.stat().st_uid == os.geteuid():
                path.chmod(0o700)
        except OSError as error:
            raise FleetError(
                f"{path} cannot be used: {error.strerror or error}", hint="name another place: --home DIR"
            ) from error
        check_private(path)

    def recover(self) -> bool:
        """Promote a first generation that a crash left whole but not current; whether there was one. Raises: OSError.

        A home that has an identity is left alone: what follows is promoted by a connection that works.
        """
        if not self._home.meta.exists():
            for folder in reversed(self.generations()):
                if (folder / _META).exists():
                    self.promote(folder)
                    return True
        return False

    def credential(self) -> Credential:
        """What this home's identity is. Raises: NotFound, FleetError."""
        try:
            data = self._home.meta.read_bytes()
        except FileNotFoundError:
            raise NotFound(f"there is no identity in {self._home.path}", hint="enrol: device-agent join CODE") from None
        except OSError as error:
            raise FleetError(f"{self._home.meta}: {error.strerror or error}") from error
        return decode_credential(data)

    def is_enrolled_as(self, device: DeviceId, url: str) -> bool:
        """Whether this home's identity is `device`, enrolled at `url`. Raises: FleetError."""
        try:
            credential = self.credential()
        except NotFound:
            return False
        return (credential.device, credential.enroll_url) == (device, url)

    def pending(self, device: DeviceId, url: str) -> Pending | None:
        """The key that `device` has asked `url` to certify, and has no answer to."""
        for folder in reversed(self.generations()):
            found = _read_request(folder)
            if found is not None and (found.device, found.url) == (device, url) and _is_unanswered(folder):
                return found
        return None

    def begin(self, device: DeviceId, url: str, key_pem: bytes) -> Pending:
        """A new generation with `key_pem`: when this returns, the key outlives a power cut. Raises: OSError."""
        self._remove_untold()
        numbers = [_number(folder) for folder in self.generations()]
        folder = self._home.generation(max(numbers, default=0) + 1)
        self._disk.make_folder(folder)
        write_new(self._disk, folder / _KEY, key_pem)
        request = {"v": 1, "id": str(device), "url": url}
        replace_file(self._disk, folder / _REQUEST, json.dumps(request).encode() + b"\n")
        self._disk.sync_folder(self._home.path)
        return Pending(folder, device, url)

    def complete(self, pending: Pending, certificates_pem: bytes, roots_pem: bytes, credential: Credential) -> None:
        """The verified answer to `pending` becomes the identity of this home. Raises: OSError."""
        replace_file(self._disk, self._home.trust, roots_pem)
        self.write_answer(pending, certificates_pem, credential)
        self.promote(pending.folder)
        for folder in self.generations():
            if _is_unanswered(folder):
                self.remove(folder)

    def write_answer(self, pending: Pending, certificates_pem: bytes, credential: Credential) -> None:
        """The generation of `pending` is whole, and not in use yet. Raises: OSError."""
        replace_file(self._disk, pending.folder / _CERTIFICATE, certificates_pem)
        replace_file(self._disk, pending.folder / _META, credential.encode())

    def promote(self, folder: Path) -> None:
        """Make it the one in use, at once or not at all. Raises: OSError."""
        fresh = self._home.current.with_name("current.new")
        if fresh.is_symlink():
            self._disk.remove(fresh)
        self._disk.link(folder.name, fresh)
        self._disk.rename(fresh, self._home.current)
        self._disk.sync_folder(self._home.path)

    def _remove_untold(self) -> None:
        """Folders whose key nobody was told of: a crash came before request.json. (An operator's has none either.)"""
        for folder in self.generations():
            if not (folder / _REQUEST).exists() and _is_unanswered(folder):
                self.remove(folder)

    def remove(self, folder: Path) -> None:
        """Remove a generation that is not in use: first the note that its key was told of. Raises: OSError.

        Half removed it is whole still, or one that nobody was told of; never one whose key would be used again.
        """
        for file in sorted(folder.iterdir(), key=lambda file: (file.name != _REQUEST, file.name != _META)):
            self._disk.remove(file)
            self._disk.sync_folder(folder)
        self._disk.remove_folder(folder)

    def generations(self) -> list[Path]:
        """Every generation's folder, the oldest first."""
        if not self._home.path.is_dir():
            return []
        return sorted((path for path in self._home.path.iterdir() if _number(path) > 0), key=_number)


def credential_or_none(store: Store) -> Credential | None:
    """For those who can do without, and those who look at what is wrong with it elsewhere."""
    try:
        return store.credential()
    except FleetError:
        return None


def _number(folder: Path) -> int:
    """N of gen-N; 0 for anything else."""
    digits = folder.name.removeprefix("gen-")
    return int(digits) if digits != folder.name and digits.isascii() and digits.isdigit() else 0


def _is_unanswered(folder: Path) -> bool:
    return not (folder / _META).exists()


def _read_request(folder: Path) -> Pending | None:
    try:
        fields: dict[str, Any] = decode_object((folder / _REQUEST).read_bytes())
        return Pending(folder, DeviceId(fields["id"]), str(fields["url"]))
    except (OSError, KeyError, TypeError, InvalidInput):
        return None


def check_private(path: Path) -> None:
    """Nobody but us can read or change what is at `path`. Raises: FleetError."""
    try:
        found = path.stat()
    except OSError as error:
        raise FleetError(f"{path}: {error.strerror or error}") from error
    if found.st_uid != os.geteuid():
        raise FleetError(f"{path} belongs to another user", hint=f"run this as its owner, or: chown {_me()} {path}")
    if found.st_mode & _OTHERS:
        mode = f"{stat.S_IMODE(found.st_mode):04o}"
        raise FleetError(
            f"{path} is open to others (mode {mode})", hint=f"chmod {'700' if path.is_dir() else '600'} {path}"
        )


def _me() -> str:
    return f"{os.geteuid()}:{os.getegid()}"


def _open_lock(home: AgentHome) -> int:
    """What to lock: a file, or, where none can be made because nothing can, the home itself. Raises: OSError."""
    file = home.path / "run" / "agent.lock"
    try:
        file.parent.mkdir(mode=0o700, exist_ok=True)
        return os.open(file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
    try:
        return os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return os.open(home.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


@contextlib.contextmanager
def only_one(home: AgentHome) -> Iterator[None]:
    """While this lasts no other agent runs on the home, nor joins. Raises: FleetError if one does, or nobody can."""
    try:
        file = _open_lock(home)
    except OSError as error:
        raise FleetError(
            f"{home.path} cannot be written: {error.strerror or error}", hint="see what befell the disk: dmesg, df -h"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        raise FleetError(
            f"another agent uses {home.path}", hint="stop it first, or name another home: --home DIR"
        ) from None
    try:
        yield
    finally:
        os.close(file)
