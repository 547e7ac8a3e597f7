"""The fleet's CRLs published from a home: kept current, and served over plain http."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from enroll import authority
from enroll.commits import Commits
from enroll.crl_publisher import CrlPublisher
from enroll.crl_server import PREFIX, CrlServer
from enroll.registry import Registry
from enroll.serving import Ports
from fleet.config import Address, FleetConfig
from fleet.errors import FleetError
from fleet.layout import AdminHome
from fleet.logs import event

_log = logging.getLogger(__name__)


@asynccontextmanager
async def publishing(
    home: AdminHome,
    config: FleetConfig,
    registry: Registry,
    commits: Commits,
    ports: Ports,
    *,
    listen: Address | None,
    is_listening_optional: bool = False,
) -> AsyncIterator[Address | None]:
    """CRLs in their files, and served at the address given; None if nothing listens.

    Raises: FleetError (files; the address, unless listening is optional: then the log says so).
    """
    cas = authority.load(home, config.trust_domain, config.crl_url)
    publisher = CrlPublisher(home, registry, cas, ports.monotonic)
    server = CrlServer(publisher.find, config.crl_url)
    with ThreadPoolExecutor(1, "crl") as makers:
        address = _start(server, listen, is_optional=is_listening_optional)
        following = asyncio.create_task(publisher.follow(commits, ports.clock, makers))
        try:
            yield address
        finally:
            await server.stop()
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await following


def _start(server: CrlServer, listen: Address | None, *, is_optional: bool) -> Address | None:
    if listen is None:
        _log.info(event("crl.not_served", reason="enroll.crl_listen is off"))
        return None
    try:
        address = server.start(listen)
    except FleetError as error:
        if not is_optional:
            raise FleetError(error.message, hint="give another address: --crl-listen HOST:PORT, or off") from error
        _log.warning(event("crl.not_served", reason=error.message, hint="--crl-listen HOST:PORT, or off"))
        return None
    _log.info(event("crl.ready", url=f"http://{address}{PREFIX}"))
    return address
