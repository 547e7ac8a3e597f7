"""The last lines that this agent logged, kept in memory for whoever asks: what it prints, and nothing else."""

from __future__ import annotations

import logging
from collections import deque

from fleet.logs import LineFormatter
from fleet.uploads import MAX_LINES, MAX_LOG_BYTES


class LastLines(logging.Handler):
    """Bounded in bytes and lines. A handler is guarded by its own lock."""

    def __init__(self, max_bytes: int = MAX_LOG_BYTES, max_lines: int = MAX_LINES) -> None:
        super().__init__()
        self.setFormatter(LineFormatter())
        self._max_bytes = max_bytes
        self._max_lines = max_lines
        self._lines: deque[bytes] = deque()
        self._size = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one more, and let go of the oldest; one that is longer than all may be is cut."""
        line = self.format(record).encode("utf-8", "backslashreplace")[: self._max_bytes - 1] + b"\n"
        self._lines.append(line)
        self._size += len(line)
        while self._size > self._max_bytes or len(self._lines) > self._max_lines:
            self._size -= len(self._lines.popleft())

    def tail(self, count: int, max_bytes: int) -> bytes:
        """The last lines, at most so many, and of no more bytes than that."""
        self.acquire()
        try:
            lines = list(self._lines)[-count:]
        finally:
            self.release()
        kept, size = [], 0
        for line in reversed(lines):
            size += len(line)
            if size > max_bytes:
                break
            kept.append(line)
        return b"".join(reversed(kept))
