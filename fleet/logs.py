"""One line an event, alike in every program: `2026-11-21T08:00:00.000Z INFO certificate.issued device=pump-07`.

Values come from peers: they are escaped, and quoted where they hold blanks, so that nobody can forge a line or a field.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

from fleet.errors import printable
from fleet.messages import format_time


def event(name: str, /, **fields: object) -> str:
    """The event's name and its fields; a field that is None or empty is left out."""
    shown = (f"{key}={_value(str(value))}" for key, value in fields.items() if value is not None and value != "")
    return " ".join((name, *shown))


def _value(text: str) -> str:
    escaped = printable(text)
    return json.dumps(escaped, ensure_ascii=False) if " " in escaped or '"' in escaped else escaped


class LineFormatter(logging.Formatter):
    """Time in UTC, level, message. A traceback, our own mistake, follows on lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        moment = format_time(datetime.fromtimestamp(record.created, UTC))
        line = f"{moment} {record.levelname} {record.getMessage()}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def log_to(handler: logging.Handler, level: int = logging.INFO) -> None:
    """Send every event of this program to `handler`, and to no other."""
    handler.setFormatter(LineFormatter())
    # What no line of ours holds is not looked up for each ("Optimization" in Python's logging how-to).
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.basicConfig(level=level, handlers=[handler], force=True)
