"""The command line `broker`: reads clock, environment and entropy, puts the parts together, and says what happens."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
import stat
import sys
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from random import SystemRandom
from secrets import token_hex
from typing import Annotated, Any, Final

import typer
import uvloop

from broker import descriptors, directory, figures
from broker.directory import Directory, Journal
from broker.engine import Engine, Listener, Rules
from broker.engines.amqtt.engine import IS_COMPILED, AmqttEngine, Durable
from broker.event_log import EventLog
from broker.feed import Feed
from broker.figures import LoopDelay, Readings
from broker.membership import Membership
from broker.metrics import PATH, MetricsServer
from broker.timekeeping import Timekeeping
from broker.trust import ClientTrust, load_client_trust, load_trust
from fleet import config
from fleet.clock import FlooredClock
from fleet.config import Address, FleetConfig
from fleet.errors import Denied, FleetError, NotFound, reason_of, report, usage_report
from fleet.identity import Server
from fleet.layout import AdminHome, IdentityFiles, RunFile
from fleet.logs import event, log_to
from fleet.starting import version_of

_log = logging.getLogger("broker")
_LOOP_CHECK_SECONDS: Final = 0.25
_FILE_CHECK_SECONDS: Final = 2.0
_RELOAD_AGAIN_SECONDS: Final = 60.0  # the directory may not list our next serial yet, with the service away

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
_Home = Annotated[
    Path | None,
    typer.Option("--home", help="The fleet's home (or FLEET_HOME).", show_default=False, readable=False),
]


def _say_version(is_asked: bool) -> None:
    if is_asked:
        print(version_of("broker"))
        raise typer.Exit


_Version = Annotated[
    bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_say_version)
]


@app.callback()
def _root(context: typer.Context, home: _Home = None, version: _Version = False) -> None:
    """The MQTT broker of a fleet: mutual TLS and nothing else, every topic decided from the certificate."""
    context.obj = home


@app.command()
def serve(
    context: typer.Context,
    home: _Home = None,
    listen: Annotated[
        str, typer.Option(help="HOST:PORT; port 0 takes any free one. Otherwise as fleet.toml says.")
    ] = "",
    public_url: Annotated[str, typer.Option(help="The address to tell devices, as mqtts://HOST:PORT.")] = "",
    metrics: Annotated[
        str, typer.Option(help="HOST:PORT of GET /metrics, for Prometheus; whoever reaches it may read it.")
    ] = "",
) -> None:
    """Accept devices, until SIGTERM."""
    before_verb: Path | None = context.obj
    admin_home = _open_home(home or before_verb or _default_home())
    settings = _read_config(admin_home)
    address = config.parse_address(listen) if listen else settings.broker_listen
    metrics_address = config.parse_address(metrics) if metrics else settings.broker_metrics
    _log_to_stderr()
    uvloop.run(_serve(admin_home, settings, address, metrics_address, public_url))


def _log_to_stderr() -> None:
    log_to(logging.StreamHandler(sys.stderr))
    for chatty in ("amqtt", "transitions"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def main() -> int:
    """Run the command line; its exit status."""
    try:
        status = app(prog_name="broker", standalone_mode=False)
    except FleetError as error:
        print(report(error), file=sys.stderr)
        return error.exit_code
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        print(usage_report(error.format_message(), "" if context is None else context.command_path), file=sys.stderr)
        return 2
    except (KeyboardInterrupt, typer.Abort):
        return 130
    return status if isinstance(status, int) else 0


def _default_home() -> Path:
    if named := os.environ.get("FLEET_HOME"):
        return Path(named)
    shared = Path("/var/lib/mqtt-fleet")
    if os.access(shared, os.W_OK):
        return shared
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "mqtt-fleet"


def _open_home(path: Path) -> AdminHome:
    home = AdminHome(path)
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        is_there = home.config.exists()
    except FileNotFoundError:
        is_there, mode = False, 0
    except OSError as error:
        raise Denied(f"{path} cannot be entered: {reason_of(error)}", hint="run this as its owner") from error
    if not is_there:
        raise NotFound(f"there is no fleet at {path}", hint=f"enroll init --home {path}, or name another: --home DIR")
    if mode & 0o077:
        raise Denied(f"{path} can be entered by others (mode {mode:04o})", hint=f"chmod 700 {path}")
    return home


def _read_config(home: AdminHome) -> FleetConfig:
    try:
        return config.load(home.config.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise FleetError(
            f"{home.config} cannot be read: {reason_of(error)}", hint="restore it from a backup"
        ) from error


def _durable(home: AdminHome, settings: FleetConfig) -> Durable | None:
    if not settings.broker_durable:
        return None
    return Durable(home.broker_sessions, settings.session_expiry.total_seconds())


async def _serve(
    home: AdminHome, settings: FleetConfig, address: Address, metrics: Address | None, public_url: str
) -> None:
    """Serve until a signal. Raises: FleetError."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    broker = _Broker(home, settings, directory.load(home.broker_directory))
    running = [loop.create_task(work) for work in (broker.feed.run(), broker.membership.keep(), broker.watch_loop())]
    signalled = loop.create_task(stopping.wait())
    try:
        if await _unless(signalled, broker.start(address, metrics)):
            loop.add_signal_handler(signal.SIGHUP, broker.reload_soon)
            running.append(loop.create_task(broker.watch_files()))
            with _announced(home, settings, broker.address, public_url):
                await asyncio.wait([signalled, *running], return_when=asyncio.FIRST_COMPLETED)
    finally:
        await broker.stop()
        await _end(signalled, *running)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


