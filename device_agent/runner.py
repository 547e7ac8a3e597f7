"""`device-agent run`: feeds the core's events from one queue and performs its effects, on the thread that called it.

Everything that can wait for a peer (the connection, the applications, the request for the configuration) is on a thread
of its own and speaks to this one through the queue alone. Those threads cannot keep the agent from ending, nor can a
hanging one make it believe that it is connected.
"""

from __future__ import annotations

import logging
import queue
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, assert_never

from device_agent import config_client, https, signers, tls
from device_agent.application import ApplicationServer
from device_agent.clock import FIRST_LOOK_SECONDS, IMPROVE_SECONDS, LOOK_SECONDS, Clock, Moment
from device_agent.core.effects import (
    Acknowledge,
    AnnounceReady,
    Confirm,
    Connect,
    Disconnect,
    Effect,
    Exit,
    FetchConfig,
    ForgetPredecessor,
    Log,
    OpenSpool,
    Publish,
    ReadSpool,
    Renew,
    SaveJournal,
    SaveShadow,
    Subscribe,
    Tell,
    Upload,
    UsePredecessor,
    UseSuccessor,
    Verify,
    WriteSpool,
)
from device_agent.core.events import (
    ConfigFailed,
    ConfigFetched,
    Disconnected,
    Event,
    Journalled,
    ShadowSaved,
    SpoolFailed,
    Started,
    StorageChanged,
    Tick,
)
from device_agent.core.shelf import NEVER
from device_agent.core.state import Downlink, Settings, initial
from device_agent.core.step import next_deadline, step
from device_agent.failures import Cause, Failure
from device_agent.journal import Journal, decode_journal, lost
from device_agent.last_lines import LastLines
from device_agent.mqtt import Connection
from device_agent.renewal_client import Renewer
from device_agent.shadow import Shadow, decode_shadow
from device_agent.sharing import Shares
from device_agent.signers import Signers
from device_agent.spool import SpoolFile
from device_agent.storage import StorageWatch
from device_agent.store import Disk, check_private, replace_file
from device_agent.succession import Succession
from device_agent.upload_client import Sources, Uploader
from device_agent.verdicts import Trust
from fleet.address import Address
from fleet.errors import FleetError, InvalidInput
from fleet.layout import AgentHome, Credential
from fleet.logs import event, log_to

if TYPE_CHECKING:
    from device_agent.verifier_client import VerifierClient

# Few: what a connection confirms waits behind what applications say, and a flood of theirs must not slow it down.
QUEUE_EVENTS: Final = 64
# A connection's thread turns every 5 s; one that has not for so long hangs, whatever it claims.
HANGS_AFTER_SECONDS: Final = 90.0
_LOOK_SECONDS: Final = 30.0
# Nothing can end a look-up of a name that hangs: so many threads may, and each costs memory.
MAX_ABANDONED: Final = 3

_log = logging.getLogger("device_agent")


class EventQueue:
    """Bounded for threads, which wait for room; never blocking for a signal handler, which must not."""

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[tuple[Event, bool]] = queue.SimpleQueue()  # its put is reentrant
        self._room = threading.Semaphore(QUEUE_EVENTS)

    def post(self, event: Event) -> None:
        self._room.acquire()
        self._events.put((event, True))

    def post_now(self, event: Event) -> None:
        self._events.put((event, False))

    def take(self, seconds: float) -> Event | None:
        """The next event; None if none comes in time."""
        try:
            event, took_room = self._events.get(timeout=seconds)
        except queue.Empty:
            return None
        if took_room:
            self._room.release()
        return event


@dataclass(frozen=True, slots=True)
class World:
    """What the runner is given instead of reading it: the clock with its jitter, and the disk."""

    moment: Callable[[], Moment]
    clock: Clock
    disk: Disk


@dataclass(slots=True)
class _Fetch:
    """The one request for the configuration that may be under way."""

    thread: threading.Thread | None = None

    @property
    def is_running(self) -> bool:
        return self.thread is not None and self.thread.is_alive()


