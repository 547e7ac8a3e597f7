"""Commands in the registry, from the admin who gives them to the device's last word; no network."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enroll import commands, service
from enroll.bookkeeping import Books
from enroll.registry import Registry, feed, identity, messaging
from enroll.registry.records import CommandRecord, CommandState, PrincipalRecord
from enroll.reports import HelloSeen, Report, ResultSeen, StatusSeen
from enroll.service import issuance
from fleet.errors import Denied, InvalidInput, NotFound
from fleet.identity import DeviceId, Principal, Role, State
from fleet.messages import Envelope, InvalidMessage, Presence, ResultMessage, ResultState, StatusMessage

NOW = datetime(2026, 11, 21, 8, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
PUMP, VALVE, ANNA = DeviceId("pump-07"), DeviceId("valve-1"), DeviceId("anna")
_SEEDS = count()


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    """A registry with two devices and an operator."""
    with Registry.open(tmp_path / "registry.db") as opened:
        with opened.write() as transaction:
            feed.set_feed(transaction, "feed")
            for role, id_ in ((Role.DEVICE, PUMP), (Role.DEVICE, VALVE), (Role.OPERATOR, ANNA)):
                record = PrincipalRecord(Principal(role, id_), State.ACTIVE, 1, (), NOW)
                identity.add_principal(transaction, record)
        yield opened


GIVER = commands.Giver("test", NOW, lambda size: next(_SEEDS).to_bytes(size, "big"))


def give(registry: Registry, device: DeviceId = PUMP, deadline: datetime = NOW + MINUTE) -> str:
    return commands.send(registry, device, commands.Order("echo", {"a": 1}, deadline), GIVER).id


def envelope(device: DeviceId) -> Envelope:
    return Envelope(device, NOW, "boot", 1)


def status(device: DeviceId, presence: Presence = Presence.ONLINE, *, is_retained: bool = False) -> Report:
    return StatusSeen(device, StatusMessage(envelope(device), presence), is_retained)


def result(device: DeviceId, command: str, state: ResultState, output: object = None) -> Report:
    return ResultSeen(device, command, ResultMessage(envelope(device), state, output))


def due(registry: Registry, now: datetime = NOW) -> list[str]:
    return [command.id for command in Books(registry).agenda(now).due]


def state(registry: Registry, id: str) -> CommandState:
    return commands.find(registry, id).state


def test_only_an_active_device_is_given_commands(registry: Registry) -> None:
    """A command would wait for someone who can never take it."""
    with pytest.raises(NotFound):
        give(registry, DeviceId("nobody"))
    with pytest.raises(InvalidInput, match="of role operator"):
        give(registry, ANNA)
    service.suspend(registry, PUMP, by="test", now=NOW)
    with pytest.raises(Denied):
        give(registry, PUMP)


def test_arguments_that_no_message_can_carry_are_refused(registry: Registry) -> None:
    """A command would be queued that can never be sent, and hold up those behind it."""
    with pytest.raises(InvalidMessage):
        commands.send(registry, PUMP, commands.Order("echo", {"a": "x" * 70_000}, NOW), GIVER)


def test_what_is_due_is_of_devices_that_are_online_in_the_order_given(registry: Registry) -> None:
    """Commands would overtake each other, or be thrown at a device that is not there."""
    books, given = Books(registry), [give(registry) for _ in range(3)]
    give(registry, VALVE)
    assert [] == due(registry)
    books.enter([status(PUMP)], [], NOW)
    assert given == due(registry)
    books.enter([], given[:1], NOW)
    assert given[1:] == due(registry)
    given.append(give(registry))
    assert given[1:] == due(registry)
    books.enter([status(PUMP, Presence.OFFLINE)], [], NOW)
    assert [] == due(registry)


def test_hello_asks_for_all_that_is_unfinished(registry: Registry) -> None:
    """What a device lost with its memory would never be done."""
    books, (done, begun, queued) = Books(registry), [give(registry) for _ in range(3)]
    books.enter([result(PUMP, done, ResultState.DONE), result(PUMP, begun, ResultState.RUNNING)], [], NOW)
    again = books.enter([HelloSeen(PUMP, ""), HelloSeen(PUMP, "")], [], NOW)
    assert [begun, queued] == [command.id for command in again]
    assert [] == books.enter([HelloSeen(PUMP, "")], [], NOW + 2 * MINUTE)


def test_a_deadline_ends_what_nobody_took_and_nothing_else(registry: Registry) -> None:
    """A long-running command would be reported as never begun."""
    books, (queued, sent, begun) = Books(registry), [give(registry) for _ in range(3)]
    books.enter([result(PUMP, begun, ResultState.ACCEPTED)], [sent], NOW)
    assert NOW + MINUTE == books.agenda(NOW).next_deadline
    found = commands.find_all(registry, (queued, sent, begun))
    assert found == [each.at(NOW + MINUTE - timedelta.resolution) for each in found]
    unwritten = [each.at(NOW + MINUTE).state for each in found]  # as an admin sees it who looks before dispatch does
    assert books.agenda(NOW + MINUTE).next_deadline is None
    assert [CommandState.EXPIRED, CommandState.EXPIRED, CommandState.ACCEPTED] == unwritten
    assert unwritten == [state(registry, id_) for id_ in (queued, sent, begun)]


def test_who_takes_over_an_id_inherits_no_commands(registry: Registry) -> None:
    """A replaced device would be told what was meant for its predecessor."""
    given, books = give(registry), Books(registry)
    with registry.write() as transaction:
        successor = PrincipalRecord(Principal(Role.DEVICE, PUMP), State.ACTIVE, 2, (), NOW)
        issuance.store(transaction, successor, NOW)
    assert [] == books.enter([status(PUMP), HelloSeen(PUMP, "")], [], NOW)
    assert [] == due(registry)
    assert CommandState.EXPIRED is state(registry, given)


def test_a_device_that_is_revoked_ends_its_commands(registry: Registry) -> None:
    """An admin waits for what can never be done."""
    queued, sent, of_another = give(registry), give(registry), give(registry, VALVE)
    Books(registry).enter([status(PUMP), status(VALVE)], [sent], NOW)
    service.revoke(registry, PUMP, by="test", now=NOW)
    assert [of_another] == due(registry)
    assert {CommandState.EXPIRED} == {state(registry, id_) for id_ in (queued, sent)}


def test_one_report_that_cannot_be_recorded_spoils_no_other(registry: Registry) -> None:
    """Everything that came in the same moment would be lost, or come again for ever."""
    given, books = give(registry), Books(registry)
    too_large = result(PUMP, given, ResultState.DONE, "x" * 70_000)
    reports = [status(PUMP), too_large, result(VALVE, given, ResultState.DONE), HelloSeen(DeviceId("nobody"), "")]
    books.enter([*reports, status(VALVE)], [given], NOW)
    with registry.read() as transaction:
        assert messaging.find_presence(transaction, PUMP)
        assert messaging.find_presence(transaction, VALVE)
    assert CommandState.SENT is state(registry, given)


def test_an_agenda_without_work_commits_nothing(registry: Registry) -> None:
    """Each commit wakes every watcher, dispatch too: it would turn for ever."""
    mark = registry.commit_mark()
    try:
        Books(registry).agenda(NOW)
        assert not mark.has_moved()
    finally:
        mark.close()


@given(st.lists(st.sampled_from(ResultState)))
def test_a_command_only_goes_forward(reports: list[ResultState]) -> None:
    """A late or repeated report would open again what is finished."""
    now, finals = CommandState.QUEUED, []
    for report in reports:
        if now.may_become(report):
            assert list(CommandState).index(now) < list(CommandState).index(CommandState(report)) or (
                now is CommandState.EXPIRED and report in (ResultState.DONE, ResultState.FAILED)
            )
            now = CommandState(report)
            finals += [now] if now.is_final else []
    assert len([final for final in finals if final is not CommandState.EXPIRED]) <= 1


def test_the_outcome_of_a_command_given_up_still_counts() -> None:
    """An answer that was only late would be lost."""
    assert CommandState.EXPIRED.may_become(ResultState.DONE)
    assert not CommandState.EXPIRED.may_become(ResultState.ACCEPTED)
    assert not CommandState.DONE.may_become(ResultState.FAILED)


def test_a_commands_record_keeps_any_output(registry: Registry) -> None:
    """An output that is no object would be lost or changed."""
    for output in (None, 0, "a\u2028b", [1, {"b": None}], {"a": 1.5}):
        given = give(registry)
        Books(registry).enter([result(PUMP, given, ResultState.DONE, output)], [], NOW)
        found: CommandRecord = commands.find(registry, given)
        assert messaging.encode_output(output) == found.output
