"""What fuzzing found, and what it takes to reach all code that it reached: every kept input stays handled."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from tests.deadlines import within
from tests.fuzz import __main__, corpus
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("target", TARGETS)
def test_every_kept_input_is_handled(target: str) -> None:
    """What was found once is broken again."""
    inputs = corpus.load(target)
    assert inputs
    for data in inputs:
        try:
            TARGETS[target](data)
        except Exception as error:
            pytest.fail(f"{data.hex()}: {error!r}")


def test_every_target_is_fuzzed() -> None:
    """A target would be replayed and never searched."""
    assert tuple(TARGETS) == __main__.TARGETS


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris has no wheel for this machine")
def test_the_fuzzer_runs() -> None:
    """`./dev fuzz` would be found broken when it is needed."""
    command = (sys.executable, "-m", "tests.fuzz", "--seconds", "1", "join-code")
    ended = subprocess.run(command, capture_output=True, text=True, timeout=within(60))
    assert (0, True) == (ended.returncode, "fuzz: join-code #" in ended.stderr), ended.stderr