@dataclass(slots=True)
class Runner:
    """One run of the agent, as the holder of `credential`."""

    home: AgentHome
    settings: Settings
    credential: Credential
    world: World
    events: EventQueue = field(default_factory=EventQueue)
    sources: Sources | None = None
    _uploader: Uploader | None = None
    _connection: Connection | None = None
    _abandoned: list[Connection] = field(default_factory=list)
    _fetch: _Fetch = field(default_factory=_Fetch)
    _is_over: bool = False
    _looked_at: float = 0.0
    _has_ticked: bool = False
    _asks_at: float | None = None
    _signers: Signers = field(default_factory=Signers)
    _verifier: VerifierClient | None = None
    _storage: StorageWatch = field(init=False)

    def __post_init__(self) -> None:
        self._storage = StorageWatch(self.home.path, lambda found: self.events.post_now(StorageChanged(found)))

    def run(self) -> None:
        """Until StopRequested has been dealt with. Raises: FleetError if the home cannot be used."""
        check_private(self.home.identity.key)
        applications = ApplicationServer(self.home, self.events.post)
        spool = SpoolFile(self.home, self.settings.device)
        self._uploader = self._new_uploader()
        renewer = Renewer(self.home, self.world.disk, self.credential, self.world.clock, self.events.post)
        has_predecessor = Succession(self.home, self.world.disk).previous() is not None
        brokers = config_client.known_brokers(self.home)
        self._signers = signers.load(self.home)
        downlink = Downlink(self._signers.trust, self._signers.key_ids)
        state = initial(
            self.settings,
            brokers,
            self._load_journal(),
            has_predecessor=has_predecessor,
            downlink=downlink,
            shadow=self._load_shadow(),
        )
        self._storage.look(self.world.clock.monotonic(), is_doubtful=True)
        pending: deque[Event] = deque([Started()])
        _log.info("agent.started device=%s serial=%s", self.settings.device, self.settings.serial)
        tls.warm_up()
        try:
            applications.start()
            while pending or not self._is_over:
                event = pending.popleft() if pending else self._next_event(next_deadline(state))
                state, effects = step(state, event, self.world.moment())
                for effect in effects:
                    follow_up = self._perform(effect, applications, spool, renewer)
                    if follow_up is not None:
                        pending.append(follow_up)
                        self._doubt_storage(follow_up)
                self._check_threads(applications)
            self._save_journal(state.journal)
            if state.shadowing.save_at < NEVER:
                self._save_shadow(state.shadowing.shadow)
        finally:
            if self._connection is not None:
                self._connection.disconnect()
                self._connection.join(2)
            renewer.close()
            self._uploader.close()
            if self._verifier is not None:
                self._verifier.close()
            applications.close()
            spool.close()
            _log.info("agent.stopped device=%s", self.settings.device)

    def _new_uploader(self) -> Uploader:
        sources = self.sources or Sources(LastLines(), Shares((), self.home.path))
        url, clock = self.credential.enroll_url, self.world.clock
        return Uploader(self.home, url, clock, lambda: self.world.moment().chance, sources, self.events.post)

    def _next_event(self, deadline: float | None) -> Event:
        """A timer that is due goes before what waits in the queue, and never twice in a row: neither can starve."""
        longest = _LOOK_SECONDS if not self._storage.is_read_only else self._storage.pause_seconds
        seconds = longest if deadline is None else deadline - self.world.clock.monotonic()
        if seconds <= 0 and not self._has_ticked:
            self._has_ticked = True
            return Tick()
        self._has_ticked = False
        return self.events.take(max(0.0, min(seconds, longest))) or Tick()

    def _perform(
        self, effect: Effect, applications: ApplicationServer, spool: SpoolFile, renewer: Renewer
    ) -> Event | None:
        """Do it; the event that must come before any other, if there is one."""
        match effect:
            case FetchConfig():
                self._start_fetch()
            case Connect():
                self._start_connection(effect)
            case Publish() | Subscribe() | Acknowledge():
                if self._connection is not None and self._connection.epoch == effect.epoch:
                    self._connection.perform(effect)
            case Disconnect(epoch):
                self._end_connection(epoch)
            case Verify():
                return self._verify(effect)
            case SaveJournal() | SaveShadow():
                return self._keep(effect)
            case OpenSpool() | WriteSpool() | ReadSpool():
                return spool.perform(effect)
            case Renew() | UseSuccessor() | UsePredecessor() | Confirm() | ForgetPredecessor():
                return renewer.perform(effect)
            case Upload():
                assert self._uploader is not None
                self._uploader.perform(effect)
            case Tell(app, line):
                applications.tell(app, line)
            case AnnounceReady():
                print(f"device-agent: ready {self.settings.device}", flush=True)
            case Log(level, name, fields):
                _log.log(level, event(name, device=self.settings.device, **dict(fields)))
            case Exit():
                self._is_over = True
            case _:
                assert_never(effect)
        return None

    def _doubt_storage(self, outcome: Event) -> None:
        """What was to be written was not; or it was, although nothing could be."""
        match outcome:
            case Journalled(error) | ShadowSaved(error) | SpoolFailed(error):
                if bool(error) is not self._storage.is_read_only:
                    self._storage.look(self.world.clock.monotonic(), is_doubtful=True)

    def _keep(self, order: SaveJournal | SaveShadow) -> Event:
        if isinstance(order, SaveJournal):
            return Journalled(self._save_journal(order.journal))
        return ShadowSaved(self._save_shadow(order.shadow))

    def _end_connection(self, epoch: int) -> None:
        if self._connection is not None and self._connection.epoch == epoch:
            self._connection.disconnect()

    def _start_connection(self, order: Connect) -> None:
        if self._connection is not None:
            self._connection.disconnect()
            self._abandoned = [each for each in [*self._abandoned, self._connection] if each.is_alive]
        if len(self._abandoned) >= MAX_ABANDONED:
            failure = Failure(Cause.TIMED_OUT, str(order.broker), "the last attempts hang: is there a name server?")
            self.events.post_now(Disconnected(order.epoch, failure))
            return
        self._connection = Connection(self.home, self.settings.device, order, self.events.post, self.world.clock)
        self._connection.start()

    def _start_fetch(self) -> None:
        """One at a time: a request that hangs must not gather others behind it."""
        if self._fetch.is_running:
            failure = Failure(
                Cause.TIMED_OUT, https.peer_of(self.credential.enroll_url), "the last request is still under way"
            )
            self.events.post_now(ConfigFailed(failure))
            return
        self._fetch.thread = threading.Thread(target=self._fetch_config, name="config", daemon=True)
        self._fetch.thread.start()

    def _fetch_config(self) -> None:
        event: Event = ConfigFailed(Failure(Cause.BAD_ANSWER, https.peer_of(self.credential.enroll_url)))
        try:
            event = self._ask_service()
        finally:
            self.events.post(event)

    def _ask_service(self) -> Event:
        try:
            found = config_client.fetch(self.home, self.credential.enroll_url, self.world.clock)
        except https.RequestFailed as error:
            return ConfigFailed(error.failure)
        self._remember(found.brokers)
        self._remember_signers(self._signers.told(found.signers))
        return ConfigFetched(found.brokers, self._signers.trust, self._signers.key_ids)

    def _verify(self, order: Verify) -> Event | None:
        from device_agent.verifier_client import VerifierClient  # here: most of the time nothing comes

        self._verifier = self._verifier or VerifierClient(self.home, self.events.post)
        return self._verifier.verify(order, self._signers.chains)

    def _remember_signers(self, found: Signers) -> None:
        """On disk first: a restart must not bring back what is taken no more."""
        if found == self._signers:
            return
        try:
            signers.save(self.world.disk, self.home, found)
        except OSError as error:  # until the agent ends it goes by it all the same
            _log.warning(event("signers.not_written", reason=error.strerror or error))
        self._signers = found

    def _remember(self, brokers: tuple[Address, ...]) -> None:
        if not brokers or brokers == config_client.known_brokers(self.home):
            return
        try:
            config_client.save_brokers(self.world.disk, self.home, brokers)
        except OSError as error:  # the agent goes on: it asks again at its next start
            _log.warning(event("config.not_written", reason=error.strerror or error))

    def _check_threads(self, applications: ApplicationServer) -> None:
        """A thread that died or hangs is noticed here. Raises: FleetError if the agent cannot go on without it."""
        now = self.world.clock.monotonic()
        self._storage.look(now)
        applications.listen_at_home(is_writable=not self._storage.is_read_only)
        if now - self._looked_at < _LOOK_SECONDS / 2:
            return
        self._looked_at = now
        self._keep_in_touch(now)
        if not applications.is_alive:
            raise FleetError("the thread that serves applications has died", hint="report this with the log")
        connection = self._connection
        if connection is not None and connection.is_alive and now - connection.last_turn > HANGS_AFTER_SECONDS:
            failure = Failure(Cause.LOST, "", "the connection's thread hangs")
            self.events.post_now(Disconnected(connection.epoch, failure))

    def _keep_in_touch(self, now: float) -> None:
        """Ask the service once a day: that it is so late, verified, is what an old stolen certificate fails on.

        Sooner where nothing but a lower bound of the time is known, or it may sign by now what it sends.
        """
        is_soon = self.world.clock.reading().is_lower_bound or self._signers.trust is not Trust.SIGNED
        if self._asks_at is None:
            self._asks_at = now + self.world.moment().chance * (IMPROVE_SECONDS if is_soon else FIRST_LOOK_SECONDS)
        elif now >= self._asks_at and not self._fetch.is_running:
            self._asks_at = now + (IMPROVE_SECONDS if is_soon else LOOK_SECONDS)
            self._start_fetch()

    @property
    def _journal_file(self) -> Path:
        return self.home.path / "commands.json"

    @property
    def _shadow_file(self) -> Path:
        return self.home.path / "state.json"

    def _save_journal(self, journal: Journal) -> str:
        return self._save(self._journal_file, journal.encode())

    def _save_shadow(self, shadow: Shadow) -> str:
        return self._save(self._shadow_file, shadow.encode(self.settings.device))

    def _save(self, path: Path, data: bytes) -> str:
        """Write it, durably; why not, if it cannot be."""
        try:
            replace_file(self.world.disk, path, data)
        except OSError as error:
            return error.strerror or str(error)
        return ""

    def _load_journal(self) -> Journal:
        """What earlier runs remember. A damaged file is kept aside: to lose it must not keep a device offline."""
        data = b""
        try:
            data = self._journal_file.read_bytes()
            return decode_journal(data)
        except FileNotFoundError:
            return Journal()
        except OSError as error:
            raise FleetError(f"{self._journal_file}: {error.strerror or error}") from error
        except InvalidInput as error:
            _log.error(event("journal.damaged", reason=error.message))
            # Never without the file: a start that finds none takes every command for new.
            problem = self._save(self._journal_file.with_suffix(".damaged"), data) or self._save_journal(lost())
            if problem:
                _log.error(event("journal.not_written", reason=problem))
            return lost()

    def _load_shadow(self) -> Shadow:
        """What earlier runs were told and reported. A damaged file is kept aside: the fleet has what was in it."""
        try:
            return decode_shadow(self._shadow_file.read_bytes(), self.settings.device)
        except FileNotFoundError:
            return Shadow()
        except OSError as error:
            raise FleetError(f"{self._shadow_file}: {error.strerror or error}") from error
        except InvalidInput as error:
            _log.error(event("state.damaged", reason=error.message))
            self._shadow_file.replace(self._shadow_file.with_suffix(".damaged"))
            return Shadow()


def configure_logging(level: int = logging.INFO, lines: LastLines | None = None) -> None:
    """One line an event on stderr, and in `lines`."""
    log_to(logging.StreamHandler(sys.stderr), level)
    if lines is not None:
        logging.getLogger().addHandler(lines)
