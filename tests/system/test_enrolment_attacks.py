"""Attacks on what enrolment gives, over real TLS against a running service (docs/threat-model-enrollment.md)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from threading import Barrier

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding

from enroll import service
from enroll.registry import Registry, identity
from fleet import est
from fleet.identity import DeviceId
from fleet.join import Token
from tests.deadlines import within
from tests.fleets import csr, new_key
from tests.processes import run
from tests.system.brokers import enrol
from tests.system.enrolling import Connection, Service, basic, running_service

AT_ONCE = 24
CONFIG = f"GET {est.CONFIG} HTTP/1.1"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("attacks")) as service:
        yield service


def all_at_once(running: Service, asked: list[tuple[Token, bytes]]) -> list[tuple[int, bytes]]:
    """The answers to requests that are sent at the same moment, over connections that are open by then."""
    together = Barrier(len(asked))

    def ask(connection: Connection, token: Token, request: bytes) -> tuple[int, bytes]:
        together.wait(within(20))
        return connection.enrol(token, request)

    with ExitStack() as stack, ThreadPoolExecutor(len(asked)) as pool:
        connections = [stack.enter_context(running.connection()) for _ in asked]
        asking = [pool.submit(ask, connection, *each) for connection, each in zip(connections, asked, strict=True)]
        return [each.result(within(20)) for each in asking]


def live_certificates(running: Service, device: str) -> int:
    with Registry.open(running.home.registry) as registry, registry.read() as transaction:
        return len(identity.live_certificates_of(transaction, DeviceId(device)))


def test_many_keys_race_for_one_token(running: Service) -> None:
    """A token that leaked lets more than one in, if they are only fast enough."""
    token = running.token("raced")
    answers = Counter(status for status, _ in all_at_once(running, [(token, csr("raced")) for _ in range(AT_ONCE)]))
    assert (1, AT_ONCE - 1) == (answers[200], answers[401] + answers[429])
    assert 1 == live_certificates(running, "raced")


def test_many_names_race_for_one_token(running: Service) -> None:
    """A token for three lets four in."""
    token = running.token(None, pattern="crowd-*", uses=3)
    asked = [(token, csr(f"crowd-{number}")) for number in range(AT_ONCE)]
    answers = Counter(status for status, _ in all_at_once(running, asked))
    assert (3, AT_ONCE - 3) == (answers[200], answers[401] + answers[429])


def test_many_tokens_race_for_one_name(running: Service) -> None:
    """Two devices have one name."""
    asked = [(running.token("wanted"), csr("wanted")) for _ in range(AT_ONCE)]
    assert {200: 1, 403: AT_ONCE - 1} == Counter(status for status, _ in all_at_once(running, asked))
    assert 1 == live_certificates(running, "wanted")


def test_many_replacements_race_for_one_name(running: Service) -> None:
    """Whoever replaces a device is replaced in the same moment, and both are in."""
    enrol(running.home, "broken")
    asked = [(running.token("broken", replace=True), csr("broken")) for _ in range(8)]
    assert {200} == {status for status, _ in all_at_once(running, asked)}
    assert 1 == live_certificates(running, "broken")


def test_one_key_that_asks_in_parallel_has_one_certificate(running: Service) -> None:
    """A device that lost its patience has two certificates, or a spent token and none."""
    token, request = running.token("hasty"), csr("hasty")
    answers = all_at_once(running, [(token, request)] * AT_ONCE)
    assert {200} == {status for status, _ in answers}
    assert 1 == len({body for _, body in answers})


@pytest.mark.parametrize("end", [service.revoke, service.suspend])
def test_a_certificate_that_was_ended_does_not_renew_over_a_connection_that_was_kept(
    running: Service, end: Callable[..., object]
) -> None:
    """Who is connected when the certificate is revoked gets the next one, for ever."""
    device = f"kept-{end.__name__}"
    with running.connection(enrol(running.home, device)) as connection:
        assert 200 == connection.ask(CONFIG)[0]
        with Registry.open(running.home.registry) as registry:
            end(registry, DeviceId(device), by="test", now=datetime.now(UTC))
        assert 403 == connection.enrol(None, csr(device))[0]
        assert 403 == connection.ask(CONFIG)[0]
        assert 401 == connection.enrol(Token("a" * 8, bytes(16)), csr(device))[0]


WANTED = """
basicConstraints = critical,CA:TRUE,pathlen:3
keyUsage = critical,keyCertSign,cRLSign,keyEncipherment
extendedKeyUsage = serverAuth,clientAuth,codeSigning,OCSPSigning,2.5.29.37.0
subjectAltName = URI:spiffe://acme.example/operator/admin,URI:spiffe://acme.example/server/enroll,DNS:localhost,IP:127.0.0.1
certificatePolicies = 2.5.29.32.0
crlDistributionPoints = URI:http://attacker.example/crl
authorityInfoAccess = OCSP;URI:http://attacker.example/ocsp
nsComment = "1.3.6.1.4.1.99999"
"""


def test_nothing_but_key_and_name_is_taken_from_a_request(running: Service, tmp_path: Path) -> None:
    """A device makes itself a CA, a server or an operator by asking for it."""
    config, key, request = tmp_path / "cnf", tmp_path / "key", tmp_path / "csr"
    config.write_text(
        "[req]\nprompt = no\ndistinguished_name = name\nreq_extensions = wanted\n[name]\nCN = humble\n[wanted]" + WANTED
    )
    new = ("openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key)
    run(*new, "-config", config, "-outform", "DER", "-out", request).check()
    asked = x509.load_der_x509_csr(request.read_bytes())
    assert WANTED.count("=") == len(asked.extensions)
    given = []
    for device, der in (("humble", request.read_bytes()), ("plain", csr("plain"))):
        with running.connection() as connection:
            status, body = connection.enrol(running.token(device), der)
        assert 200 == status
        given += est.decode_certificates(body)
    humble, plain = given
    assert asked.public_key() == humble.public_key()
    assert "CN=humble" == humble.subject.rfc4514_string()
    own = (x509.SubjectKeyIdentifier, x509.SubjectAlternativeName)
    assert [e for e in plain.extensions if not isinstance(e.value, own)] == [
        e for e in humble.extensions if not isinstance(e.value, own)
    ]
    names = humble.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [x509.UniformResourceIdentifier("spiffe://acme.example/device/humble")] == list(names)


def request_with(subject: x509.Name, extension: bytes = b"", bits: int = 0) -> bytes:
    """A request with a long name, a long extension, or a long key."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    if extension:
        builder = builder.add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1"), extension), False)
    key = rsa.generate_private_key(65537, bits) if bits else new_key()
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def named(*names: str) -> x509.Name:
    name = partial(x509.NameAttribute, x509.NameOID.COMMON_NAME, _validate=False)
    return x509.Name([name(each) for each in names])


