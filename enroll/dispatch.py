"""The fleet's own MQTT client: what devices say goes into the registry, what is due goes out to them.

One thread does all of it, turn by turn: serve the network, sift what arrived, commit it in one transaction,
acknowledge, publish what is due, signed. A message is acknowledged once the registry has it, so whatever ends in
between comes again; a command is `sent` once the broker has acknowledged it.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from enroll import roll
from enroll.attendance import Attendance
from enroll.backoff import Backoff
from enroll.bookkeeping import Books
from enroll.downlink import CannotSign, DownlinkSigner
from enroll.files import stamp
from enroll.greetings import Greetings
from enroll.jobs import Jobs
from enroll.mqtt_client import Connection, Incoming, Login, endpoints
from enroll.rate_limit import Sparsely
from enroll.registry import Registry
from enroll.registry.commits import CommitMark
from enroll.registry.records import CommandRecord
from enroll.reports import Report
from enroll.roll import Roll
from enroll.rollout import Earshot
from enroll.sifting import sift
from enroll.state_desk import StateBooks, StateTraffic
from fleet import messages, topics
from fleet.clock import FlooredClock
from fleet.config import DEFAULT_PRESENCE_GRACE
from fleet.errors import FleetError, NotFound
from fleet.identity import DISPATCH, Server
from fleet.layout import AdminHome, decode_run_file
from fleet.logs import event

# Telemetry and events pass it by: they are for others, and many.
SUBSCRIPTIONS: Final = tuple(f"devices/+/up/{each}" for each in ("status", "hello", "results/+", "state", "commands"))
TURN_SECONDS: Final = 0.03
"""How soon a foreign commit is noticed; DESIGN section 9 allows 100 ms."""
_COMPLAIN_SECONDS: Final = 600.0  # how often a signing key that cannot be used is in the log
_LOOK_SECONDS: Final = 0.1  # how often a waiting dispatch looks whether the broker has come (back)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ports:
    """The world as dispatch may see it: time of day in UTC, seconds that never jump, jitter.

    `floored` is the same time of day for whoever has to know how it is known.
    """

    clock: Callable[[], datetime]
    monotonic: Callable[[], float]
    random: random.Random
    floored: FlooredClock | None = None


class Dispatch:
    """Runs until `stop` is set. Without a broker in reach it tries again; the registry keeps what is due."""

    def __init__(
        self,
        home: AdminHome,
        registry: Registry,
        ports: Ports,
        stop: threading.Event,
        presence_grace: timedelta = DEFAULT_PRESENCE_GRACE,
    ) -> None:
        self._home = home
        self._registry = registry
        self._ports = ports
        self._stop = stop
        # What outlives a connection: a device that makes dispatch lose one would begin anew.
        self._books = Books(registry)
        self._greetings = Greetings()
        self._states = StateBooks(registry, self._books.aside)
        self._jobs = Jobs(registry)
        self._published = Sparsely(first=1)
        self._signer = DownlinkSigner(home.dispatch_signing)
        self._presence_grace = presence_grace
        self._stopped = ""  # the start of the broker that said goodbye last

    def run(self) -> None:
        """Connect, serve, connect again; returns when stopped."""
        mark, backoff = self._registry.commit_mark(), Backoff(self._ports.random)
        try:
            while not self._stop.is_set():
                began = self._ports.monotonic()
                self._attempt(mark)
                self._wait(backoff.after(self._ports.monotonic() - began))
        finally:
            mark.close()

    def _attempt(self, mark: CommitMark) -> None:
        try:
            self._live(mark)
        except FleetError as error:
            _log.warning(event("dispatch.offline", reason=error.message))
        except Exception:
            # A mistake of ours must not end what enrolment depends on; it is seen, and the delay bounds its noise.
            _log.exception("dispatch.failed")

    def _live(self, mark: CommitMark) -> None:
        """One connection, from its beginning to its end. Raises: FleetError."""
        run_file = self._home.run_file(Server.BROKER)
        try:
            ways = endpoints(decode_run_file(run_file.read_bytes()).url)
        except OSError as error:
            raise NotFound("no broker has said where it is", hint="broker serve") from error
        trust, clock = str(self._home.root.certificate), self._ports.floored
        login = Login(trust, self._home.dispatch, DISPATCH.id, is_persistent=True, clock=clock)
        connection = Connection.open(login, ways, self._ports.monotonic)
        try:
            self._serve(connection, mark)
        finally:
            connection.close()

    def _serve(self, connection: Connection, mark: CommitMark) -> None:
        attendance = self._attendance(connection)
        try:
            attendance.begin(self._ports.monotonic)
            connection.subscribe(SUBSCRIPTIONS, self._ports.monotonic)
            _log.info(event("dispatch.online", broker=connection.endpoint))
            session = Session(
                connection,
                attendance,
                self._books,
                self._greetings,
                self._states,
                self._jobs,
                self._ports,
                self._published,
                self._signer,
            )
            while not self._stop.is_set():
                session.turn(has_news=mark.has_moved())
        finally:
            self._stopped = attendance.roll.stopped

    def _attendance(self, connection: Connection) -> Attendance:
        called = f"{connection.endpoint.server_name}:{connection.endpoint.port}"
        now = roll.Moment(self._ports.monotonic(), self._ports.clock())
        recorded, grace = self._books.who_is_online(), self._presence_grace.total_seconds()
        return Attendance(connection, Roll.begin(called, recorded, grace, now, self._stopped), self._books.aside)

    def _wait(self, seconds: float) -> None:
        """Wait, but not longer than until the broker says that it is there (again)."""
        run_file = self._home.run_file(Server.BROKER)
        until, before = self._ports.monotonic() + seconds, stamp(run_file)
        while self._ports.monotonic() < until and not self._stop.wait(_LOOK_SECONDS):
            if stamp(run_file) not in (before, None):
                return


@dataclass(slots=True)
class Session:
    """What is under way on one connection. What it forgets at its end, the registry knows."""

    connection: Connection
    attendance: Attendance
    books: Books
    greetings: Greetings
    states: StateBooks
    jobs: Jobs
    ports: Ports
    published: Sparsely
    signer: DownlinkSigner
    _traffic: StateTraffic = field(init=False)
    _in_flight: dict[int, str] = field(default_factory=dict)  # packet id -> command id
    _next_deadline: datetime | None = None
    _heard_since: datetime | None = None
    _is_fresh: bool = True
    _complain_at: float = 0.0

    def __post_init__(self) -> None:
        self._traffic = StateTraffic(self.states, self._publish)

    def turn(self, *, has_news: bool) -> None:
        """One round. Raises: Unreachable (the connection has ended), RegistryUnavailable."""
        arrived = self.connection.turn(0.0 if self.attendance.is_busy else TURN_SECONDS)
        published = self.connection.published()
        taken = [self._in_flight.pop(id_) for id_ in published if id_ in self._in_flight]
        now, seconds = self.ports.clock(), self.ports.monotonic()
        self._look_at_key(seconds)
        due: list[CommandRecord] = []
        moment = roll.Moment(seconds, now)
        of_devices = self.attendance.hear(arrived, moment)
        timely = self.states.pace.timely(self.greetings.timely(self._read(of_devices), seconds), seconds)
        reports = timely + self.attendance.reports(moment)
        if reports or taken:
            due = self.books.enter(reports, taken, now, is_witnessed=self.attendance.roll.is_called)
            self.greetings.answered(reports, seconds)
            self.states.pace.answered(reports, seconds)
        self._traffic.turn(reports, published, now)
        for message in arrived:
            self.connection.ack(message)
        if reports or taken or has_news or self._is_fresh or self._is_deadline(now):
            self._is_fresh = False
            due += self._due(now, {command.id for command in due})
            self._traffic.send_due(now)
        for command in due:
            self._send(command)

    def _look_at_key(self, seconds: float) -> None:
        """Without one, what devices say is heard all the same; what is due to them waits in the registry."""
        before = self.signer.problem
        if self.signer.look(seconds):
            self._is_fresh = True
            _log.info("downlink.signed_again")
        found = self.signer.problem
        if found is None:
            return
        is_same = before is not None and before.message == found.message
        if not is_same or seconds >= self._complain_at:
            self._complain_at = seconds + _COMPLAIN_SECONDS
            _log.error(event("downlink.not_signed", reason=found.message, hint=found.hint))

    def _is_deadline(self, now: datetime) -> bool:
        return self._next_deadline is not None and self._next_deadline <= now

    def _due(self, now: datetime, already: set[str]) -> list[CommandRecord]:
        next_step = self._advance_jobs(now)  # first: what a job gives is due, and what it withdraws is not
        agenda = self.books.agenda(now)
        self._next_deadline = min(filter(None, (agenda.next_deadline, next_step)), default=None)
        under_way = already.union(self._in_flight.values())
        return [command for command in agenda.due if command.id not in under_way]

    def _advance_jobs(self, now: datetime) -> datetime | None:
        """Not while nothing can be sent: a wave would be judged by devices that were told nothing."""
        if self.signer.problem is not None:
            self._heard_since = None
            return None
        self._heard_since = self._heard_since or now
        return self.jobs.advance(Earshot(now, self._heard_since))

    def _send(self, command: CommandRecord) -> None:
        topic = topics.Command(command.device, command.name, command.id).format()
        args = messages.decode_object(command.args.encode())
        message = messages.CommandMessage(command.device, command.created_at, command.deadline, args)
        packet = self._publish(topic, message.encode(), command.deadline)
        if packet is None:
            return
        self._in_flight[packet] = command.id
        # Its device may ask for it every two seconds.
        if count := self.published.count(command.id, self.ports.monotonic()):
            fields = {"device": command.device, "name": command.name, "command": command.id}
            _log.info(event("command.published", **fields, count=count if count > 1 else None))

    def _publish(self, topic: str, body: bytes, until: datetime) -> int | None:
        """Send it signed, as all that goes to devices; its packet id, None if it cannot be. Raises: Unreachable."""
        if self.signer.problem is not None:
            return None
        try:
            payload = self.signer.sign(topic, body, until)
        except CannotSign:  # since the turn began; the next one tells
            return None
        return self.connection.publish(topic, payload)

    def _read(self, arrived: list[Incoming]) -> list[Report]:
        sifted = sift(arrived, self.books.aside)
        return sifted.reports(self.books.given(sifted.command_ids), self.books.aside)
