"""A program that strace kills before any of its system calls on a home, and what a power cut leaves of its files."""

from __future__ import annotations

import os
import random
import re
import signal
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.processes import Program, command_line

# All that changes a file, its name or its folder, and what opens and closes it.
CALLS: Final = (
    "openat,close,write,pwrite64,fsync,fdatasync,ftruncate,fallocate,flock,chmod,fchmod,fchmodat,"
    "rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,symlink,symlinkat,link,linkat"
)
SECTOR_BYTES: Final = 512
_CALL: Final = re.compile(r"^(\d+) +(\w+)\((.*)$")
_WRITTEN: Final = re.compile(r"^\d+<(.+?)>, .*, (\d+), (\d+)\) += (\d+)")
_APPENDED: Final = re.compile(r"^\d+<(.+?)>, .*\) += (\d+)")
_NAMED: Final = re.compile(r'"([^"]+)"|\d+<([^<>]+)>')


@dataclass(frozen=True, slots=True)
class Point:
    """Before the system call of that name for the `number`-th time: strace counts each name for itself."""

    name: str
    number: int

    @property
    def kill(self) -> str:
        """What strace is told."""
        return f"{self.name}:signal=KILL:when={self.number}"


@dataclass(frozen=True, slots=True)
class Call:
    """One system call of a traced program, as strace wrote it."""

    name: str
    text: str
    thread: int = 0


def calls_of(log: Path) -> list[Call]:
    """What was traced, in its order."""
    found = (_CALL.match(line) for line in log.read_text(errors="replace").splitlines())
    return [Call(match[2], match[3], int(match[1])) for match in found if match]


def paths_below(folder: Path, calls: Iterable[Call]) -> list[Path]:
    """Every file below `folder` that is named, and `folder`."""
    named = {one or other for call in calls for one, other in _NAMED.findall(call.text)}
    return sorted({folder, *(Path(name) for name in named if name.startswith(f"{folder}/"))})


def points_of(log: Path, paths: Iterable[Path]) -> list[Point]:
    """Every call in the log that touched one of `paths`, in the order in which they came."""
    names, counts, points = {str(path) for path in paths}, Counter[str](), []
    for call in calls_of(log):
        if names & {one or other for one, other in _NAMED.findall(call.text)}:
            counts[call.name] += 1
            points.append(Point(call.name, counts[call.name]))
    return points


class Traced(Program):
    """One of our programs under strace: its calls on `paths` are logged, and what `inject` says befalls them."""

    def __init__(
        self, log: Path, paths: Sequence[Path], inject: str, program: str, *args: object, trace: str = CALLS
    ) -> None:
        filters = [word for path in paths for word in ("-P", path)]
        faults = [f"--inject={inject}"] if inject else []
        options = ["-f", "-qq", "-y", "-o", log, f"--trace={trace}", *faults, *filters]
        super().__init__("strace", *options, *command_line(program, *args))

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the program: strace keeps it to itself, or would let go of what is to be cut."""
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split():
                os.kill(int(pid), number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def was_cut(self) -> bool:
        """Its end is waited for: whether its power went."""
        return self.wait() == -signal.SIGKILL


def lose_unsynced(log: Path, files: Sequence[Path], chance: random.Random) -> int:
    """Of each file, damage what was written and never synced, sector by sector; how many sectors.

    A disk may have written each of them or not, in any order: each keeps its bytes, or has zeros, or noise.
    """
    unsynced: dict[str, list[tuple[int, int]]] = {}
    for call in calls_of(log):
        if call.name in ("fsync", "fdatasync") and (match := re.match(r"\d+<(.+?)>", call.text)):
            unsynced.pop(match[1], None)
        elif call.name == "pwrite64" and (match := _WRITTEN.match(call.text)):
            unsynced.setdefault(match[1], []).append((int(match[3]), int(match[4])))
        elif call.name == "write" and (match := _APPENDED.match(call.text)):  # ours are written in one go
            unsynced.setdefault(match[1], []).append((0, int(match[2])))
    return sum(_damage(file, unsynced.get(str(file), []), chance) for file in files if file.is_file())


def _damage(file: Path, written: Iterable[tuple[int, int]], chance: random.Random) -> int:
    data, damaged = bytearray(file.read_bytes()), 0
    for offset, size in written:
        for start in range(offset, offset + size, SECTOR_BYTES):
            end = min(start + SECTOR_BYTES, offset + size)
            match chance.randrange(3):
                case 0:
                    data[start:end] = bytes(end - start)
                case 1:
                    data[start:end] = chance.randbytes(end - start)
                case _:
                    continue
            damaged += 1
    file.write_bytes(data)
    return damaged