LARGE_REQUESTS = {
    "a name": lambda: request_with(named("a" * 9000)),
    "many names": lambda: request_with(named(*["large"] * 500)),
    "an extension": lambda: request_with(named("other"), b"x" * 9000),
    "a key": lambda: request_with(named("large"), bits=4224),
    "junk": lambda: b"0" * 12_000,
    "brackets": lambda: b"\x30\x80" * 6000,
}


@pytest.mark.filterwarnings("ignore:Attribute's length:UserWarning")
@pytest.mark.parametrize("what", LARGE_REQUESTS)
def test_a_large_request_is_refused_and_its_token_stays_good(running: Service, what: str) -> None:
    """Something that fits into a body is too large for us to refuse."""
    device = what.replace(" ", "-")
    token, large, good = running.token(device), LARGE_REQUESTS[what](), csr(device)
    with running.connection() as connection:
        status, reason = connection.enrol(token, large)
        assert status in (400, 403)
        assert len(reason) < 1000
        assert 200 == connection.enrol(token, good)[0]


LARGE_HEADS = {
    "a method": ("X" * 7000 + f" {est.CACERTS} HTTP/1.1", {400, 405}),
    "a path": (f"GET /{'x' * 7000} HTTP/1.1", {400, 404}),
    "a label": (f"GET {est.BASE}/{'x' * 7000}/cacerts HTTP/1.1", {400, 404}),
    "a query": (f"GET {est.CONFIG}?{'x=y&' * 1700} HTTP/1.1", {400, 401}),
    "a credential": (f"POST {est.SIMPLE_ENROLL} HTTP/1.1\r\n{basic('x' * 5000)}", {401, 415}),
    "a type": (f"POST {est.SIMPLE_ENROLL} HTTP/1.1\r\nContent-Type: {'x' * 7000}", {400, 415}),
    "a length": (f"POST {est.SIMPLE_ENROLL} HTTP/1.1\r\nContent-Length: {'9' * 4000}", {400, 413}),
    "many fields": ("GET /x HTTP/1.1\r\n" + "\r\n".join(f"a{n}: b" for n in range(500)), {400, 404}),
    "a version": ("GET / HTTP/" + "1" * 7000, {400}),
}


@pytest.mark.parametrize("what", LARGE_HEADS)
def test_a_large_head_is_refused(running: Service, what: str) -> None:
    """Something large in a head fails the service, or is repeated to whoever sent it."""
    head, statuses = LARGE_HEADS[what]
    with running.connection() as connection:
        status, reason = connection.ask(head)
        assert status in statuses
        assert len(reason) < 1000
    with running.connection() as connection:
        assert 200 == connection.ask(f"GET {est.HEALTH} HTTP/1.1")[0]
