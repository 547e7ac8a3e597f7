"""The enrollment service put together from a home: what `enroll serve` runs, beside dispatch."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime

from enroll import authority
from enroll.authority import TokenBytes
from enroll.commits import Commits
from enroll.connection import Limits
from enroll.directory import DirectoryFeed
from enroll.est_app import EstApp
from enroll.home import check_private
from enroll.registry import Registry
from enroll.server import EnrollServer
from enroll.service import Enrolment
from enroll.tls import server_context
from fleet.config import Address, FleetConfig
from fleet.errors import FleetError
from fleet.identity import Server
from fleet.layout import AdminHome, decode_run_file


@dataclass(frozen=True, slots=True)
class Ports:
    """The world as the service may see it: time of day in UTC, seconds that never jump, entropy."""

    clock: Callable[[], datetime]
    monotonic: Callable[[], float]
    token_bytes: TokenBytes


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
    cas = authority.load(home, config.trust_domain, config.crl_url)
    enrolment = Enrolment(registry, cas.devices, cas.domain, ports.token_bytes)
    app = EstApp(
        enrolment,
        cas.certificates,
        lambda: broker_urls(home),
        ports.clock,
        ports.monotonic,
        is_pairing=config.enroll_pairing,
    )
    context = server_context(home.enroll_server, (cas.root, cas.devices.certificate))
    with ThreadPoolExecutor(1, "feed") as readers:
        server = EnrollServer(app, DirectoryFeed(registry, commits, readers), context, limits or Limits())
        address = await server.start(listen)
        gc.collect()
        gc.freeze()  # what was loaded by now is no garbage, and is not looked through for any again
        try:
            yield address
        finally:
            await server.stop()


def broker_urls(home: AdminHome) -> tuple[str, ...]:
    """Where the broker said at ready that it is; read anew each time, because it may have moved."""
    try:
        return (decode_run_file(home.run_file(Server.BROKER).read_bytes()).url,)
    except (OSError, FleetError):
        return ()
