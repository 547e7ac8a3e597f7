"""The message for an optional package that is not installed."""

import pytest

from fleet.extras import explain_missing


def test_a_missing_package_is_named_with_the_command_that_installs_it() -> None:
    """Someone who installed only what a device needs would get a traceback from an admin's command."""
    error = ModuleNotFoundError("No module named 'sqlalchemy.orm'", name="sqlalchemy.orm")
    expected = (
        "error: enroll needs the Python package sqlalchemy, not installed here\nhint: pip install 'mqtt-fleet[enroll]'"
    )
    assert expected == explain_missing(error, program="enroll", extra="enroll")


@pytest.mark.parametrize("name", ["enroll.cli", "fleet", None])
def test_a_missing_module_of_ours_is_not_explained_away(name: str | None) -> None:
    """Our own mistake would be shown as the user's."""
    assert explain_missing(ModuleNotFoundError(name=name), program="enroll", extra="enroll") is None
