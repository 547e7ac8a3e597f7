"""The helper that the process tests stand on."""

import sys

import pytest

from tests.processes import Program, run

SLEEPER = "import signal, sys; print('ready on 42'); print('words', file=sys.stderr); signal.sigwait([signal.SIGUSR1])"


def test_a_line_is_waited_for_and_the_program_reaped() -> None:
    """A test would go on before the program is ready, or leave it running."""
    with Program(sys.executable, "-c", SLEEPER) as program:
        assert "42" == program.wait_for_line(r"ready on (\d+)").group(1)
        program.wait_for_line("words", stream="stderr")
    assert -15 == program.returncode


def test_a_program_that_ends_early_fails_the_wait_with_what_it_said() -> None:
    """A failed start would be seen only as a deadline, without its reason."""
    with (
        Program(sys.executable, "-c", "import sys; sys.exit('no such port')") as program,
        pytest.raises(AssertionError, match="no such port"),
    ):
        program.wait_for_line("ready")


def test_a_command_runs_to_its_end_with_its_input() -> None:
    """Both streams and the exit status are what a transcript compares."""
    done = run(sys.executable, "-c", "import sys; print(input()); sys.exit(3)", stdin="hello\n")
    assert (3, "hello\n", "") == (done.returncode, done.stdout, done.stderr)
