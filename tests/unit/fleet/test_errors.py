"""What went wrong, in words."""

from __future__ import annotations

import pytest

from fleet.errors import usage_report


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (
            "Invalid value for '--limit': Input should be greater than or equal to 1",
            "error: invalid value for '--limit': it should be greater than or equal to 1\nhint: enroll job --help",
        ),
        ("Missing argument 'ID'.", "error: missing argument 'ID'\nhint: enroll job --help"),
        ("No such option: --\x1b[2J", "error: no such option: --\\x1b[2J\nhint: enroll job --help"),
        ("Usage: enroll job ...", "Usage: enroll job ..."),
    ],
)
def test_what_libraries_say_of_a_command_line_reads_as_ours(found: str, said: str) -> None:
    """An admin reads the words of three libraries, or a terminal what somebody typed for it."""
    assert said == usage_report(found, "enroll job")
