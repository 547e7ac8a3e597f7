"""`device-agent doctor --bundle FILE`: what somebody far away needs to help, and no secret.

It is made from a list of what may leave the device, never from a list of what may not.
"""

from __future__ import annotations

import io
import json
import os
import platform
import ssl
import stat
import sys
import tarfile
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from device_agent.journal import Journal, decode_journal
from fleet.errors import FleetError, InvalidInput
from fleet.layout import AgentHome

_MAX_FILE_BYTES: Final = 262_144
_MAX_LISTED: Final = 1_000


def write_bundle(
    target: Path, home: AgentHome, public: Sequence[Path], facts: dict[str, Any], version: str, now: datetime
) -> None:
    """A tarball at `target`, which must be new: 0600, for it names places and people. Raises: FleetError."""
    try:
        file = os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise FleetError(f"{target} cannot be made: {error.strerror or error}", hint="name a new file") from error
    with os.fdopen(file, "wb") as stream, tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, data in _contents(home, public, facts, version):
            info = tarfile.TarInfo(f"device-agent/{name}")
            info.size, info.mode, info.mtime = len(data), 0o600, int(now.timestamp())
            tar.addfile(info, io.BytesIO(data))


def _contents(
    home: AgentHome, public: Sequence[Path], facts: dict[str, Any], version: str
) -> Iterator[tuple[str, bytes]]:
    for name, value in facts.items():
        yield f"{name}.json", _json(value)
    yield "machine.json", _json(_machine(version))
    yield "files.json", _json(list(_listing(home.path)))
    yield "commands.json", _json(list(_commands(home)))
    for path in public:
        try:
            with path.open("rb") as file:
                yield f"home/{path.relative_to(home.path)}", file.read(_MAX_FILE_BYTES)
        except OSError as error:
            yield f"home/{path.relative_to(home.path)}.missing", (error.strerror or str(error)).encode()


def _json(value: object) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"


def _machine(version: str) -> dict[str, str]:
    return {
        "agent": version,
        "python": sys.version,
        "openssl": ssl.OPENSSL_VERSION,
        "machine": platform.machine(),
        "system": platform.platform(),
    }


def _listing(folder: Path) -> Iterator[dict[str, object]]:
    """Names, sizes and modes."""
    for path in sorted(folder.rglob("*"))[:_MAX_LISTED]:
        found = path.lstat()
        yield {
            "path": str(path.relative_to(folder)),
            "mode": stat.filemode(found.st_mode),
            "bytes": found.st_size,
            "owner": found.st_uid,
            "changed": int(found.st_mtime),
        }


def _commands(home: AgentHome) -> Iterator[dict[str, object]]:
    """How each command went; what was asked and answered stays on the device."""
    try:
        journal = decode_journal((home.path / "commands.json").read_bytes())
    except (OSError, InvalidInput):
        journal = Journal()
    for entry in journal.entries:
        state = entry.state.value if entry.state else entry.phase.name.lower()
        yield {"id": entry.id, "name": entry.name, "state": state, "confirmed": entry.is_confirmed}