async def _end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait for them. Raises: what one of them had died of."""
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, Exception):
            raise outcome


async def _unless(signalled: asyncio.Task[Any], work: Coroutine[Any, Any, None]) -> bool:
    """Whether `work` was done before a signal came. Raises: what it raises."""
    task = asyncio.ensure_future(work)
    await asyncio.wait([task, signalled], return_when=asyncio.FIRST_COMPLETED)
    if not task.done():
        await _end(task)
        return False
    task.result()
    return True


class _Broker:
    """The parts of one running broker."""

    def __init__(self, home: AdminHome, settings: FleetConfig, known: Directory) -> None:
        self._home = home
        self._settings = settings
        self._clock = FlooredClock(lambda: datetime.now(UTC), time.monotonic)
        self._timekeeping = Timekeeping(home, self._clock)
        self._timekeeping.begin()
        self.trust = load_trust(home.broker_trust, home.broker_server, self._clock.now(), self._clock)
        self._loaded = self._stamps()
        self.membership = Membership(known, Journal(home.broker_directory), time.monotonic)
        self.feed = Feed(
            home.run_file(Server.ENROLL), self._to_service(), self.membership, lambda: known.position, SystemRandom()
        )
        self.engine: Engine = AmqttEngine(self._clock.now, _durable(home, settings))
        self.address = Address("", 0)
        self._started_at = self._clock.now()
        self._version = version("mqtt-fleet") + ("+compiled" if IS_COMPILED else "")
        self._loop_delay = LoopDelay()
        self._metrics: MetricsServer | None = None
        self._reloading: asyncio.Task[None] | None = None

    async def start(self, address: Address, metrics: Address | None) -> None:
        """Accept connections, as soon as it is known whose; prove it with one of our own. Raises: FleetError."""
        if metrics is not None:
            self._metrics = MetricsServer(metrics, self._read, asyncio.get_running_loop(), time.monotonic)
            print(f"broker: metrics http://{self._metrics.address}{PATH}", flush=True)
        if self.membership.directory.position is None:
            print("broker: waiting for the enrollment service: who may connect is not known yet", file=sys.stderr)
            await self.membership.wait_for_snapshot()
        rules = Rules(self._settings.policy, self.membership.directory, self.feed.look_up, self.membership.is_fresh)
        self.membership.on_change = self.engine.apply
        listener = Listener(address, descriptors.fit(self._settings.broker_limits))
        self.address = await self.engine.start(listener, self.trust, rules, EventLog(time.monotonic).tell)
        self.engine.announce(token_hex(8))
        self.engine.show(lambda: figures.topics(self._read()))
        await self._prove()

    def _read(self) -> Readings:
        """What the broker tells of itself, now."""
        known = self.membership.directory
        return Readings(
            version=self._version,
            started_at=self._started_at,
            now=self._clock.now(),
            stats=self.engine.stats(),
            delay=self._loop_delay.copy(),
            directory_age_seconds=self.membership.age_seconds,
            directory_seq=known.position.seq if known.position is not None else 0,
            principals=len(known.entries),
        )

    async def watch_loop(self) -> None:
        """Measure how late the event loop comes to things; for ever, as a task."""
        while True:
            due = time.monotonic() + _LOOP_CHECK_SECONDS
            await asyncio.sleep(_LOOP_CHECK_SECONDS)
            now = time.monotonic()
            self._loop_delay.record(now - due, now)

    async def _prove(self) -> None:
        """Let a good identity of our own in, and keep a revoked one out. Raises: FleetError."""
        await self.engine.wait_ready(self._canary(self._home.broker_client), self._revoked_canary())

    def _canary(self, identity: IdentityFiles) -> ClientTrust:
        now, trust = self._clock.now(), self._home.broker_trust
        return load_client_trust(trust, identity, Server.BROKER, now, checks_host=False, clock=self._clock)

    def _revoked_canary(self) -> ClientTrust | None:
        """None, and said so, where the home has none that TLS would let through: made earlier, or run out."""
        try:
            return self._canary(self._home.broker_revoked)
        except FleetError as error:
            _log.warning(event("canary.incomplete", reason=error.message))
            return None

    def _to_service(self) -> ClientTrust:
        now, trust = self._clock.now(), self._home.broker_trust
        return load_client_trust(trust, self._home.broker_client, Server.ENROLL, now, clock=self._clock)

    def _stamps(self) -> tuple[tuple[int, int] | None, ...]:
        """What changes with the files that `_reload` reads."""
        home = self._home
        return tuple(map(_stamp, (home.broker_trust, home.broker_server.certificate, home.broker_client.certificate)))

    async def watch_files(self) -> None:
        """Take new certificates when they are there, as after SIGHUP; for ever, as a task."""
        while True:
            await asyncio.sleep(_FILE_CHECK_SECONDS)
            has_turned = self._timekeeping.look()
            if has_turned or self._stamps() != self._loaded:
                self.reload_soon()

    def reload_soon(self) -> None:
        """For SIGHUP, and for files that changed."""
        if self._reloading is None or self._reloading.done():
            self._reloading = asyncio.create_task(self._reload())

    async def _reload(self) -> None:
        """Take new certificates from the home; the old ones stay in use where the new are not good."""
        self._loaded = self._stamps()
        try:
            now, clock = self._clock.now(), self._clock
            trust = load_trust(self._home.broker_trust, self._home.broker_server, now, clock)
            self.feed.replace_trust(self._to_service())
            await self.engine.replace_trust(trust)
            await self._prove()
        except FleetError as error:
            _log.error(event("trust.not_replaced", reason=error.message))
            await self.engine.replace_trust(self.trust)
            asyncio.get_running_loop().call_later(_RELOAD_AGAIN_SECONDS, self.reload_soon)
        else:
            self.trust = trust
            _log.info("trust.replaced")

    async def stop(self) -> None:
        """End every connection; what is known is on disk."""
        if self._reloading is not None:
            await _end(self._reloading)
        await self.engine.stop()
        if self._metrics is not None:
            await asyncio.to_thread(self._metrics.stop)
        with suppress(OSError):  # said by `keep` already
            await self.membership.save()


@contextmanager
def _announced(home: AdminHome, settings: FleetConfig, address: Address, public_url: str) -> Iterator[None]:
    """Say how the broker is reached: to the fleet in the run file, to whoever started it on stdout.

    Within, the file is locked: whoever finds it so knows that the broker runs, and need not knock.
    """
    url = public_url or f"mqtts://{Address(settings.hosts[0], address.port)}"
    path = home.run_file(Server.BROKER)
    partial = path.with_suffix(".partial")
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        partial.write_bytes(RunFile(url).encode())
        partial.replace(path)
        held = path.open("rb")
    except OSError as error:
        raise FleetError(
            f"cannot write {path}: {error.strerror}", hint="free space, or mend its permissions"
        ) from error
    with held:
        fcntl.flock(held, fcntl.LOCK_EX)  # nobody holds it for longer than a look
        print(f"broker: ready mqtts://{address}", flush=True)
        yield
