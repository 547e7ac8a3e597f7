"""Every command of README's "By hand", in its order, as a newcomer would type it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import pytest

from tests.deadlines import within
from tests.processes import Program, environment

_T = TypeVar("_T")
_README = Path(__file__).parents[2] / "README.md"

# What a command does other than end with 0: it is refused, as README says.
_REFUSED = {
    "enroll policy check": 4,
    "mosquitto_pub $PUMP_08 -q 1 -t devices/pump-07": 7,
    "mosquitto_sub $PUMP_08": 0,  # it prints that it was denied, and ends with 0
}
# Commands that go on for ever, and the line that shows that they work.
_ENDLESS = {
    "enroll tail": r"pump-07 .*telemetry",
    "mosquitto_sub $ADMIN": r"^devices/pump-08/up/telemetry/hand 21\.5",
}
_READY = {
    "enroll serve": r"^enroll: ready https://127\.0\.0\.1:(\d+)$",
    "broker serve": r"^broker: ready mqtts://127\.0\.0\.1:(\d+)$",
    "device-agent run": r"^device-agent: (ready) pump-07$",
    "firmware-stub": r"^firmware-stub: (ready)",
}


def _commands() -> Iterator[str]:
    """The commands of the shell blocks below "By hand", continued lines joined."""
    by_hand = _README.read_text().split("## By hand")[1]
    for block in re.findall(r"```sh\n(.*?)```", by_hand, re.DOTALL):
        yield from re.split(r"(?<![\\|])\n\s*", block.strip())


class _Terminal:
    """A shell that remembers what was exported, and which ports the servers took instead of README's."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.stack = folder, stack
        self.variables: dict[str, str] = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        self.ports = {"8443": "0", "8883": "0"}
        self.printed = ""

    def type(self, command: str) -> None:
        """Run one command as README has it. Raises: AssertionError if it does not do what README says."""
        for port, actual in self.ports.items():
            command = re.sub(rf"(?<=[: ]){port}\b", actual, command)
        if "fleet1_…" in command:
            code = re.search(r"fleet1_\w+", self.printed)
            assert code is not None, self.printed
            command = command.replace("fleet1_…", code[0])
        if command.endswith("&"):
            self._start(command.removesuffix("&"))
        elif pattern := _of(_ENDLESS, command):
            self._watch(command, pattern)
        else:
            self._run(command)

    def _start(self, command: str) -> None:
        pattern = _of(_READY, command)
        assert pattern is not None, command
        found = self._program(command).wait_for_line(pattern)[1]
        if command.startswith(("enroll", "broker")):
            self.ports["8443" if command.startswith("enroll") else "8883"] = found

    def _watch(self, command: str, pattern: str) -> None:
        shown = self._program(command)
        if "mosquitto_sub" in command:  # which sees nothing that was said before it came
            shown.wait_for_line("Received SUBACK|Subscribed", seconds=10)
            self._run("mosquitto_pub $PUMP_08 -q 1 -t devices/pump-08/up/telemetry/hand -m 21.5")
        shown.wait_for_line(pattern)

    def _program(self, command: str) -> Program:
        verbose = command + " -d" if command.startswith("mosquitto_sub") else command
        return self.stack.enter_context(Program("bash", "-c", f"exec {verbose}", env=self.variables, cwd=self.folder))

    def _run(self, command: str) -> None:
        done = subprocess.run(
            ["bash", "-c", f"set -a -o pipefail; {command}\nstatus=$?; env -0 > .variables; exit $status"],
            cwd=self.folder,
            env=environment(self.variables),
            capture_output=True,
            text=True,
            timeout=within(30),
        )
        expected = _of(_REFUSED, command)
        assert done.returncode == (0 if expected is None else expected), (command, done.stdout, done.stderr)
        pairs = (self.folder / ".variables").read_text().split("\0")
        self.variables |= dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        self.printed = done.stdout + done.stderr


def _of(table: dict[str, _T], command: str) -> _T | None:
    return next((value for start, value in table.items() if command.startswith(start)), None)


@pytest.mark.timeout(300)
def test_every_command_by_hand(tmp_path: Path) -> None:
    """README tells a newcomer to type what does not work."""
    with ExitStack() as stack:
        terminal = _Terminal(tmp_path, stack)
        typed = [command for command in _commands() if not command.startswith("pip install")]
        assert len(typed) > 20
        for command in typed:
            terminal.type(command)
    assert "BEGIN CERTIFICATE" in (tmp_path / "sensor-1.pem").read_text()
