"""What `device-agent status` shows to a person."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from device_agent.status import as_json, as_table
from fleet.messages import format_time

NOW = datetime(2026, 11, 21, 8, tzinfo=UTC)


def fields(**changes: Any) -> dict[str, Any]:
    return {
        "type": "status",
        "device": "pump-07",
        "state": "waiting",
        "words": "nothing answers at gateway.local:8883; trying again in 3 s",
        "hint": "is the server running?",
        "serial": "5f",
        "not_after": format_time(NOW + timedelta(days=90)),
    } | changes


def test_a_person_reads_who_what_and_what_to_do() -> None:
    """The reason of a failure would stay in a log."""
    assert """\
device       pump-07 (device)
state        waiting
             nothing answers at gateway.local:8883; trying again in 3 s
do           is the server running?
certificate  5f, valid until 2027-02-19 08:00 UTC (90 days left)""" == as_table(fields(), "device", NOW)


@pytest.mark.parametrize(
    ("left", "expected"),
    [
        (timedelta(hours=36), "36 hours left"),
        (timedelta(minutes=90), "90 minutes left"),
        (timedelta(seconds=30), "30 seconds left"),
        (timedelta(0), "EXPIRED on"),
    ],
)
def test_an_expiry_that_is_near_is_told_in_its_own_unit(left: timedelta, expected: str) -> None:
    """`0 days left` says nothing about the hour that is left."""
    assert expected in as_table(fields(not_after=format_time(NOW + left)), "device", NOW)


def test_what_applications_call_themselves_cannot_drive_the_terminal() -> None:
    """A firmware's name would rewrite what the admin reads."""
    shown = as_table(fields(applications=[{"app": "\x1b[2J", "commands": []}]), "device", NOW)
    assert "\x1b" not in shown


def test_programs_get_every_field_but_the_lines_type() -> None:
    """A script would parse words."""
    assert '"state": "waiting"' in as_json(fields())
    assert '"type"' not in as_json(fields())


@pytest.mark.parametrize(
    ("spool", "code"),
    [({"error": "database or disk is full"}, "spool-failed"), ({"problem": "file is not a database"}, "spool-damaged")],
)
def test_a_disk_that_fails_is_told_with_its_code(spool: dict[str, str], code: str) -> None:
    """A device would look well until the next power cut."""
    shown = as_table(fields(spool=spool), "device", NOW)
    assert [code] == [code for line in shown.splitlines() if line.startswith("spool") and f"[{code}]" in line]
    assert "spool" not in as_table(fields(spool={"error": "", "problem": ""}), "device", NOW)
