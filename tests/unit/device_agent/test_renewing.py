"""What the service's answers mean for a renewal, over real TLS, and what is left in the home."""

from __future__ import annotations

import fcntl
import json
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from device_agent.credentials import load_key, new_key_pem
from device_agent.renewing import Later, NotRenewed, Order, Renewing
from device_agent.store import PosixDisk
from device_agent.succession import Succession
from fleet import est
from fleet.identity import DeviceId, Role, Serial
from fleet.layout import AgentHome, Credential
from tests.unit.device_agent.authority import Authority, new_authority
from tests.unit.device_agent.clocks import real_clock
from tests.unit.device_agent.servers import http_answer, read_request, server_context, tls_server

PUMP = DeviceId("pump-07")
Answer = Callable[[], bytes]
REENROL = est.SIMPLE_REENROLL


@pytest.fixture(scope="module", name="authority")
def _authority() -> Authority:
    return new_authority()


def says(status: str, body: bytes = b"the reason\n", headers: str = "") -> Answer:
    return lambda: http_answer(status, body, headers)


def certificates(*found: x509.Certificate) -> bytes:
    return http_answer("200 OK", est.encode_certificates(found))


@dataclass
class Device:
    """A device whose service answers as the test says, by path; what is not said is 404."""

    authority: Authority
    home: AgentHome
    answers: dict[str, Answer] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.answers |= {
            REENROL: lambda: self.certify(PUMP),
            est.CACERTS: lambda: certificates(self.authority.devices.certificate),
            est.CONFIG: says("200 OK", json.dumps({"v": 1, "brokers": []}).encode()),
        }

    def certify(self, device: str, key_pem: bytes | None = None) -> bytes:
        """As the service does it, whose key it knows from the request."""
        key = load_key(key_pem or (self.home.generation(2) / "key.pem").read_bytes())
        return certificates(self.authority.client(device, key=key).certificate)

    def serve(self, connection: ssl.SSLSocket) -> None:
        path = read_request(connection).split(b" ")[1].decode()
        self.asked.append(path)
        connection.sendall(self.answers.get(path, says("404 Not Found"))())

    def prepare(self, *, is_paced: bool = True, is_fresh: bool = False) -> Credential | Later:
        renewing = Renewing(self.home, PosixDisk(), real_clock())
        return renewing.prepare(Order(is_paced, is_fresh))

    def problem(self, *, is_paced: bool = True, is_fresh: bool = False) -> str:
        """The code of an attempt that fails; what is in use stays so."""
        with pytest.raises(NotRenewed) as caught:
            self.prepare(is_paced=is_paced, is_fresh=is_fresh)
        assert "gen-1" == self.home.current.readlink().name
        return str(caught.value.problem.code)

    def key(self) -> bytes | None:
        """That of the generation to come."""
        path = self.home.generation(2) / "key.pem"
        return path.read_bytes() if path.exists() else None


@contextmanager
def device(authority: Authority, folder: Path, *, days_left: int = 5) -> Iterator[Device]:
    """One whose certificate has so many days of 90 left."""
    home, now = AgentHome(folder / "home"), datetime.now(UTC)
    authority.client(PUMP).write(home.generation(1))
    home.path.chmod(0o700)
    home.current.symlink_to("gen-1")
    home.trust.write_text(authority.roots_pem)
    found = Device(authority, home)
    clients = b"".join((authority.devices.pem, authority.roots_pem.encode())).decode()
    context = server_context(authority.server("enroll"), folder / "enroll", clients)
    with tls_server(context, found.serve) as listener:
        begin, end = now - timedelta(days=90 - days_left), now + timedelta(days=days_left)
        home.meta.write_bytes(Credential(PUMP, Role.DEVICE, Serial("5f"), begin, end, listener.url).encode())
        yield found


def test_a_whole_renewal_leaves_a_candidate_and_the_present_one_in_use(authority: Authority, tmp_path: Path) -> None:
    """The device would be without a certificate, or with one that nobody tried."""
    with device(authority, tmp_path) as pump:
        credential = pump.prepare(is_paced=False)
        assert [est.RENEWAL_INFO, REENROL, est.CACERTS, est.CONFIG] == pump.asked
        candidate = Succession(pump.home, PosixDisk()).candidate()
        assert candidate is not None
        assert (credential, "gen-2") == (candidate.credential, candidate.folder.name)
        assert "gen-1" == pump.home.current.readlink().name


@pytest.mark.parametrize(
    ("status", "code", "is_key_kept"),
    [
        ("400 Bad Request", "renewal-refused", False),
        ("401 Unauthorized", "renewal-refused", False),
        ("403 Forbidden", "renewal-refused", False),
        ("429 Too Many Requests", "service-busy", True),
        ("500 Internal Server Error", "service-error", True),
        ("502 Bad Gateway", "service-error", True),
        ("503 Service Unavailable", "service-busy", True),
        ("302 Found", "service-error", True),
    ],
)
def test_an_answer_that_is_no_certificate(
    authority: Authority, tmp_path: Path, status: str, code: str, is_key_kept: bool
) -> None:
    """A key that was certified meanwhile would be thrown away, or one that never will be kept for ever."""
    with device(authority, tmp_path) as pump:
        good = pump.answers[REENROL]
        pump.answers[REENROL] = says(status, headers="Retry-After: 7\r\n")
        assert code == pump.problem()
        key = pump.key()
        assert is_key_kept == (key is not None)
        pump.answers[REENROL] = good
        pump.prepare()
        assert not is_key_kept or key == pump.key()


