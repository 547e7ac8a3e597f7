"""What `enroll` asks at a terminal."""

from __future__ import annotations

import os
import pty
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.deadlines import within
from tests.processes import command_line, environment


@dataclass
class Terminal:
    """A program whose terminal is ours."""

    descriptor: int
    shown: str = ""

    def wait_for(self, words: str) -> None:
        """Wait until `words` are shown; what was shown before them is forgotten."""
        until = time.monotonic() + within(20)
        while words not in self.shown:
            assert select.select([self.descriptor], [], [], max(0, until - time.monotonic()))[0], self.shown
            self.shown += self._read()
        self.shown = self.shown.partition(words)[2]

    def type(self, line: str) -> None:
        os.write(self.descriptor, f"{line}\n".encode())

    def rest(self) -> str:
        """All that is shown until the end."""
        while data := self._read():
            self.shown += data
        return self.shown.replace("\r", "").strip()

    def _read(self) -> str:
        try:
            return os.read(self.descriptor, 4096).decode()
        except OSError:  # how Linux says that the other side has closed
            return ""


@contextmanager
def at_terminal(*args: object) -> Iterator[Terminal]:
    """Run `enroll` at a terminal, and reap it."""
    line = command_line("enroll", *args)
    pid, descriptor = pty.fork()
    if not pid:
        os.execve(line[0], line, environment())
    try:
        yield Terminal(descriptor)
    finally:
        os.close(descriptor)  # hangs up
        os.waitpid(pid, 0)


def init(home: Path) -> tuple[object, ...]:
    return ("init", "--home", home, "--trust-domain", "acme.example", "--host", "localhost")


def test_the_passphrase_is_asked_for_twice_and_not_shown(tmp_path: Path) -> None:
    """A slip would lock the root away for ever, or a passer-by read it."""
    with at_terminal(*init(tmp_path / "fleet")) as terminal:
        for prompt in ("Passphrase of the root key: ", "Once more: "):
            terminal.wait_for(prompt)
            terminal.type("correct horse")
        shown = terminal.rest()
    assert "fleet        acme.example" in shown
    assert "correct horse" not in shown
    assert (tmp_path / "fleet" / "fleet.toml").exists()


@pytest.mark.parametrize(
    ("typed", "error"), [(["correct horse", "correct house"], "the two passphrases differ"), (["short"], "under 8")]
)
def test_a_passphrase_typed_wrongly_makes_nothing(tmp_path: Path, typed: list[str], error: str) -> None:
    """The root would be locked with what nobody knows."""
    with at_terminal(*init(tmp_path / "fleet")) as terminal:
        for prompt, word in zip(("Passphrase of the root key: ", "Once more: "), typed, strict=False):
            terminal.wait_for(prompt)
            terminal.type(word)
        assert error in terminal.rest()
    assert [] == list(tmp_path.iterdir())


def test_ctrl_c_at_the_prompt_makes_nothing(tmp_path: Path) -> None:
    """It would leave half a fleet, or a traceback."""
    with at_terminal(*init(tmp_path / "fleet")) as terminal:
        terminal.wait_for("Passphrase of the root key: ")
        os.write(terminal.descriptor, b"\x03")
        assert "Traceback" not in terminal.rest()
    assert [] == list(tmp_path.iterdir())
