"""What keeps a registry of a million devices quick: no statement that is run for one device reads the others."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import product
from pathlib import Path

import pytest
from sqlalchemy import Connection, event

from enroll import service
from enroll.registry import Registry, approvals, feed, identity, log, manufacturers, messaging, overview, state
from enroll.registry import tokens as token_rows
from enroll.registry.database import _sqlite_engine, _upgrade
from enroll.registry.overview import Filter
from enroll.registry.records import Approval, CommandRecord, CommandState, PrincipalRecord
from enroll.registry.reserve import reserve_of
from enroll.service import Asker, new_claim
from fleet import est
from fleet.identity import DeviceId, Principal, Role, Serial, State
from tests.fleets import NOW, Office, csr

PUMP = DeviceId("pump-07")
SCANS = re.compile(r"SCAN (?!CONSTANT|manufacturer_cas)|TEMP B-TREE|AUTOMATIC")


class Watched:
    """Every statement that a registry's connections are given, and SQLite's plan for it."""

    def __init__(self, office: Office) -> None:
        self._office = office
        self.statements: set[str] = set()

    def __enter__(self) -> Watched:
        self._office.registry.close()  # connections from here on are traced from their first statement
        event.listen(self._office.registry._engine, "connect", self._trace)
        return self

    def _trace(self, connection: object, _record: object) -> None:
        connection.set_trace_callback(self._note)  # type: ignore[attr-defined] # a driver's connection

    def _note(self, statement: str) -> None:
        if statement.split(" ", 1)[0] in ("SELECT", "UPDATE", "DELETE", "INSERT"):
            self.statements.add(statement)

    def __exit__(self, *_: object) -> None:
        event.remove(self._office.registry._engine, "connect", self._trace)
        self._office.registry.close()

    def plans(self) -> Iterator[tuple[str, list[str]]]:
        with self._office.registry.read() as transaction:
            for statement in sorted(self.statements):
                found = transaction.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement.replace('%', '%%')}")
                yield statement, [str(row[-1]) for row in found]


def scanning(watched: Watched) -> list[str]:
    """Statements that may read all of a table; to take its first rows, in the order they lie in, does not."""
    return [
        f"{statement}\n{' | '.join(plan)}"
        for statement, plan in watched.plans()
        if SCANS.search(" | ".join(plan)) and not _is_bounded(statement, " | ".join(plan))
    ]


def _is_bounded(statement: str, plan: str) -> bool:
    if statement.startswith("INSERT"):  # the children are looked at only while a deferred reference is broken: never
        return True
    if "SCAN" not in plan:  # what is sorted is one device's
        return bool(re.search(r"SEARCH \w+ USING INDEX \w+ \((principal|device)=\?", plan))
    return "LIMIT" in statement and "TEMP B-TREE" not in plan and "WHERE" not in statement


def filled(office: Office, count: int = 30) -> None:
    """Some of everything, so that the planner has tables to choose from."""
    for number in range(count):
        office.enrolled(f"pump-{number:02}", groups=("cellar",) if number % 3 == 0 else ())
    service.suspend(office.registry, DeviceId("pump-05"), by="test", now=office.now)
    with office.registry.write() as transaction:
        transaction.exec_driver_sql(
            "INSERT INTO presence (principal, online, reason, agent, changed_at, last_seen) "
            "SELECT id, id > 'pump-10', '', '1', 0, 0 FROM principals WHERE role = 'device'"
        )


def test_nothing_that_is_done_for_one_device_scans(office: Office) -> None:
    """Each enrolment, connection or revocation reads the whole fleet: seconds, and for a million devices minutes."""
    filled(office)
    with Watched(office) as watched:
        certificate = office.enrolled("pump-77", groups=("cellar",))
        office.reenrol(certificate, csr("pump-77"))
        office.get(est.CONFIG, certificate)
        token = office.invite("pump-77", replace=True, approval=Approval.MANUAL)
        request = office.enrol(token, csr("pump-77")).headers[est.REQUEST_HEADER]
        service.deny(office.registry, request, "no", by="test", now=office.now)
        service.revoke(office.registry, DeviceId("pump-77"), by="test", now=office.now)
        service.revoke_token(office.registry, token.id, by="test", now=office.now)
        list(service.revoke_enrolled(office.registry, token.id, by="test", now=office.now))
        service.tokens(office.registry, 5)
        with office.registry.read() as transaction:
            for look in LOOKS:
                look(transaction)
    assert [] == scanning(watched)
    assert len(watched.statements) > 60, "the statements were not seen"


LOOKS: tuple[Callable[[Connection], object], ...] = (
    lambda transaction: identity.find_principal(transaction, PUMP),
    lambda transaction: identity.find_certificate(transaction, Serial("ab")),
    lambda transaction: identity.certificates_of(transaction, PUMP),
    lambda transaction: feed.entry_of_serial(transaction, Serial("ab")),
    lambda transaction: feed.changes(transaction, 3, 10),
    lambda transaction: feed.page(transaction, PUMP),
    lambda transaction: token_rows.enrolled_by(transaction, "abc", b"", 10),
    lambda transaction: approvals.count_open_pairings(transaction, NOW, "192.0.2.1"),
    lambda transaction: manufacturers.find_claim(transaction, "pumps", "SN-1"),
    lambda transaction: manufacturers.claim_of_device(transaction, PUMP),
    lambda transaction: manufacturers.page_of_claims(transaction, "pumps", "SN-1", 10),
    lambda transaction: messaging.unfinished_commands(transaction, PUMP, NOW, 10),
    lambda transaction: messaging.due_commands(transaction, NOW, 10),
    lambda transaction: messaging.has_expired_commands(transaction, NOW),
    messaging.next_deadline,
    lambda transaction: state.find_states(transaction, (PUMP, DeviceId("pump-08"))),
    lambda transaction: state.due_states(transaction, 10),
    lambda transaction: state.came_or_went(transaction, PUMP, is_ready=True),
    lambda transaction: overview.summary(transaction, PUMP),
    lambda transaction: overview.newest_certificates(transaction, 10),
    lambda transaction: log.newest(transaction, 10),
)


def agenda_steps(office: Office) -> int:
    """How many instructions SQLite takes to find out what dispatch has to do."""
    steps = 0

    def step() -> int:
        nonlocal steps
        steps += 1
        return 0

    with office.registry.read() as transaction:
        driver = transaction.connection.driver_connection
        assert driver is not None
        driver.set_progress_handler(step, 1)
        messaging.due_commands(transaction, NOW, 200)
        messaging.has_expired_commands(transaction, NOW)
        messaging.next_deadline(transaction)
        driver.set_progress_handler(None, 1)
    return steps


def test_commands_for_who_is_away_are_not_looked_at(office: Office) -> None:
    """A million commands that wait make each word of a device cost dispatch seconds."""
    filled(office)
    with office.registry.write() as transaction:
        queue(transaction, DeviceId("pump-01"), 0, 2)
        queue(transaction, DeviceId("pump-20"), 10, 2)
    few = agenda_steps(office)
    with office.registry.write() as transaction:
        queue(transaction, DeviceId("pump-01"), 100, 2000)
    assert few == agenda_steps(office)


def queue(transaction: Connection, device: DeviceId, first: int, count: int) -> None:
    for number in range(first, first + count):
        command = CommandRecord(
            f"command-{number}", device, 1, "echo", "{}", CommandState.QUEUED, NOW, NOW + timedelta(days=1), NOW
        )
        messaging.add_command(transaction, command)


@pytest.mark.parametrize("state", [None, State.ACTIVE, State.SUSPENDED])
def test_a_page_of_any_filter_neither_scans_nor_sorts(office: Office, state: State | None) -> None:
    """`device list` of a hundred reads a million rows, or sorts them."""
    filled(office, 8)
    choices = product((None, Role.DEVICE, Role.BROKER), (None, "cellar"), (None, True, False), (None, "pump-0*3"))
    with Watched(office) as watched, office.registry.read() as transaction:
        for role, group, is_online, pattern in choices:
            for after in (None, PUMP):
                overview.page(transaction, Filter(role, state, group, is_online, pattern), after, 10)
    assert [] == scanning(watched)
    assert len(watched.statements) >= 70


def wanted_by_hand(office: Office, wanted: Filter) -> list[DeviceId]:
    """The naive oracle: look at everybody."""
    with office.registry.read() as transaction:
        everybody = overview.page(transaction, overview.EVERYBODY, None, 1000)
    return [each.record.id for each in everybody if _fits(each, wanted)]


def _fits(each: overview.Summary, wanted: Filter) -> bool:
    record = each.record
    return (
        wanted.role in (None, record.principal.role)
        and wanted.state in (None, record.state)
        and (wanted.group is None or wanted.group in record.groups)
        and (wanted.is_online is None or (each.presence is not None and each.presence.is_online is wanted.is_online))
        and (wanted.pattern is None or re.fullmatch(wanted.pattern.replace("*", ".*"), record.id) is not None)
    )


def test_a_page_has_those_who_are_wanted_in_order(office: Office) -> None:
    """A filter hides a device, or a page shows it twice."""
    filled(office)
    office.enrolled("pump_06")
    choices = product(
        (None, Role.DEVICE, Role.OPERATOR),
        (None, State.ACTIVE, State.SUSPENDED, State.REVOKED),
        (None, "cellar"),
        (None, True, False),
        (None, "pump-1*", "p*-*5", "pump_0*", "*"),
    )
    for choice in choices:
        wanted, found, last = Filter(*choice), list[DeviceId](), None
        while True:
            with office.registry.read() as transaction:
                page = overview.page(transaction, wanted, last, 4)
            found += [each.record.id for each in page]
            if len(page) < 4:
                break
            last = found[-1]
        assert wanted_by_hand(office, wanted) == found, wanted


def test_groups_are_found_after_they_changed(office: Office) -> None:
    """A device that left a group is still commanded with it."""
    office.enrolled("pump-07", groups=("cellar", "north"))
    office.enrolled("pump-07", replace=True, groups=("cellar", "south"))
    with office.registry.read() as transaction:
        found = {
            group: [each.record.id for each in overview.page(transaction, Filter(group=group), None, 9)]
            for group in ("cellar", "north", "south")
        }
    assert {"cellar": [PUMP], "north": [], "south": [PUMP]} == found


def test_a_follower_far_behind_reads_each_change_once(office: Office) -> None:
    """A broker that was away for a day makes the service read the same changes over and over, or misses one."""
    with office.registry.write() as transaction:
        for number in range(5):
            record = PrincipalRecord(Principal(Role.DEVICE, DeviceId(f"d{number}")), State.ACTIVE, 1, (), NOW)
            identity.add_principal(transaction, record)
        first = feed.head(transaction)
        for number in range(40):
            feed.announce(transaction, DeviceId(f"d{number % 5}"))
    seen, at = list[str](), first
    with office.registry.read() as transaction:
        while not (changes := feed.changes(transaction, at, 7)).is_all:
            assert changes.reached == at + 7
            at = changes.reached
            seen += [entry.principal.id for entry in changes.entries]
        seen += [entry.principal.id for entry in changes.entries]
        assert feed.head(transaction) == changes.reached
    assert {f"d{number}" for number in range(5)} == set(seen)
    assert ["d0", "d1", "d2", "d3", "d4"] == sorted(seen[-5:])


def test_pairings_do_not_scan_either(office: Office) -> None:
    """A flood of pairings makes every one of them dearer."""
    office.app.is_pairing = True
    with Watched(office) as watched:
        service.add_claims(office.registry, [new_claim("pumps", "SN-1", PUMP, NOW)], by="test", now=NOW)
        enrolment = office.app.enrolment
        enrolment.pair(est.parse_csr(csr("pump-08")), NOW, Asker("192.0.2.1", "192.0.2.1"))
    assert [] == scanning(watched)


def test_a_registry_of_an_older_release_is_brought_up_to_date(tmp_path: Path) -> None:
    """After an upgrade a group is empty, a token lets in from nowhere, or a command is never sent."""
    path = tmp_path / "registry.db"
    path.touch(mode=0o600)
    registry = Registry(_sqlite_engine(path), reserve_of(path))
    with registry.write() as transaction:
        _upgrade(transaction, "0002")
        transaction.exec_driver_sql("INSERT INTO principals VALUES ('a', 'device', 'active', 1, '[\"x\", \"y\"]', 0)")
        transaction.exec_driver_sql("INSERT INTO principals VALUES ('b', 'device', 'active', 1, '[]', 0)")
        transaction.exec_driver_sql(
            "INSERT INTO tokens VALUES ('t', x'00', 'a', NULL, 'device', '[]', 'client', 0, 1, 1, 0, 1, NULL)"
        )
        transaction.exec_driver_sql("INSERT INTO presence VALUES ('a', 1, '', '1', 0, 0), ('b', 0, '', '1', 0, 0)")
        for number, device in enumerate("abaab"):
            epoch, state = 1 - number // 3, "sent" if number == 2 else "queued"
            transaction.exec_driver_sql(
                "INSERT INTO commands VALUES (?, ?, ?, ?, 'echo', '{}', ?, 0, 9000000000000000, 0, NULL, '')",
                (number, f"c{number}", device, epoch, state),
            )
    registry.close()
    with Registry.open(path) as opened, opened.read() as transaction:
        members = [each.record.id for each in overview.page(transaction, Filter(group="x"), None, 9)]
        token = token_rows.find_token(transaction, "t")
        due = [command.id for command in messaging.due_commands(transaction, NOW, 10)]
        states = [state.value for _, state in messaging.states_of(transaction, [f"c{n}" for n in range(5)]).values()]
    assert ["a"] == members
    assert ["c0"] == due
    assert ["queued", "queued", "sent", "expired", "expired"] == states
    assert token is not None
    assert ((), Approval.AUTO) == (token.sources, token.approval)
