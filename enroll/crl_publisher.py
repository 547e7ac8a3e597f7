"""The fleet's CRLs, always current: in memory for who serves them, and in files for programs on this host.

One for each shard, named by its number, and one for all certificates of an issuing CA, named as the CA: verifiers that
do not follow distribution points (Mosquitto, RabbitMQ) take one list, and refuse it if it is a shard's. `root` is there
once an admin has made it: its key is not here.

A list is made when the service starts, when a line of it changes, and when half of its life has passed. Files are
replaced whole; one that cannot be written is served from memory all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from enroll import crl, files
from enroll.authority import Authority
from enroll.commits import Commits
from enroll.crl import Issue
from enroll.home import make_private
from enroll.issuer import Issuer
from enroll.registry import Registry, revocations
from enroll.registry.identity import SERVERS_SHARD
from enroll.registry.records import Revocation
from fleet.errors import FleetError
from fleet.layout import AdminHome
from fleet.logs import event

ROOT: Final = "root"
CHECK_SECONDS: Final = 60.0
"""How soon a clock that jumped, or half a life that passed, is noticed; changes are noticed at once."""
_PAUSE_SECONDS: Final = 0.2  # most commits are no revocation, and there may be hundreds a second
_RETRY_SECONDS: Final = 5.0
_REST_FACTOR: Final = 4
"""A list rests for so many times as long as it took to make: a storm of changes costs a fifth of a core at most."""
_ALARM: Final = timedelta(days=1)
_NAMES_TOLD: Final = 5

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Published:
    """One list, ready to be sent."""

    issue: Issue
    lines: int
    der: bytes = field(repr=False)
    pem: bytes = field(repr=False)
    etag: str


def published(list_: x509.CertificateRevocationList) -> Published:
    """A list as it is sent. Raises: ValueError (none of ours)."""
    der = list_.public_bytes(Encoding.DER)
    etag = hashlib.sha256(der).hexdigest()[:32]
    return Published(crl.issue_of(list_), len(list_), der, list_.public_bytes(Encoding.PEM), etag)


def read(home: AdminHome, name: str) -> Published | None:
    """The list of that name as it was last written; None if there is none that can be used."""
    try:
        return published(x509.load_der_x509_crl(home.crl(name).read_bytes()))
    except (OSError, ValueError):
        return None


def write(home: AdminHome, name: str, made: Published) -> None:
    """Replace the files of a list; whoever reads finds the whole new one or the whole old one. Raises: OSError."""
    path = home.crl(name)
    make_private(path.parent)
    files.replace(path, made.der)
    if not name.isdigit():  # what reads PEM takes no shards
        files.replace(path.with_suffix(".pem"), made.pem)


@dataclass(frozen=True, slots=True)
class Source:
    """What a list is made of: the lines of one shard, or of all certificates of its issuer."""

    name: str
    issuer: Issuer
    shard: int | None
    revision: int

    @property
    def url(self) -> str | None:
        """What the certificates of the shard call it."""
        return None if self.shard is None else self.issuer.crl_url(self.shard)

    def make(self, registry: Registry, previous: Issue | None, now: datetime) -> Published:
        """The list as of now. Raises: Misissued, RegistryUnavailable."""
        since = crl.EVERYTHING if previous is None else previous.keeps(now)
        lines = self._lines(registry, since)
        return published(crl.build(self.issuer, crl.next_issue(previous, now), lines, self.url))

    def _lines(self, registry: Registry, since: datetime) -> list[Revocation]:
        with registry.read() as transaction:
            if self.shard is None:
                return list(revocations.of_issuer(transaction, self.issuer.name, since))
            return list(revocations.of_shard(transaction, self.shard, since))


def sources(registry: Registry, authority: Authority) -> Iterator[Source]:
    """All lists that the issuing CAs sign: the shards, then those of whole issuers. Raises: RegistryUnavailable."""
    with registry.read() as transaction:
        revisions = revocations.revisions(transaction)
    for shard, revision in revisions.items():
        yield Source(str(shard), authority.servers if shard == SERVERS_SHARD else authority.devices, shard, revision)
    of_servers = revisions[SERVERS_SHARD]
    yield Source(authority.servers.name, authority.servers, None, of_servers)
    yield Source(authority.devices.name, authority.devices, None, sum(revisions.values()) - of_servers)


class CrlPublisher:
    """Keeps all lists of a fleet current. `refresh` is for one thread; `find` is for any."""

    def __init__(
        self, home: AdminHome, registry: Registry, authority: Authority, monotonic: Callable[[], float]
    ) -> None:
        self._home = home
        self._registry = registry
        self._authority = authority
        self._monotonic = monotonic
        self._lists: dict[str, Published] = {}
        self._revisions: dict[str, int] = {}
        self._resting: dict[str, float] = {}
        self._root_stamp = 0
        self._is_complete = asyncio.Event()

    async def find(self, name: str, wait_seconds: float) -> Published | None:
        """The current list of that name; right after the start it may have to be made first."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._is_complete.wait(), wait_seconds)
        return self._lists.get(name)

    async def follow(self, commits: Commits, clock: Callable[[], datetime], executor: Executor) -> None:
        """Refresh after commits, those of a moment together, and every CHECK_SECONDS, until the service stops."""
        loop = asyncio.get_running_loop()
        while not commits.is_over:
            changed = commits.next
            wait = await loop.run_in_executor(executor, self.refresh, clock())
            self._is_complete.set()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), wait)
            await asyncio.sleep(_PAUSE_SECONDS)

    def refresh(self, now: datetime) -> float:
        """Make what is missing, changed or due; in how many seconds to look again. Told in the log, failures too."""
        self._take_root()
        try:
            found = list(sources(self._registry, self._authority))
        except FleetError as error:
            _log.warning(event("crl.not_published", reason=error.message))
            return _RETRY_SECONDS
        waits, made = [CHECK_SECONDS], []
        for source in found:
            if not self._is_needed(source, now):
                continue
            rest = self._resting.get(source.name, 0.0) - self._monotonic()
            if rest > 0:
                waits.append(rest)
            elif self._publish(source, now):
                made.append(source.name)
            else:
                waits.append(_RETRY_SECONDS)
        if made:
            names = " ".join(made[:_NAMES_TOLD]) + (" ..." if len(made) > _NAMES_TOLD else "")
            _log.info(event("crl.published", lists=len(made), names=names))
        return min(waits)

    def _is_needed(self, source: Source, now: datetime) -> bool:
        known = self._lists.get(source.name)
        return known is None or self._revisions.get(source.name) != source.revision or known.issue.is_due(now)

    def _publish(self, source: Source, now: datetime) -> bool:
        began = self._monotonic()
        previous = self._lists.get(source.name) or read(self._home, source.name)
        try:
            made = source.make(self._registry, None if previous is None else previous.issue, now)
        except FleetError as error:
            is_alarming = previous is None or previous.issue.next_update - now < _ALARM
            level = logging.ERROR if is_alarming else logging.WARNING
            _log.log(level, event("crl.not_published", name=source.name, reason=error.message))
            return False
        self._lists[source.name], self._revisions[source.name] = made, source.revision
        try:
            write(self._home, source.name, made)
        except OSError as error:
            _log.warning(event("crl.not_written", name=source.name, reason=error.strerror))
        ended = self._monotonic()
        self._resting[source.name] = ended + _REST_FACTOR * (ended - began)
        return True

    def _take_root(self) -> None:
        """What an admin has made with the root's key, as soon as it is there."""
        try:
            stamp = self._home.crl(ROOT).stat().st_mtime_ns
        except OSError:
            return
        if stamp != self._root_stamp and (found := read(self._home, ROOT)) is not None:
            self._lists[ROOT], self._root_stamp = found, stamp
