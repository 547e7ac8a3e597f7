"""A device in 1970 and servers of every kind, over real TLS: who gets to know anything of it, and who does not.

What the process' own clock says is 1970 here, and OpenSSL's is right: so a chain passes only by what we check.
"""

from __future__ import annotations

import ssl
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from device_agent import https, timekeeping, tls
from device_agent.clock import Basis, Told
from device_agent.failures import Cause
from device_agent.https import Request, RequestFailed
from device_agent.store import PosixDisk
from device_agent.timekeeping import Timekeeper, read_seen, timekeeper
from fleet import est
from fleet.address import Address
from fleet.clock import NO_CHECK_TIME, encode_seen, format_http_date
from fleet.identity import Server
from fleet.layout import AgentHome
from tests.unit.device_agent.authority import DAY, Issued, new_authority
from tests.unit.device_agent.clocks import real_clock
from tests.unit.device_agent.servers import Listener, http_answer, read_request, server_context, tls_server

OURS, FOREIGN = new_authority(), new_authority("foreign")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
FAR = datetime(2040, 6, 1, tzinfo=UTC)


class Service:
    """Answers with a Date of its choice, and keeps what it was asked."""

    def __init__(self, date: datetime | None) -> None:
        self.date = date
        self.asked: list[str] = []

    def __call__(self, connection: ssl.SSLSocket) -> None:
        request = read_request(connection)
        if request:
            self.asked.append(request.split(b" ")[1].decode())
            date = "" if self.date is None else f"Date: {format_http_date(self.date)}\r\n"
            connection.sendall(http_answer("200 OK", b"fine", date))


def now() -> datetime:
    return datetime.now(UTC)


def in_1970(url: str = "", home: AgentHome | None = None) -> Timekeeper:
    """The time of a process that was started in 1970."""
    return timekeeper(lambda: EPOCH, time.monotonic, home=home, disk=PosixDisk() if home else None, url=url)


def home_that_was_last_seen(folder: Path, seen: datetime) -> AgentHome:
    home = AgentHome(folder / "agent")
    home.path.mkdir(mode=0o700)
    home.clock.write_bytes(encode_seen(seen))
    return home


def ask(server: Listener, clock: Timekeeper) -> https.Answer:
    """A request with a secret in it."""
    context = tls.context_for(Server.ENROLL, OURS.roots_pem, clock)
    return https.send(Request(server.url, "/secret", headers={"Authorization": "token"}), context)


def outcome(shown: Issued, date: datetime | None, folder: Path, seen: datetime | None = None) -> tuple[str, list[str]]:
    """What becomes of a request by a device in 1970 to a server that shows `shown`, and what that server heard."""
    service = Service(date)
    with tls_server(server_context(shown, folder / "server"), service) as server:
        clock = in_1970(server.url, home_that_was_last_seen(folder, seen) if seen else None)
        try:
            return str(ask(server, clock).status), service.asked
        except RequestFailed as error:
            return error.failure.cause.value, service.asked


def test_a_device_in_1970_finds_the_time_and_its_service(tmp_path: Path) -> None:
    """A Pi without a battery could never enrol: by its clock nothing of the fleet is valid yet."""
    service = Service(now())
    with tls_server(server_context(OURS.server("enroll"), tmp_path), service) as server:
        clock = in_1970(server.url)
        assert 200 == ask(server, clock).status
        assert [timekeeping._PUBLIC_PATH, "/secret"] == service.asked
        assert Basis.SERVER is clock.reading().basis
        assert abs(clock.now() - now()) < MINUTE
        assert 200 == ask(server, clock).status  # it asks once
    assert [timekeeping._PUBLIC_PATH, "/secret", "/secret"] == service.asked


def test_what_is_asked_without_dates_is_what_anybody_may_have() -> None:
    """That connection is with whoever holds any certificate of the service's, an old one too."""
    assert est.CACERTS == timekeeping._PUBLIC_PATH


def test_no_certificate_of_ours_is_shown_to_who_is_asked_for_the_time(tmp_path: Path) -> None:
    """An impostor with an old key would learn who comes by."""
    shown: list[bytes | None] = []
    context = server_context(OURS.server("enroll"), tmp_path)
    context.load_verify_locations(cadata=OURS.roots_pem)
    context.verify_mode = ssl.CERT_OPTIONAL

    def handle(connection: ssl.SSLSocket) -> None:
        shown.append(connection.getpeercert(binary_form=True))
        Service(now())(connection)

    with tls_server(context, handle) as server:
        assert Told.TIME is in_1970(server.url).ask(OURS.roots_pem)
    assert [None] == shown


@pytest.mark.parametrize(
    ("shown", "cause"),
    [
        (lambda: FOREIGN.server("enroll"), Cause.NOT_OUR_CA),
        (lambda: OURS.server("broker"), Cause.IMPOSTOR),
        (lambda: OURS.client("enroll", role="server"), Cause.IMPOSTOR),
        (lambda: OURS.client("pump-08"), Cause.IMPOSTOR),
        (lambda: OURS.server("enroll", host="elsewhere.example"), Cause.WRONG_HOST),
    ],
    ids=["another-root", "our-broker", "a-device-named-server", "a-device", "another-host"],
)
def test_a_wrong_clock_excuses_nothing_but_dates(shown: object, cause: Cause, tmp_path: Path) -> None:
    """Whoever can make a device's clock wrong could stand in for its service."""
    assert callable(shown)
    assert (cause.value, []) == outcome(shown(), now(), tmp_path)


