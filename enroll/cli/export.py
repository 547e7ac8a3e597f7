"""`enroll export`: telemetry into a database, files or another program, as a service of the fleet."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from enroll.cli.options import HomeOption, Verbs, admin_home, clock, now, open_registry, parse_duration
from enroll.cli.output import say
from fleet.errors import FleetError, NotFound
from fleet.identity import DeviceId
from fleet.layout import AgentHome
from fleet.logs import log_to
from fleet.topics import check_name

if TYPE_CHECKING:
    from enroll.export.exporter import Tally
    from enroll.export.sink import Sink
    from enroll.export.source import Source, Wanted
    from enroll.registry import Registry

STDOUT: Final = "-"

IdentityOption = Annotated[
    Path | None,
    typer.Option(
        "--identity",
        metavar="DIR",
        help="Where the service has joined.",
        show_default="HOME/export",
    ),
]
BrokerOption = Annotated[
    str | None,
    typer.Option("--broker", metavar="URL", help="Where the broker is.", show_default="as it, or the service, says"),
]
DeviceOption = Annotated[
    list[str] | None, typer.Option("--device", metavar="ID", help="Only of these.", show_default="all")
]
GroupOption = Annotated[
    list[str] | None, typer.Option("--group", metavar="G", help="Only of these groups.", show_default="all")
]
StreamOption = Annotated[
    list[str] | None, typer.Option("--stream", metavar="NAME", help="Only these streams.", show_default="all")
]
CountOption = Annotated[
    int | None, typer.Option("--count", "-n", min=1, metavar="N", help="End after N messages.", show_default="never")
]
ForOption = Annotated[
    str | None, typer.Option("--for", metavar="DURATION", help="End after 90s, 15m, 24h or 7d.", show_default="never")
]
SessionOption = Annotated[
    str | None,
    typer.Option(
        "--session", metavar="NAME", help="The broker's name for what it keeps.", show_default="from the target"
    ),
]


@dataclass(frozen=True, slots=True)
class _Order:
    """What was typed, but for the target."""

    home: Path | None
    identity: Path | None
    broker: str | None
    devices: list[str]
    groups: list[str]
    streams: list[str]
    count: int | None
    span: timedelta | None
    session: str | None


def sqlite(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="The database; made if it is not there.")],
    device: DeviceOption = None,
    group: GroupOption = None,
    stream: StreamOption = None,
    count: CountOption = None,
    for_: ForOption = None,
    identity: IdentityOption = None,
    broker: BrokerOption = None,
    session: SessionOption = None,
    home: HomeOption = None,
) -> None:
    """Into a table `telemetry`, each message once, until SIGTERM."""
    from enroll.export.sqlite_sink import SqliteSink

    order = _order(home, identity, broker, device, group, stream, count, for_, session)
    _run(order, "sqlite", str(path), lambda _stop: SqliteSink(path))


def parquet(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder; made if it is not there.")],
    every: Annotated[str, typer.Option(metavar="DURATION", help="The longest that a message waits.")] = "5m",
    device: DeviceOption = None,
    group: GroupOption = None,
    stream: StreamOption = None,
    count: CountOption = None,
    for_: ForOption = None,
    identity: IdentityOption = None,
    broker: BrokerOption = None,
    session: SessionOption = None,
    home: HomeOption = None,
) -> None:
    """Into Parquet files, until SIGTERM; needs the extra `parquet`."""
    from enroll.export.parquet_sink import ParquetSink, Portion, load_arrow

    load_arrow()
    portion = Portion(span=parse_duration(every))
    order = _order(home, identity, broker, device, group, stream, count, for_, session)
    _run(order, "parquet", str(folder), lambda _stop: ParquetSink(folder, portion, now))


def influx(
    path: Annotated[str, typer.Argument(metavar="FILE|-", help="Lines are appended.", show_default="stdout")] = STDOUT,
    device: DeviceOption = None,
    group: GroupOption = None,
    stream: StreamOption = None,
    count: CountOption = None,
    for_: ForOption = None,
    identity: IdentityOption = None,
    broker: BrokerOption = None,
    session: SessionOption = None,
    home: HomeOption = None,
) -> None:
    """As InfluxDB line protocol, to a file or stdout, until SIGTERM."""
    from enroll.export.influx_sink import InfluxFile, InfluxStdout

    order = _order(home, identity, broker, device, group, stream, count, for_, session)

    def made(stop: threading.Event) -> Sink:
        return InfluxStdout(stop.is_set) if path == STDOUT else InfluxFile(Path(path))

    _run(order, "influx", path, made)


VERBS: Final[Verbs] = {"sqlite": sqlite, "parquet": parquet, "influx": influx}


def _order(
    home: Path | None,
    identity: Path | None,
    broker: str | None,
    devices: list[str] | None,
    groups: list[str] | None,
    streams: list[str] | None,
    count: int | None,
    for_: str | None,
    session: str | None,
) -> _Order:
    span = None if for_ is None else parse_duration(for_)
    if session is not None:
        check_name(session)
    return _Order(home, identity, broker, devices or [], groups or [], streams or [], count, span, session)


def _run(order: _Order, kind: str, target: str, made: Callable[[threading.Event], Sink]) -> None:
    """Export until told to stop. Raises: FleetError."""
    log_to(logging.StreamHandler())
    with stopping() as stop, contextlib.ExitStack() as stack:
        wanted = _wanted(order, stack)
        source = _source(order, kind, target)
        stack.enter_context(_alone(source))
        sink = stack.enter_context(contextlib.closing(made(stop)))
        tally = _export(order, source, wanted, sink, stop, lambda: _ready(target))
    say(_summary(tally))


@contextlib.contextmanager
def _alone(source: Source) -> Iterator[None]:
    """Keep this session to ourselves: two processes would take it from each other for ever.

    Where nothing can be written beside the identity, nobody is kept away. Raises: FleetError if another has it.
    """
    session = source.client_id.partition(":")[2]
    with contextlib.ExitStack() as stack:
        try:
            held = stack.enter_context((source.home.path / f".{session}.lock").open("ab"))
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            words, hint = (
                f"another export has the session {session}",
                "stop it, or give this one its own: --session NAME",
            )
            raise FleetError(words, hint=hint) from error
        except OSError:
            pass
        yield


def _export(
    order: _Order, source: Source, wanted: Wanted, sink: Sink, stop: threading.Event, on_ready: Callable[[], None]
) -> Tally:
    from enroll.export.exporter import Bounds, Exporter, Ports

    ports = Ports(now, time.monotonic, random.SystemRandom(), stop.is_set, stop.wait, on_ready)
    bounds = Bounds(order.count, None if order.span is None else order.span.total_seconds())
    exporter = Exporter(source.connect, wanted, sink, bounds, ports)
    try:
        return exporter.run()
    except FleetError:
        say(_summary(exporter.tally))
        raise


def _ready(target: str) -> None:
    """One line once it is subscribed: on stdout, unless the data is there."""
    line = f"export: ready {'stdout' if target == STDOUT else target}"
    if target == STDOUT:
        say(line)
    else:
        print(line, flush=True)


def _summary(tally: Tally) -> str:
    parts = [f"{tally.stored} messages exported"]
    for count, words in (
        (tally.seen_before, "seen before"),
        (tally.left_out, "without a value that InfluxDB knows"),
        (tally.passed_over, "not asked for"),
        (tally.set_aside, "set aside"),
        (tally.lost, "lost of QoS 0"),
    ):
        if count:
            parts.append(f"{count} {words}")
    return ", ".join(parts)


@contextlib.contextmanager
def stopping() -> Iterator[threading.Event]:
    """An event that SIGTERM or SIGINT sets."""
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _source(order: _Order, kind: str, target: str) -> Source:
    from enroll.export import source

    agent = _identity(order)
    credential = source.load_service(agent, now())
    if order.broker is not None:
        ways = source.by_address(order.broker)
    elif order.identity is not None and order.home is None:
        ways = source.by_service(agent, credential.enroll_url)
    else:
        ways = source.by_run_file(admin_home(order.home))
    name = order.session or source.session_name(kind, target if target == STDOUT else source.absolute(Path(target)))
    return source.Source(agent, f"{credential.device}:{name}", ways, time.monotonic, clock)


def _identity(order: _Order) -> AgentHome:
    if order.identity is not None:
        return AgentHome(order.identity.absolute())
    return AgentHome(admin_home(order.home).path / "export")


def _wanted(order: _Order, stack: contextlib.ExitStack) -> Wanted:
    from enroll.export.source import Wanted

    is_in_group = None
    if order.groups:
        registry = stack.enter_context(open_registry(admin_home(order.home)))
        is_in_group = _membership(registry, order.groups, stack)
    devices = frozenset(map(DeviceId, order.devices))
    return Wanted(devices, frozenset(map(check_name, order.streams)), is_in_group)


def _membership(registry: Registry, groups: list[str], stack: contextlib.ExitStack) -> Callable[[DeviceId], bool]:
    """Whether a device is in one of the groups by now; the registry is read again when somebody has written to it."""
    mark = registry.commit_mark()
    stack.callback(mark.close)
    members = _members(registry, groups)
    if not members:
        raise NotFound(f"nobody is in {', '.join(groups)}", hint="enroll device list -o json shows who is where")

    def is_member(device: DeviceId) -> bool:
        nonlocal members
        if mark.has_moved():
            members = _members(registry, groups)
        return device in members

    return is_member


def _members(registry: Registry, groups: list[str]) -> frozenset[DeviceId]:
    from enroll.registry import overview

    found: set[DeviceId] = set()
    for group in groups:
        after: DeviceId | None = None
        with registry.read() as transaction:
            while page := overview.page(transaction, overview.Filter(group=group), after, 1000):
                found.update(summary.record.id for summary in page)
                after = page[-1].record.id
    return frozenset(found)
