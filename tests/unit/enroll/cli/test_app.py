"""`enroll.cli.app`: what is listed is what is loaded."""

from __future__ import annotations

import pytest

from enroll.cli.app import COMMANDS, NOUNS, load


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_listed_with_its_own_words(name: str) -> None:
    """`enroll --help` would say something else than `enroll NAME --help`."""
    assert COMMANDS[name] == load(name).get_short_help_str(limit=100)


@pytest.mark.parametrize("name", NOUNS)
def test_a_noun_has_its_verbs(name: str) -> None:
    """A noun would be listed whose file is called something else."""
    noun = load(name)
    assert NOUNS[name] == noun.get_short_help_str(limit=100)
    assert getattr(noun, "commands", {})
