"""The enrollment service put together from a home: what `enroll serve` runs, beside dispatch."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from ssl import SSLContext, SSLError
from typing import Final

from enroll import authority, downlink
from enroll.authority import Authority, TokenBytes
from enroll.commits import Commits
from enroll.connection import Limits
from enroll.directory import DirectoryFeed
from enroll.est_app import EstApp
from enroll.files import stamp
from enroll.home import check_private
from enroll.issuer import check_lives
from enroll.registry import Registry
from enroll.registry.reserve import RESERVE_BYTES, Reserve
from enroll.renewal import CHECK_SECONDS, Renewal
from enroll.server import EnrollServer
from enroll.service import Enrolment
from enroll.service.succession import end_due
from enroll.timekeeping import Timekeeping
from enroll.tls import ServerTls, server_context
from enroll.upload_app import UploadApp
from enroll.uploads import uploads_of
from fleet.clock import FlooredClock
from fleet.config import Address, FleetConfig
from fleet.errors import FleetError
from fleet.identity import Server
from fleet.layout import AdminHome, IdentityFiles, decode_run_file
from fleet.logs import event

_FILE_CHECK_SECONDS: Final = 2.0
_END_CHECK_SECONDS: Final = 1.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ports:
    """The world as the service may see it: time of day in UTC, seconds that never jump, entropy.

    `timekeeping` is the same time of day for whoever has to know how it is known; it has begun.
    """

    clock: Callable[[], datetime]
    monotonic: Callable[[], float]
    token_bytes: TokenBytes
    timekeeping: Timekeeping | None = None


@asynccontextmanager
async def serving(
    home: AdminHome,
    config: FleetConfig,
    registry: Registry,
    commits: Commits,
    ports: Ports,
    *,
    listen: Address,
    limits: Limits | None = None,
) -> AsyncIterator[Address]:
    """The service, accepting connections at the address given; at the end what was asked is answered first.

    Raises: FleetError (files, permissions, the address).
    """
    check_private(home.path)
    timekeeping = ports.timekeeping or Timekeeping(home, FlooredClock(ports.clock, ports.monotonic))
    cas = authority.load(home, config.trust_domain, config.crl_url)
    app = _est_app(home, config, registry, cas, ports)
    renewal = Renewal(home, config, registry, cas, ports.token_bytes)
    renewal.make_missing(ports.clock())
    renewal.renew_due(ports.clock())  # what ran out while nothing ran is good again before anyone looks
    tls = _tls(home, registry, cas, timekeeping)
    registry.reserve.fill()
    uploads = uploads_of(home, registry, config.uploads)
    uploads.store.prepare()
    with ThreadPoolExecutor(1, "feed") as readers:
        feed, files = DirectoryFeed(registry, commits, readers), UploadApp(app, uploads, ports.clock)
        server = EnrollServer(app, feed, lambda: tls.context, limits or Limits(), timekeeping.clock, files)
        address = server.start(listen)
        following = asyncio.gather(
            tls.follow(commits, readers),
            _keep_renewed(renewal, ports.clock, readers),
            _keep_ending(registry, ports.clock, readers),
            _keep_reserved(registry.reserve, readers),
            _keep_showing(home.enroll_server, tls),
            server.keep_swept(),
            timekeeping.keep(lambda: tls.context),
        )
        gc.collect()
        gc.freeze()  # what was loaded by now is no garbage, and is not looked through for any again
        try:
            yield address
        finally:
            await server.stop()
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)


def _tls(home: AdminHome, registry: Registry, cas: Authority, timekeeping: Timekeeping) -> ServerTls:
    """Raises: FleetError."""

    def new_context() -> SSLContext:
        context = server_context(home.enroll_server, (cas.root, cas.devices.certificate))
        timekeeping.settle(context)
        return context

    tls = ServerTls(new_context, registry)
    tls.refresh()
    return tls


def _est_app(home: AdminHome, config: FleetConfig, registry: Registry, cas: Authority, ports: Ports) -> EstApp:
    """Raises: FleetError (lives that no CA may give)."""
    check_lives(config.enroll_life)
    return EstApp(
        Enrolment(registry, cas.devices, cas.domain, ports.token_bytes, config.enroll_life),
        cas.certificates,
        lambda: broker_urls(home),
        ports.clock,
        ports.monotonic,
        is_pairing=config.enroll_pairing,
        recovery_grace=config.recovery_grace,
        signers=lambda: downlink.signers(home),
    )


async def _keep_renewed(renewal: Renewal, clock: Callable[[], datetime], executor: Executor) -> None:
    """Renew what is due, and make what somebody has removed, for ever."""
    while True:
        await asyncio.sleep(CHECK_SECONDS)
        for task in (renewal.make_missing, renewal.renew_due):
            await asyncio.get_running_loop().run_in_executor(executor, task, clock())


async def _keep_ending(registry: Registry, clock: Callable[[], datetime], executor: Executor) -> None:
    """End predecessors whose grace is over, for ever."""
    while True:
        await asyncio.sleep(_END_CHECK_SECONDS)
        try:
            ended = await asyncio.get_running_loop().run_in_executor(executor, end_due, registry, clock())
        except FleetError as error:  # a full disk is not for ever
            _log.warning(event("certificates.not_ended", reason=error.message))
            continue
        for device, serial in ended:
            _log.info(event("certificate.superseded", device=device, serial=serial))


async def _keep_reserved(reserve: Reserve, executor: Executor) -> None:
    """What revocations need on a full disk is there as soon as there is room for it, for ever; told when it is not."""
    known = RESERVE_BYTES
    while True:
        left = reserve.size_bytes
        if left < known:
            _log.warning(event("reserve.short", left_bytes=left, hint="free space on the registry's disk"))
        if known < RESERVE_BYTES <= left:
            _log.info(event("reserve.rebuilt", bytes=left))
        known = left
        await asyncio.sleep(_FILE_CHECK_SECONDS)
        if not reserve.is_whole and known < RESERVE_BYTES:  # what was used is told before
            await asyncio.get_running_loop().run_in_executor(executor, reserve.fill)


async def _keep_showing(files: IdentityFiles, tls: ServerTls) -> None:
    """Show whoever connects the certificate that is in the files by now, for ever."""
    shown, known = stamp(files.certificate), tls.context
    while True:
        await asyncio.sleep(_FILE_CHECK_SECONDS)
        found, context = stamp(files.certificate), tls.context
        if found is not None and (found != shown or context is not known):  # it may have been made of the old ones
            known = context
            try:
                context.load_cert_chain(files.certificate, files.key)
            except (OSError, SSLError) as error:
                _log.warning(event("identity.not_shown", reason=error))
            else:
                _log.info("identity.shown")
                shown = found


def broker_urls(home: AdminHome) -> tuple[str, ...]:
    """Where the broker said at ready that it is; read anew each time, because it may have moved."""
    try:
        return (decode_run_file(home.run_file(Server.BROKER).read_bytes()).url,)
    except (OSError, FleetError):
        return ()