def test_a_certificate_that_is_not_valid_yet_never_passes(tmp_path: Path) -> None:
    """By the time that its own server tells it is not: only a clock that nobody corrects would say so."""
    early = OURS.server("enroll", starts=DAY)
    assert (Cause.NOT_YET_VALID.value, [timekeeping._PUBLIC_PATH]) == outcome(early, now(), tmp_path)


def test_a_stolen_expired_certificate_does_not_pass_whatever_date_it_tells(tmp_path: Path) -> None:
    """The floor: the device was online after that certificate had ended, so it cannot be that early again."""
    stolen = OURS.server("enroll", starts=-timedelta(minutes=50), ends=-30 * MINUTE)
    for number, date in enumerate((now() - 40 * MINUTE, EPOCH, now(), FAR, None)):
        folder = tmp_path / str(number)
        folder.mkdir()
        cause, asked = outcome(stolen, date, folder, seen=now() - 10 * MINUTE)
        assert (Cause.PEER_EXPIRED.value, {timekeeping._PUBLIC_PATH}) == (cause, set(asked))


@pytest.mark.parametrize("date", [FAR, None], ids=["2040", "none"])
def test_a_date_that_cannot_be_is_not_taken(date: datetime | None, tmp_path: Path) -> None:
    """A device would live in 2040, by the word of whoever holds one certificate."""
    service = Service(date)
    with tls_server(server_context(OURS.server("enroll"), tmp_path), service) as server:
        clock = in_1970(server.url)
        assert Told.NONSENSE is clock.ask(OURS.roots_pem)
        assert Basis.FLOOR is clock.reading().basis


def test_a_service_that_knows_no_better_lifts_nobody_below_the_floor(tmp_path: Path) -> None:
    """Its own clock may be in 1970 too: what counts then is the floor."""
    service = Service(EPOCH)
    with tls_server(server_context(OURS.server("enroll"), tmp_path), service) as server:
        clock = in_1970(server.url, home_that_was_last_seen(tmp_path, now() - 5 * MINUTE))
        assert 200 == ask(server, clock).status
        assert timedelta(0) <= now() - clock.now() < 6 * MINUTE


def test_with_the_service_away_a_brokers_chain_will_do(tmp_path: Path) -> None:
    """A Pi that wakes up with its service away would be offline if its broker's certificate is younger than its own."""
    context = tls.context_for(Server.BROKER, OURS.roots_pem, clock := in_1970())
    with (
        tls_server(server_context(OURS.server("broker"), tmp_path), Service(None)) as server,
        context.in_time(lambda: tls.connect(context, Address("127.0.0.1", server.port), 5.0)) as connection,
    ):
        assert "TLSv1.3" == connection.version()
    assert Basis.ISSUED is clock.reading().basis


def test_a_clock_that_is_right_leaves_dates_to_openssl(tmp_path: Path) -> None:
    """Every device would hang on our own check, where OpenSSL's would do."""
    service, clock = Service(now()), real_clock()
    with tls_server(server_context(OURS.server("enroll"), tmp_path), service) as server:
        context = tls.context_for(Server.ENROLL, OURS.roots_pem, clock)
        assert 200 == https.send(Request(server.url, "/secret"), context).status
        assert not context.verify_flags & NO_CHECK_TIME
    assert (Basis.SYSTEM, True) == (clock.reading().basis, clock.reading().is_confirmed)


def test_the_time_is_remembered_when_service_and_clock_agree(tmp_path: Path) -> None:
    """After a power cut a stolen certificate that had ended would pass again."""
    home = AgentHome(tmp_path / "agent")
    home.path.mkdir()
    clock = timekeeper(now, time.monotonic, home=home, disk=PosixDisk())
    with tls_server(server_context(OURS.server("enroll"), tmp_path), Service(now())) as server:
        ask(server, clock)
    seen = read_seen(home)
    assert seen is not None
    assert timedelta(0) <= now() - seen < MINUTE


def test_what_a_device_in_1970_was_told_is_not_remembered(tmp_path: Path) -> None:
    """A Date that came without a check of dates would be a floor for ever."""
    home = AgentHome(tmp_path / "agent")
    home.path.mkdir()
    with tls_server(server_context(OURS.server("enroll"), tmp_path), Service(now())) as server:
        ask(server, in_1970(server.url, home))
    assert read_seen(home) is None


@pytest.mark.parametrize("data", [b"", b"{}", b'{"v": 1, "seen": "yesterday"}', b"\xff"])
def test_a_damaged_file_is_no_floor_and_no_fault(data: bytes, tmp_path: Path) -> None:
    """A power cut in the middle of a write would keep the device offline."""
    home = home_that_was_last_seen(tmp_path, now())
    home.clock.write_bytes(data)
    assert read_seen(home) is None