def test_a_certificate_that_is_not_ours_is_not_kept(authority: Authority, tmp_path: Path) -> None:
    """A service that is wrong, or was taken over, could give a device another's identity, or a key that it knows."""
    with device(authority, tmp_path) as pump:
        for answer in (
            lambda: pump.certify("pump-08"),
            lambda: pump.certify(PUMP, new_key_pem()),
            lambda: certificates(new_authority("mallory").client(PUMP, load_key(pump.key() or b"")).certificate),
        ):
            pump.answers[REENROL] = answer
            assert "bad-certificate" == pump.problem()
            assert None is Succession(pump.home, PosixDisk()).candidate()
        pump.answers[REENROL] = says("200 OK", b"not base64!")
        assert "bad-answer" == pump.problem()


def test_the_service_may_ask_to_wait(authority: Authority, tmp_path: Path) -> None:
    """A storm would come through, or a device that has waited be asked to wait again."""
    with device(authority, tmp_path) as pump:
        pump.answers[est.RENEWAL_INFO] = says("200 OK", b'{"v": 1, "wait_seconds": 40.5}')
        assert Later(40.5) == pump.prepare(is_paced=False)
        assert None is pump.key()
        assert isinstance(pump.prepare(is_paced=True), Credential)


@pytest.mark.parametrize("body", [b"[]", b'{"wait_seconds": NaN}', b"{", b"\xff"])
def test_a_wait_that_is_none_is_no_wait(authority: Authority, tmp_path: Path, body: bytes) -> None:
    """The agent would end in a traceback."""
    with device(authority, tmp_path) as pump:
        pump.answers[est.RENEWAL_INFO] = says("200 OK", body)
        assert "bad-answer" == pump.problem(is_paced=False)


def test_without_a_broker_there_is_no_proof_until_the_end_is_near(authority: Authority, tmp_path: Path) -> None:
    """A certificate would be put into use untried, or a device run out while its broker is away."""
    with device(authority, tmp_path, days_left=30) as pump:
        assert "no-broker" == pump.problem()
        assert "no-broker" == pump.problem()
        assert 1 == pump.asked.count(REENROL), "a candidate that was not proven is proven, not made again"


def test_a_candidate_that_the_service_ended_is_made_anew(authority: Authority, tmp_path: Path) -> None:
    """A device would try for ever what can never succeed."""
    with device(authority, tmp_path) as pump:
        good = pump.answers[est.CONFIG]
        pump.answers[est.CONFIG] = says("403 Forbidden")
        assert "not-admitted" == pump.problem()
        assert None is pump.key()
        pump.answers[est.CONFIG] = good
        pump.prepare()


def test_a_candidate_that_a_copy_took_the_place_of_is_made_anew(authority: Authority, tmp_path: Path) -> None:
    """Whoever copied a card could keep its owner from renewing, by renewing once and never using it."""
    with device(authority, tmp_path) as pump:
        good = pump.answers[est.CONFIG]
        pump.answers[est.CONFIG] = says("403 Forbidden", headers="Enroll-Problem: identity-used-twice\r\n")
        assert "not-admitted" == pump.problem()
        pump.answers[est.CONFIG] = good
        pump.prepare()


def test_a_frozen_device_says_so_and_keeps_what_it_has(authority: Authority, tmp_path: Path) -> None:
    """A person would look for a revocation, and the device for another key, each time that it asks."""
    with device(authority, tmp_path) as pump:
        frozen = says("403 Forbidden", headers="Enroll-Problem: identity-used-twice\r\n")
        pump.answers[est.RENEWAL_INFO] = pump.answers[REENROL] = frozen
        assert "identity-used-twice" == pump.problem(is_paced=False)
        assert [est.RENEWAL_INFO] == pump.asked
        assert "identity-used-twice" == pump.problem()
        key = pump.key()
        assert "identity-used-twice" == pump.problem()
        assert key == pump.key() is not None


def test_a_suspended_device_keeps_its_candidate(authority: Authority, tmp_path: Path) -> None:
    """The candidate may be the one that counts: the present one may have ended, and the device be resumed."""
    with device(authority, tmp_path) as pump:
        pump.prepare()
        key = pump.key()
        for path in (est.CONFIG, est.RENEWAL_INFO, REENROL):
            pump.answers[path] = says("403 Forbidden")
        for is_fresh in (False, True):
            assert "renewal-refused" == pump.problem(is_fresh=is_fresh)
        assert key == pump.key()


def test_a_present_certificate_that_ended_gives_way_to_its_candidate(authority: Authority, tmp_path: Path) -> None:
    """A device with a good certificate on its disk would be lost."""
    with device(authority, tmp_path) as pump:
        made = pump.prepare()
        pump.answers[est.RENEWAL_INFO] = pump.answers[REENROL] = says("403 Forbidden")
        assert made == pump.prepare(is_paced=False, is_fresh=True)


def test_a_fresh_one_is_made_when_the_last_was_refused(authority: Authority, tmp_path: Path) -> None:
    """What the broker refuses would be tried again and again."""
    with device(authority, tmp_path) as pump:
        pump.prepare()
        key = pump.key()
        pump.prepare(is_fresh=True)
        assert key != pump.key()


def test_one_renewal_at_a_time(authority: Authority, tmp_path: Path) -> None:
    """Two would make two children of one certificate, which looks like a thief's."""
    with device(authority, tmp_path) as pump:
        (pump.home.path / "run").mkdir()
        with (pump.home.path / "run" / "renewal.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            assert "under-way" == pump.problem()
        assert [] == pump.asked
