"""What is remembered of commands."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent.journal import (
    MAX_OUTPUT_BYTES,
    REMEMBERED,
    RESTARTED,
    Entry,
    Journal,
    Phase,
    decode_journal,
    lost,
)
from device_agent.requests import ReportResult, parse_request
from fleet.errors import InvalidInput
from fleet.messages import ResultState

UPLOAD = (
    b'{"id":"a","name":"agent.upload","ts":"2026-11-21T08:00:00Z","deadline":"2026-11-21T08:01:00Z",'
    b'"order":{"what":"listing","max_bytes":9},%b}\n'
)


def test_what_had_begun_has_failed_after_a_restart() -> None:
    """A command that was under way when the agent died would begin a second time, or never be answered."""
    journal = Journal().put(Entry("c1", "echo", Phase.OPEN)).put(Entry("c2", "echo", Phase.HELD))
    again = decode_journal(journal.encode())
    assert [("c1", ResultState.FAILED, RESTARTED), ("c2", ResultState.FAILED, RESTARTED)] == [
        (entry.id, entry.state, entry.error) for entry in again.entries
    ]


def test_a_final_result_outlives_a_restart() -> None:
    """The answer to a command would be lost with a power cut after it was given."""
    done = Entry("c1", "echo").finished(ResultState.DONE, {"said": "hi"})
    assert (done,) == decode_journal(Journal().put(done).encode()).entries


def test_the_last_256_commands_are_remembered() -> None:
    """A command that comes again would be executed again, or the memory would grow for ever."""
    journal = Journal()
    for number in range(REMEMBERED + 10):
        journal = journal.put(Entry(f"c{number}", "echo").finished(ResultState.DONE))
    assert REMEMBERED == len(journal.entries)
    assert journal.find("c9") is None
    assert journal.find("c10") is not None


def test_an_unfinished_command_is_not_forgotten() -> None:
    """A long command would be executed again after 256 short ones."""
    journal = Journal().put(Entry("long", "echo", Phase.OPEN))
    for number in range(REMEMBERED + 10):
        journal = journal.put(Entry(f"c{number}", "echo").finished(ResultState.DONE))
    assert journal.find("long") is not None


def test_outputs_are_bounded_together_and_what_the_broker_has_goes_first() -> None:
    """256 large outputs would take 16 MB of a small device."""
    journal, large = Journal(), "x" * (MAX_OUTPUT_BYTES // 4)
    for number in range(8):
        entry = Entry(f"c{number}", "echo").finished(ResultState.DONE, large)
        journal = journal.put(
            entry if number else Entry("c0", "echo", is_confirmed=True).finished(ResultState.DONE, large)
        )
    assert sum(entry.output_bytes for entry in journal.entries) <= MAX_OUTPUT_BYTES
    assert journal.entries[0].output is None
    assert journal.entries[-1].output == large


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}\n",
        b"[]\n",
        b'{"v":2}\n',
        b'{"v":1,"w":2}\n',
        b'{"v":1,"forgotten":5}\n',
        b'{"v":1}\n5\n',
        b'{"v":1}\n' + UPLOAD % b'"runs":0',
        b'{"v":1}\n' + UPLOAD % b'"runs":true',
        b'{"v":1}\n' + UPLOAD % b'"run":1',
        b'{"v":1}\n{"id":"c1"}\n',
        b'{"v":1}\n{"id":"#","name":"n"}\n',
        b'{"v":1}\n{"id":["c1"],"name":"n"}\n',
        b'{"v":1}\n{"id":"c1","name":"n","state":"running"}\n',
        b'{"v":1}\n{"id":"c1","name":"n"',
    ],
)
def test_a_damaged_file_is_told_from_an_empty_one(data: bytes) -> None:
    """A damaged file would end the agent with a traceback, or pass for a fresh start."""
    with pytest.raises(InvalidInput):
        decode_journal(data)


def test_an_output_as_deep_as_a_line_may_be_can_be_read_again() -> None:
    """An application could damage the memory of all commands with one deeply nested output."""
    line = b'{"type":"result","command_id":"c1","state":"done","output":' + b"[" * 31 + b"]" * 31 + b"}"
    request = parse_request(line)
    assert isinstance(request, ReportResult)
    done = Entry("c1", "echo").finished(request.state, request.output)
    assert (done,) == decode_journal(Journal().put(done).encode()).entries


def test_that_all_was_forgotten_outlives_restarts_until_it_is_dated() -> None:
    """The second start after a damage would take commands for new that the device has run."""
    now = datetime(2026, 11, 21, 8, tzinfo=UTC)
    again = decode_journal(lost().encode())
    assert again.is_lost
    assert again.may_have_forgotten(now + timedelta(days=9), now)
    assert decode_journal(again.put(Entry("c1", "echo").finished(ResultState.DONE)).encode()).is_lost
    dated = decode_journal(again.dated(now).encode())
    assert dated.dated(now + timedelta(days=1)) == dated
    assert dated.may_have_forgotten(now, now + timedelta(days=89))
    assert not dated.may_have_forgotten(now + timedelta(seconds=1), now)
    assert not dated.may_have_forgotten(now, now + timedelta(days=91))


_ENTRIES = st.builds(
    lambda number, state, output, error: Entry(f"c{number}", "echo").finished(state, output, error),
    st.integers(0, 99),
    st.sampled_from([ResultState.DONE, ResultState.FAILED, ResultState.EXPIRED]),
    st.none() | st.integers(-5, 5) | st.text(max_size=20),
    st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20),
)


@given(st.lists(_ENTRIES, max_size=20))
def test_encode_and_decode_are_inverse(entries: list[Entry]) -> None:
    """What a restart reads would not be what was written."""
    journal = Journal()
    for entry in entries:
        journal = journal.put(entry)
    assert journal == decode_journal(journal.encode())
