"""`./dev soak NAME`."""

from __future__ import annotations

import importlib

import pytest

from soak.__main__ import FAULTS, main


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_has_its_long_form(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What the documentation names cannot be run."""
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(FAULTS[name][0]).main(["--help"])
    assert 0 == ended.value.code
    assert f"usage: dev soak {name} " in capsys.readouterr().out


def test_a_name_that_is_none_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    """A typing error would put fifteen minutes of load on the machine."""
    assert 2 == main(["kill"])
    assert f"hint: one of {', '.join(FAULTS)}" in capsys.readouterr().err
