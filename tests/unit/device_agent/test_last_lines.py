"""The lines that an agent remembers of its log."""

from __future__ import annotations

import logging

from hypothesis import given
from hypothesis import strategies as st

from device_agent.last_lines import LastLines


def said(lines: LastLines, *texts: str) -> LastLines:
    for text in texts:
        lines.handle(logging.LogRecord("agent", logging.INFO, "", 0, text, None, None))
    return lines


def shown(data: bytes) -> list[str]:
    """Without their times."""
    return [line.split(" ", 2)[2] for line in data.decode().splitlines()]


def test_the_last_lines_as_they_are_printed() -> None:
    """An admin sees the beginning of a log instead of its end, or not what is in the journal."""
    lines = said(LastLines(), "a", "b", "c")
    assert ["b", "c"] == shown(lines.tail(2, 10_000))
    assert ["a", "b", "c"] == shown(lines.tail(100, 10_000))
    assert lines.tail(1, 10_000).endswith(b" INFO c\n")
    assert lines.tail(3, 40).endswith(b" INFO c\n")
    assert 1 == len(shown(lines.tail(3, 40)))
    assert b"" == lines.tail(3, 5)


@given(st.lists(st.text(max_size=300), max_size=30), st.integers(40, 400), st.integers(1, 9))
def test_memory_is_bounded(texts: list[str], max_bytes: int, max_lines: int) -> None:
    """An agent that logs for a year runs out of memory."""
    lines = said(LastLines(max_bytes, max_lines), *texts)
    kept = lines.tail(10_000, 10**9)
    assert len(kept) <= max_bytes
    assert len(lines._lines) <= max_lines
    assert kept == b"".join(lines._lines)
