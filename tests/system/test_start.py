"""What the programs do before they are loaded."""

from __future__ import annotations

import sys
from importlib import metadata

import pytest

from tests.processes import Finished, run

PROGRAMS = {
    "enroll": ("enroll.entry", "typer"),
    "broker": ("broker.entry", "uvloop"),
    "device-agent": ("device_agent.entry", "device_agent.store"),
}
"""A program's entry, and something that it loads."""

INTERRUPTED = """
import os, signal, sys

class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name != {module!r}:
            return
        try:
            os.kill(os.getpid(), signal.SIGINT)
            [None for _ in range(2)]
        except KeyboardInterrupt:
            print("as it is forgotten within a callback", file=sys.stderr)

sys.meta_path.insert(0, Interrupts())
signal.signal(signal.SIGINT, signal.{handler})
sys.argv = [{program!r}, "--help"]
from {entry} import main
sys.exit(main())
"""


def interrupted(program: str, handler: str = "default_int_handler") -> Finished:
    """`program --help`, and Ctrl-C in the middle of an import."""
    entry, module = PROGRAMS[program]
    return run(sys.executable, "-c", INTERRUPTED.format(entry=entry, module=module, program=program, handler=handler))


@pytest.mark.parametrize("program", PROGRAMS)
def test_ctrl_c_while_a_program_is_loaded_ends_it_quietly(program: str) -> None:
    """Whoever mistyped would read a traceback, or wait for what they did not mean."""
    assert Finished(130, "", "") == interrupted(program)


def test_a_program_that_is_to_ignore_ctrl_c_does() -> None:
    """What a script puts into the background would end by a Ctrl-C that is not for it."""
    done = interrupted("enroll", "SIG_IGN").check()
    assert done.stdout.startswith("Usage: enroll")


@pytest.mark.parametrize("program", [*PROGRAMS, "firmware-stub"])
def test_each_program_says_its_version(program: str) -> None:
    """Nobody could say which release has a mistake."""
    assert f"{program} {metadata.version('mqtt-fleet')}\n" == run(program, "--version").check().stdout
    assert "--version" in run(program, "--help").check().stdout


@pytest.mark.parametrize("program", ["enroll", "broker"])
def test_the_version_behind_an_option_is_the_same(program: str) -> None:
    """`--version` would be an option in the help and an error when typed."""
    first, second = (run(program, *args, "--version").check() for args in ((), ("--home", "/nonexistent")))
    assert first == second
