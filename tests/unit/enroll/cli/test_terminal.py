"""What only a terminal shows: QR codes and progress bars."""

from __future__ import annotations

import io

import pytest
import segno

from enroll.cli.progress import progress
from enroll.cli.qr import qr_text

CODE = "fleet1_" + "abcdefgh234567" * 10
HALVES = {"█": (0, 0), "▀": (0, 1), "▄": (1, 0), " ": (1, 1)}


def expected() -> list[list[int]]:
    return [list(row) for row in segno.make_qr(CODE, error="m").matrix]


def trimmed(modules: list[list[int]], size: int) -> list[list[int]]:
    """Without the margin, all of which must be bright."""
    inside = [row[4 : 4 + size] for row in modules[4 : 4 + size]]
    assert sum(map(sum, modules)) == sum(map(sum, inside))
    assert all(len(row) == size + 8 for row in modules)
    assert len(modules) in (size + 8, size + 9)
    return inside


def test_half_blocks_show_every_module_within_a_bright_margin() -> None:
    """A phone cannot read the code."""
    modules = []
    for line in qr_text(CODE, "utf-8").split("\n"):
        pairs = [HALVES[character] for character in line]
        modules += [[above for above, _ in pairs], [below for _, below in pairs]]
    assert expected() == trimmed(modules, len(expected()))


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", None, "no such encoding"])
def test_where_half_blocks_cannot_be_printed_the_code_is_plain(encoding: str | None) -> None:
    """An old terminal gets a traceback, or question marks."""
    text = qr_text(CODE, encoding)
    assert text.isascii()
    modules = [[0 if line[at] == "#" else 1 for at in range(0, len(line), 2)] for line in text.split("\n")]
    assert expected() == trimmed(modules, len(expected()))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_a_bar_that_ends_its_line() -> None:
    """An admin does not know whether to wait, or the next line is written over the bar."""
    terminal = Terminal()
    with progress("tokens", 3, terminal) as bar:
        bar.advance(1)
        bar.advance(2)
    assert "\rtokens [##########" in terminal.getvalue()
    assert terminal.getvalue().endswith("] 3/3\n")


def test_a_bar_of_many_steps_is_drawn_once_a_percent() -> None:
    """Drawing takes longer than the work."""
    terminal = Terminal()
    with progress("tokens", 100_000, terminal) as bar:
        for _ in range(100_000):
            bar.advance(1)
    assert 101 == terminal.getvalue().count("\r")


def test_a_program_sees_no_bar() -> None:
    """A log is full of half lines."""
    stream = io.StringIO()
    with progress("tokens", 3, stream) as bar:
        bar.advance(3)
    assert "" == stream.getvalue()


def test_a_line_of_data_does_not_stand_behind_the_bar() -> None:
    """On a terminal, file names and the bar are one mess."""
    terminal = Terminal()
    with progress("tokens", 2, terminal) as bar:
        bar.hide()
        terminal.write("pump-1\n")
        bar.advance(1)
    shown = [part.rpartition("\r\x1b[2K")[2] for part in terminal.getvalue().split("\n")]
    assert "pump-1" == shown[0]
    assert shown[1].startswith("\rtokens [")
