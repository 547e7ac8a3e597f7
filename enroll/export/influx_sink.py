"""Telemetry as InfluxDB line protocol, appended to a file or written to stdout.

At least once; a point written twice is one point to InfluxDB (`line_protocol.timestamp`). A line is whole or not there:
what a crash cut off is removed at the next start. A file that was moved away is made anew (logrotate without a signal).
"""

from __future__ import annotations

import os
import re
import select
import stat
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from enroll.export.line_protocol import flatten, is_timestamp, line, timestamp
from enroll.export.readings import Reading
from enroll.export.sink import SinkBusy, Written, claim, is_in_place, reason, sync_folder
from fleet.errors import FleetError, InvalidInput

_LOOK_MILLISECONDS: Final = 200
_PIPE_BUF: Final = select.PIPE_BUF
_CHUNK: Final = 65_536
_BEGINNING: Final = re.compile(rb"[A-Za-z0-9_.-]{1,64},device=[a-z0-9_-]{1,64} ")


def encode(reading: Reading) -> str:
    """The line of one message, or nothing if it holds no value that InfluxDB knows."""
    if reading.payload is not None:
        return ""
    fields, _ = flatten(reading.data)
    if not fields:
        return ""
    return line(reading.stream, {"device": str(reading.device)}, fields, _time(reading))


def _time(reading: Reading) -> int:
    """The sender's time if InfluxDB can keep that, or when it came."""
    if reading.envelope is not None:
        found = timestamp(reading.envelope.sent_at, reading.envelope.seq)
        if is_timestamp(found):
            return found
    return timestamp(reading.received_at, 0)


def _encode_all(readings: Sequence[Reading]) -> tuple[bytes, Written]:
    lines = [found for found in map(encode, readings) if found]
    data = "".join(f"{each}\n" for each in lines).encode()
    return data, Written(len(lines), left_out=len(readings) - len(lines))


class InfluxFile:
    """Lines at the end of a file."""

    def __init__(self, path: Path) -> None:
        """Raises: FleetError if it cannot be written, or another export has it."""
        self._path = path
        try:
            self._descriptor = _opened(path)
        except OSError as error:
            raise FleetError(f"{path} cannot be written: {reason(error)}", hint="name another file") from error

    def write(self, readings: Sequence[Reading]) -> Written:
        """Append and fsync; of a batch that does not fit nothing stays. Raises: SinkBusy."""
        data, written = _encode_all(readings)
        try:
            if not is_in_place(self._descriptor, self._path):
                opened = _opened(self._path)
                self.close()
                self._descriptor = opened
            self._append(data)
        except OSError as error:
            raise SinkBusy(f"{self._path} cannot be written: {reason(error)}") from error
        return written

    def _append(self, data: bytes) -> None:
        end = os.fstat(self._descriptor).st_size
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._descriptor, view) :]
            os.fdatasync(self._descriptor)
        except OSError:
            os.ftruncate(self._descriptor, end)
            raise

    def tend(self) -> None:
        """Nothing is ever due."""

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)


class InfluxStdout:
    """Lines on stdout, for a program that reads them (`influx write`, telegraf). They are out, not on a disk."""

    def __init__(self, should_stop: Callable[[], bool]) -> None:
        self._should_stop = should_stop
        self._descriptor = sys.stdout.fileno()
        self._poll = select.poll()
        self._poll.register(self._descriptor, select.POLLOUT)

    def write(self, readings: Sequence[Reading]) -> Written:
        """Write as fast as it is read. Raises: SinkBusy if we are to stop meanwhile, BrokenPipeError."""
        data, written = _encode_all(readings)
        at, is_within_line = 0, False
        while at < len(data):
            if self._should_stop() and not is_within_line:
                raise SinkBusy("nobody reads what is on stdout")
            if self._has_room():
                end = data.rfind(b"\n", at, at + _PIPE_BUF) + 1
                is_within_line = not end
                at += os.write(self._descriptor, data[at : end or at + _PIPE_BUF])
        return written

    def _has_room(self) -> bool:
        """Whether so much goes without waiting: while we wait here a signal is heard, and a line is not cut."""
        return bool(self._poll.poll(_LOOK_MILLISECONDS))

    def tend(self) -> None:
        """Nothing is ever due."""

    def close(self) -> None:
        """Nothing is kept."""


def _opened(path: Path) -> int:
    """The file, made if it is not there, kept from other exports, ending with a whole line. Raises: OSError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode) or not _is_ours(os.pread(descriptor, 256, 0)):
            raise InvalidInput(f"{path} is not a file that an export made", hint="name another file, or - for stdout")
        claim(descriptor, path)
        _cut_to_whole_lines(descriptor)
        sync_folder(path.parent)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _is_ours(beginning: bytes) -> bool:
    """Whether a file is empty or begins as our lines do: any other is not cut."""
    return not beginning or _BEGINNING.match(beginning) is not None


def _cut_to_whole_lines(descriptor: int) -> None:
    """Remove what follows the last line break."""
    end = os.fstat(descriptor).st_size
    at = end
    while at > 0:
        start = max(0, at - _CHUNK)
        found = os.pread(descriptor, at - start, start).rfind(b"\n")
        if found >= 0:
            at = start + found + 1
            break
        at = start
    if at < end:
        os.ftruncate(descriptor, at)
