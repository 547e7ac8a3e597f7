"""`enroll serve`: the enrollment service and dispatch, in one process, until SIGTERM."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import random
import resource
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from enroll import files
from enroll.cli.options import HomeOption, admin_home, clock, now, open_registry, token_bytes
from enroll.cli.token import advertised
from fleet.config import Address, CrlListen, parse_address, parse_crl_listen
from fleet.identity import Server
from fleet.join import check_enroll_url
from fleet.layout import AdminHome, RunFile
from fleet.logs import log_to

if TYPE_CHECKING:
    import asyncio

    from enroll.registry import Registry
    from fleet.config import FleetConfig


_DISPATCH_STOP_SECONDS = 5.0
_DESCRIPTORS = 4096


def serve(
    listen: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Port 0 takes any.", show_default="as fleet.toml says")
    ] = None,
    crl_listen: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT|off", help="Where to serve CRLs.", show_default="as fleet.toml says"),
    ] = None,
    public_url: Annotated[
        str | None, typer.Option(metavar="URL", help="How devices reach it.", show_default="https://HOST:PORT")
    ] = None,
    home: HomeOption = None,
) -> None:
    """Run the enrollment service, with dispatch.

    It lets devices in, keeps what they say of themselves, and sends them what they are told.
    """
    from enroll.home import read_config

    at = admin_home(home)
    config = read_config(at)
    address = config.enroll_listen if listen is None else parse_address(listen)
    crls = config.crl_listen if crl_listen is None else parse_crl_listen(crl_listen)
    if public_url is not None:
        check_enroll_url(public_url)
    log_to(logging.StreamHandler())
    _allow_descriptors()
    with open_registry(at) as registry, _runner() as runner:
        runner.run(_serve(at, config, registry, address, crls, public_url))


def _allow_descriptors() -> None:
    """As many files as a process may have here: a thousand connections need more than the usual 1024."""
    now_allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if most == resource.RLIM_INFINITY else min(most, _DESCRIPTORS)
    if now_allowed != resource.RLIM_INFINITY and now_allowed < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def _runner() -> asyncio.Runner:
    import asyncio

    import uvloop

    return asyncio.Runner(loop_factory=uvloop.new_event_loop)


async def _serve(
    home: AdminHome, config: FleetConfig, registry: Registry, listen: Address, crls: CrlListen, public_url: str | None
) -> None:
    from enroll.commits import Commits
    from enroll.publishing import publishing
    from enroll.serving import Ports, serving
    from enroll.timekeeping import Timekeeping

    timekeeping = Timekeeping(home, clock)
    timekeeping.begin()  # before anything is dated
    ports = Ports(now, time.monotonic, token_bytes, timekeeping)
    async with (
        _stopping() as stop,
        Commits(registry) as commits,
        publishing(home, config, registry, commits, ports, listen=crls.address, is_listening_optional=crls.is_default),
        serving(home, config, registry, commits, ports, listen=listen) as address,
    ):
        url = public_url or advertised(config.hosts[0], address.port)
        with _announced(home, url), _dispatching(home, registry, config.presence_grace):
            print(f"enroll: ready {advertised(address.host, address.port)}", flush=True)
            await stop.wait()


@contextlib.contextmanager
def _dispatching(home: AdminHome, registry: Registry, presence_grace: timedelta) -> Iterator[None]:
    """Dispatch on a thread of its own; at the end it is waited for, unless it hangs in a name look-up."""
    from enroll.dispatch import Dispatch, Ports

    stop = threading.Event()
    ports = Ports(now, time.monotonic, random.SystemRandom(), clock)
    dispatch = Dispatch(home, registry, ports, stop, presence_grace)
    thread = threading.Thread(target=dispatch.run, name="dispatch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(_DISPATCH_STOP_SECONDS)


@contextlib.asynccontextmanager
async def _stopping() -> AsyncIterator[asyncio.Event]:
    """An event that SIGTERM or SIGINT sets."""
    import asyncio

    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    yield stop


@contextlib.contextmanager
def _announced(home: AdminHome, url: str) -> Iterator[None]:
    """`run/enroll.json` says where the service is, for as long as it is there; locked, whoever kills it."""
    path = home.run_file(Server.ENROLL)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    files.replace(path, RunFile(url).encode())
    try:
        with path.open("rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)  # nobody holds it for longer than a look
            yield
    finally:
        path.unlink(missing_ok=True)
