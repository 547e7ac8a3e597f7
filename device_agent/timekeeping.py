"""The time of one process: the system's clock as long as it is believed, else the best that is known (`clock`).

Whom it asks is the enrollment service, over a handshake that verifies everything but dates: up to the pinned root, the
host name, serverAuth and `server/enroll`. Nothing is sent on it but a request for what anybody may have, no certificate
of ours is shown, and the Date that comes back counts only within the validity of the chain that came with it. It is
kept in memory alone. What is written down is a time that both a verified service and a believed clock have named.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from datetime import datetime
from typing import Final

from device_agent import https, tls
from device_agent.clock import IMPROVE_SECONDS, REMEMBER_AFTER, Basis, Reading, Timeline, Told, timeline
from device_agent.store import Disk, replace_file
from fleet import clock
from fleet.clock import Validity
from fleet.errors import InvalidInput
from fleet.layout import AgentHome, Credential
from fleet.logs import event

_PUBLIC_PATH: Final = "/.well-known/est/cacerts"  # fleet.est.CACERTS, which `run` may not load: a test compares them
_log = logging.getLogger("device_agent.clock")


class Timekeeper:
    """`clock.Clock` by the system's clock and the home's file. `url` is the enrollment service, once it is known."""

    def __init__(
        self,
        system: Callable[[], datetime],
        monotonic: Callable[[], float],
        known: Timeline,
        *,
        url: str = "",
        remember: Callable[[datetime], None] | None = None,
    ) -> None:
        self._system = system
        self.monotonic = monotonic
        self._known = known
        self._url = url
        self._remember = remember
        self._remembered = known.floor.time
        self._told = Basis.SYSTEM
        self._improve_at = monotonic()
        self._lock = threading.Lock()

    def now(self) -> datetime:
        """The time, in UTC."""
        return self.reading().utc

    def reading(self) -> Reading:
        """See `Clock`. Whoever is the first to notice that the clock is wrong, or right again, logs it."""
        found = self._known.reading(self._system(), self.monotonic())
        if found.basis is not self._told:
            self._tell(found)
            with self._lock:
                self._known = self._known.reconciled(self._system(), self.monotonic())
        return found

    def _tell(self, found: Reading) -> None:
        with self._lock:
            before, self._told = self._told, found.basis
        if before is found.basis:
            return
        if found.basis is Basis.SYSTEM:
            _log.info(event("clock.believed", system=f"{found.system:%Y-%m-%dT%H:%M:%SZ}"))
        else:
            _log.warning(event("clock.wrong", basis=found.basis, reason=found.words))

    def verified(self, validity: Validity) -> None:
        """See `Clock`."""
        with self._lock:
            self._known = self._known.verified(validity, self._system(), self.monotonic())

    def heard(self, date: datetime) -> None:
        """See `Clock`."""
        with self._lock:
            self._known = self._known.heard(date, self._system(), self.monotonic())
            seen = self._known.floor.time
            is_news = seen - self._remembered >= REMEMBER_AFTER
            if is_news:
                self._remembered = seen
        if is_news and self._remember is not None:
            self._remember(seen)

    def ask(self, roots_pem: str) -> Told:
        """See `Clock`."""
        if not self._url:
            return Told.NOTHING
        context = tls.dateless_context(roots_pem, self)
        try:
            answer, validity = https.ask_dateless(https.Request(self._url, _PUBLIC_PATH), context)
            date = clock.parse_http_date(answer.headers.get("date", ""))
        except https.RequestFailed as error:
            _log.warning(event("clock.not_told", cause=error.failure.cause, detail=error.failure.detail))
            return Told.NOTHING
        except InvalidInput as error:
            _log.warning(event("clock.not_told", cause="no-date", detail=error.message))
            return Told.NONSENSE
        return self._take(date, validity)

    def improve(self, roots_pem: str) -> Told | None:
        """See `Clock`."""
        now = self.monotonic()
        if not self.reading().is_lower_bound or now < self._improve_at:
            return None
        self._improve_at = now + IMPROVE_SECONDS
        return self.ask(roots_pem)

    def _take(self, date: datetime, validity: Validity) -> Told:
        with self._lock:
            known = self._known.told(date, validity, self._system(), self.monotonic())
            self._known = known or self._known
        if known is None:
            fields = {"date": date.isoformat(), "not_before": validity.not_before.isoformat()}
            fields["not_after"] = validity.not_after.isoformat()
            _log.warning(event("clock.date_refused", **fields))
        self.reading()
        return Told.NONSENSE if known is None else Told.TIME

    def infer(self, validity: Validity) -> bool:
        """See `Clock`."""
        with self._lock:
            known = self._known.inferred(validity, self._system(), self.monotonic())
            self._known = known or self._known
        self.reading()
        return known is not None


def timekeeper(
    system: Callable[[], datetime],
    monotonic: Callable[[], float],
    *,
    home: AgentHome | None = None,
    disk: Disk | None = None,
    credential: Credential | None = None,
    url: str = "",
) -> Timekeeper:
    """The time for what runs in `home`; with a `disk` it is remembered there."""
    known = timeline(monotonic(), credential, None if home is None else read_seen(home))
    url = url or (credential.enroll_url if credential is not None else "")
    remember = None
    if home is not None and disk is not None:

        def remember(seen: datetime) -> None:
            with contextlib.suppress(OSError):  # a floor that is older is what it costs
                replace_file(disk, home.clock, clock.encode_seen(seen))

    return Timekeeper(system, monotonic, known, url=url, remember=remember)


def read_seen(home: AgentHome) -> datetime | None:
    """The time that this home last knew for sure; None if it never did, or if the file is damaged."""
    try:
        return clock.decode_seen(home.clock.read_bytes())
    except (OSError, InvalidInput):
        return None
