"""What a service's answers mean for a device whose certificate has expired."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from device_agent.credentials import load_key, new_key_pem
from device_agent.https import Answer, Request
from device_agent.recovering import NotExpired, Recovering, Signer
from device_agent.renewal import Code, NotRenewed, Problem
from fleet import est, pki, recovery
from fleet.identity import DeviceId
from fleet.recovery import Claim
from tests.unit.device_agent.authority import Authority, new_authority

PUMP = DeviceId("pump-07")
URL = "https://gateway.local:8443"
CSR = est.build_csr(load_key(new_key_pem()), PUMP)
NONCE = "n" * 54
NEVER_CONFIRMED = Answer(403, {est.PROBLEM_HEADER.lower(): est.NEVER_CONFIRMED}, b"never confirmed\n")


@pytest.fixture(scope="module", name="authority")
def _authority() -> Authority:
    return new_authority()


def refused(status: int, reason: str = "the reason", headers: Mapping[str, str] | None = None) -> Answer:
    return Answer(status, dict(headers or {}), f"{reason}\nhint: more\n".encode())


@dataclass
class Home:
    """Some generations, and a service that answers in turn; of the last answer it never tires."""

    authority: Authority
    folder: Path
    answers: list[Answer]
    nonce: Answer = field(default_factory=lambda: Answer(200, {}, recovery.encode_nonce(NONCE)))
    claims: list[Claim] = field(default_factory=list)

    def generation(self, name: str, *, is_newer: bool = False) -> Signer:
        self.authority.client(PUMP).write(self.folder / name)
        return Signer(self.folder / name, is_newer)

    def certificate(self, signer: Signer) -> x509.Certificate:
        return x509.load_pem_x509_certificate((signer.folder / "cert.pem").read_bytes())

    def send(self, request: Request) -> Answer:
        if request.path == recovery.NONCE:
            return self.nonce
        assert (recovery.RECOVER, "POST") == (request.path, request.method)
        assert "10000000a1b2" == request.headers[est.SERIAL_HEADER]
        assert request.body is not None
        self.claims.append(recovery.decode_claim(request.body))
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    def ask(self, *signers: Signer) -> list[x509.Certificate]:
        def check(answer: Answer) -> None:
            if answer.status != 200:
                raise NotRenewed(Problem(Code.SERVICE, f"HTTP {answer.status}", ""))

        says = {est.SERIAL_HEADER: "10000000a1b2"}
        return Recovering(PUMP, URL, "gateway.local:8443", says, self.send, check).ask(CSR, signers)

    def problem(self, *signers: Signer) -> NotRenewed:
        with pytest.raises(NotRenewed) as caught:
            self.ask(*signers)
        return caught.value


def given(authority: Authority) -> Answer:
    return Answer(200, {}, est.encode_certificates([authority.client(PUMP).certificate]))


def test_the_old_key_signs_its_certificate_the_nonce_and_the_request(authority: Authority, tmp_path: Path) -> None:
    """What the device signs could be used for something else, or is not taken."""
    home = Home(authority, tmp_path, [given(authority)])
    used = home.generation("gen-1")
    assert 1 == len(home.ask(used))
    [claim] = home.claims
    certificate = home.certificate(used)
    key = pki.check_public_key(certificate.public_key())
    said = recovery.statement(certificate.public_bytes(Encoding.DER), NONCE, CSR)
    assert (pki.serial_of(certificate), NONCE, CSR) == (claim.serial, claim.nonce, claim.csr)
    assert pki.is_signed(key, said, claim.signature)


@pytest.mark.parametrize(
    ("answer", "code", "spends_key"),
    [
        (refused(400), Code.RECOVERY_REFUSED, True),
        (refused(401), Code.NOT_RECOGNISED, False),
        (refused(403), Code.RECOVERY_REFUSED, True),
        (refused(403, headers={"enroll-request": "denied"}), Code.DENIED, False),
        (refused(403, headers={"enroll-problem": "identity-used-twice"}), "identity-used-twice", False),
        (refused(202, headers={"enroll-request": "abcd", "retry-after": "7"}), Code.WAITING, False),
        (refused(503), Code.SERVICE, False),
        (refused(302), Code.SERVICE, False),
        (Answer(200, {}, b"no certificates"), "bad-answer", False),
        (NEVER_CONFIRMED, Code.RECOVERY_REFUSED, True),
    ],
)
def test_every_answer_has_its_meaning(
    authority: Authority, tmp_path: Path, answer: Answer, code: str, spends_key: bool
) -> None:
    """A key that was certified would be thrown away, or one that never will be kept; nobody would hear why."""
    home = Home(authority, tmp_path, [answer])
    error = home.problem(home.generation("gen-1"))
    assert (code, spends_key) == (error.problem.code, error.spends_key)


def test_who_has_to_be_approved_hears_how(authority: Authority, tmp_path: Path) -> None:
    """Nobody could tell which request is meant, or compare the key."""
    home = Home(authority, tmp_path, [refused(202, headers={"enroll-request": "ab\x1b[2J", "retry-after": "7"})])
    found = home.problem(home.generation("gen-1")).problem
    assert ("enroll request approve ab\\x1b[2J", 7.0) == (found.hint, found.retry_seconds)
    assert "\x1b" not in found.message


@pytest.mark.parametrize("retry", ["", "soon", "-1", "1e9", "99999999", "²"])
def test_a_retry_after_that_is_none(authority: Authority, tmp_path: Path, retry: str) -> None:
    """A service could end the agent, or have it wait for ever."""
    home = Home(authority, tmp_path, [refused(202, headers={"retry-after": retry})])
    assert 0.0 == home.problem(home.generation("gen-1")).problem.retry_seconds


def test_a_service_that_was_started_anew_is_asked_again(authority: Authority, tmp_path: Path) -> None:
    """Each restart between two requests would cost an hour."""
    home = Home(authority, tmp_path, [refused(401), given(authority)])
    assert home.ask(home.generation("gen-1"))
    assert 2 == len(home.claims)


def test_the_newest_key_that_was_confirmed_is_found(authority: Authority, tmp_path: Path) -> None:
    """A device that was cut off in the middle of a renewal would be lost."""
    home = Home(authority, tmp_path, [NEVER_CONFIRMED, refused(403), given(authority)])
    newest, newer, present = (home.generation(f"gen-{n}", is_newer=n > 1) for n in (3, 2, 1))
    assert home.ask(newest, newer, present)
    serials = [pki.serial_of(home.certificate(each)) for each in (newest, newer, present)]
    assert serials == [claim.serial for claim in home.claims]


def test_an_older_key_is_not_shown_where_the_present_one_is_refused(authority: Authority, tmp_path: Path) -> None:
    """The admin would be told that somebody has a copy, and it was the device itself."""
    home = Home(authority, tmp_path, [refused(403)])
    home.problem(home.generation("gen-2"), home.generation("gen-1"))
    assert 1 == len(home.claims)


def test_a_certificate_that_is_good_is_said_so(authority: Authority, tmp_path: Path) -> None:
    """A device whose clock is wrong would throw its key away."""
    home = Home(authority, tmp_path, [refused(403, headers={"enroll-problem": "not-expired"})])
    with pytest.raises(NotExpired):
        home.ask(home.generation("gen-1"))


@pytest.mark.parametrize(
    ("nonce", "code"),
    [
        (Answer(404, {}, b""), Code.SERVICE),
        (Answer(503, {}, b""), Code.SERVICE),
        (Answer(200, {}, b"{}"), "bad-answer"),
        (Answer(200, {}, b'{"v": 1, "nonce": "' + b"n" * 30 + b'\\nserial"}'), "bad-answer"),
        (Answer(200, {}, b"[" * 9000), "bad-answer"),
    ],
)
def test_nothing_is_signed_without_a_nonce(authority: Authority, tmp_path: Path, nonce: Answer, code: str) -> None:
    """A service could have the device sign lines of its own."""
    home = Home(authority, tmp_path, [given(authority)], nonce)
    assert code == home.problem(home.generation("gen-1")).problem.code
    assert [] == home.claims


@pytest.mark.parametrize("spoil", [lambda path: path.unlink(), lambda path: path.write_bytes(b"rubbish")])
@pytest.mark.parametrize("name", ["key.pem", "cert.pem"])
def test_a_damaged_generation_is_said_so(
    authority: Authority, tmp_path: Path, name: str, spoil: Callable[[Path], None]
) -> None:
    """The process would end in a traceback."""
    home = Home(authority, tmp_path, [given(authority)])
    used = home.generation("gen-1")
    spoil(used.folder / name)
    assert "local" == home.problem(used).problem.code
    assert home.ask(Signer(used.folder, is_newer=True), home.generation("gen-0")), (
        "one that was never used is in the way"
    )
