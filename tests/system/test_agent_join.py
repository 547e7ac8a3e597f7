"""`device-agent join` against a real enrollment service, and against those who pretend to be it."""

from __future__ import annotations

import base64
import contextlib
import json
import secrets
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from device_agent.credentials import load_key
from enroll import service
from enroll.registry import Registry
from enroll.tokens import TokenOrder
from fleet import est
from fleet.identity import DeviceId
from fleet.join import JoinCode, JoinFile, new_token
from fleet.layout import AdminHome, AgentHome, IdentityFiles
from tests.deadlines import within
from tests.processes import Finished, run
from tests.system.agents import LiveFleet, join, live_fleet, pin_of, serial_of
from tests.unit.device_agent.authority import new_authority
from tests.unit.device_agent.servers import http_answer, listening, read_request, server_context, tls_server

MALLORY = new_authority("mallory")


@pytest.fixture(scope="module", name="fleet")
def _fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveFleet]:
    """Without a broker: joining must not need one."""
    with live_fleet(tmp_path_factory.mktemp("join"), with_broker=False) as fleet:
        yield fleet


def refused(outcome: Finished, exit_code: int, *words: str) -> None:
    """The command failed as it should: two lines, the exit code, the words."""
    assert (exit_code, "") == (outcome.returncode, outcome.stdout), outcome.stderr
    assert ["error", "hint"] == [line.partition(":")[0] for line in outcome.stderr.splitlines()]
    for word in words:
        assert word in outcome.stderr


def test_a_join_code_makes_an_identity_that_other_tools_can_use(fleet: LiveFleet) -> None:
    """DESIGN section 9 promises these files to mosquitto_pub and to everybody else."""
    home = fleet.new_agent_home()
    told = join(home, fleet.invite("pump-01"), "pump-01").check().stdout
    assert told.startswith(f"enrolled pump-01 (device) at {fleet.url.replace('127.0.0.1', 'localhost')}")
    leaf, issuer = x509.load_pem_x509_certificates(home.identity.certificate.read_bytes())
    [root] = x509.load_pem_x509_certificates(home.trust.read_bytes())
    leaf.verify_directly_issued_by(issuer)
    issuer.verify_directly_issued_by(root)
    assert load_key(home.identity.key.read_bytes()).public_key() == leaf.public_key()
    assert "gen-1" == str(home.current.readlink())
    assert [0o700, 0o600] == [path.stat().st_mode & 0o777 for path in (home.path, home.identity.key)]
    context = ssl.create_default_context(cafile=home.trust)
    context.load_cert_chain(home.identity.certificate, home.identity.key)


def test_a_home_is_enrolled_once(fleet: LiveFleet) -> None:
    """A second `join` typed by mistake would throw the identity away."""
    home = fleet.joined("pump-02")
    before = serial_of(home)
    refused(join(home, fleet.invite("pump-03"), "pump-03"), 2, "enrolled already, as pump-02", "device-agent run")
    assert before == serial_of(home)


def test_a_used_token_is_denied(fleet: LiveFleet) -> None:
    """Whoever finds a join code in a shell history would get an identity."""
    code = fleet.invite("pump-04")
    join(fleet.new_agent_home(), code, "pump-04").check()
    refused(join(fleet.new_agent_home(), code, "pump-04"), 4, "the token is not accepted", "--device pump-04")


def test_an_expired_token_is_denied(fleet: LiveFleet) -> None:
    """A code from last year's install sheet would still let somebody in."""
    order = TokenOrder(device=DeviceId("pump-05"), ttl=timedelta(hours=1))
    long_ago = datetime.now(UTC) - timedelta(hours=2)
    with Registry.open(fleet.home.registry) as registry:
        invited = service.invite(registry, order, by="test", now=long_ago, token_bytes=secrets.token_bytes)
    code = JoinCode(fleet.url, pin_of(fleet), invited.token)
    refused(join(fleet.new_agent_home(), code, "pump-05"), 4, "the token is not accepted")


def test_a_token_of_another_fleet_is_denied(fleet: LiveFleet) -> None:
    """Any well-formed secret would do."""
    code = replace(fleet.invite("pump-06"), token=new_token(secrets.token_bytes(21)))
    refused(join(fleet.new_agent_home(), code, "pump-06"), 4, "the token is not accepted")


def test_a_token_for_another_id_is_denied_and_stays_usable(fleet: LiveFleet) -> None:
    """A device could take another's name; or a typing error would cost a token."""
    code = fleet.invite("pump-07")
    home = fleet.new_agent_home()
    refused(join(home, code, "pump-70"), 4, "the token does not allow this", "check the id (pump-70)")
    join(home, code, "pump-07").check()


def test_a_wrong_pin_ends_it_before_the_token_is_sent(fleet: LiveFleet) -> None:
    """The token would go to whatever answers at that address."""
    mark = fleet.service.line_count("stderr")
    code = replace(fleet.invite("pump-08"), root_pin=b"\1" * 32)
    refused(join(fleet.new_agent_home(), code, "pump-08"), 5, "no root with the pin 0101", "captive portal")
    assert not [line for line in fleet.service.stderr.splitlines()[mark:] if "simpleenroll" in line]


def test_a_join_file_is_used_up_by_success(fleet: LiveFleet, tmp_path: Path) -> None:
    """The secret would stay on a boot partition that every computer can read."""
    file, home = tmp_path / "fleet-join.toml", fleet.new_agent_home()
    file.write_text(JoinFile(fleet.invite("pump-09"), DeviceId("pump-09")).encode())
    run("device-agent", "join", "--file", file, "--home", home.path).check()
    assert not file.exists()
    assert "pump-09" == json.loads(home.meta.read_bytes())["id"]


def test_a_join_file_left_by_a_power_cut_is_used_up_at_the_next_start(fleet: LiveFleet, tmp_path: Path) -> None:
    """The power went between success and the file's removal: every boot would fail with `enrolled already`."""
    file, home, code = tmp_path / "fleet-join.toml", fleet.new_agent_home(), fleet.invite("pump-10")
    join(home, code, "pump-10").check()
    file.write_text(JoinFile(code, DeviceId("pump-10")).encode())
    run("device-agent", "join", "--file", file, "--home", home.path).check()
    assert not file.exists()


def test_url_pin_and_token_do_as_well_as_a_code(fleet: LiveFleet) -> None:
    """DESIGN section 9: whoever reads the parts from a sheet could not enrol."""
    code = fleet.invite("pump-11")
    by_hand = ("--url", code.url, "--root-pin", code.root_pin.hex(":"), "--token", "-", "--id", "pump-11")
    home = fleet.new_agent_home()
    run("device-agent", "join", *by_hand, "--home", home.path, stdin=f"{code.token}\n").check()


# Those who pretend -------------------------------------------------------------------------------------------------


def genuine_ca_certificates(fleet: LiveFleet) -> bytes:
    """What the real service answers: anybody can fetch it, and relay it."""
    roots = [fleet.home.root, fleet.home.devices_ca, fleet.home.servers_ca]
    return est.encode_certificates([x509.load_pem_x509_certificate(ca.certificate.read_bytes()) for ca in roots])


def identity_context(files: IdentityFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    return context


def lure(fleet: LiveFleet, device: str, context: ssl.SSLContext) -> tuple[Finished, list[bytes]]:
    """A device joins where somebody relays the genuine CA certificates, and shows what `context` has."""
    requests: list[bytes] = []
    body = genuine_ca_certificates(fleet)

    def serve(connection: ssl.SSLSocket) -> None:
        if request := read_request(connection):
            requests.append(request)
            connection.sendall(http_answer("200 OK", body, "Content-Type: application/pkcs7-mime\r\n"))

    with tls_server(context, serve) as impostor:
        code = replace(fleet.invite(device), url=impostor.url)
        return join(fleet.new_agent_home(), code, device), requests


def test_an_impostor_who_relays_the_genuine_root_hears_no_token(fleet: LiveFleet, tmp_path: Path) -> None:
    """The pin proves who made the root, not who sends it: the token would go to the relay."""
    context = server_context(MALLORY.server("enroll"), tmp_path)
    outcome, requests = lure(fleet, "pump-20", context)
    refused(outcome, 5, "is not of our fleet", "captive portal")
    check_only_ca_certificates(requests)


def test_the_fleets_own_broker_hears_no_token(fleet: LiveFleet) -> None:
    """Whoever breaks into a broker could collect tokens: same root, same host, server authentication."""
    outcome, requests = lure(fleet, "pump-21", identity_context(fleet.home.broker_server))
    refused(outcome, 5, "not the one for this service")
    check_only_ca_certificates(requests)


def test_an_enrolled_device_cannot_pose_as_the_service(fleet: LiveFleet) -> None:
    """Every device could collect the tokens of its neighbours."""
    files = fleet.joined("pump-22").identity
    outcome, requests = lure(fleet, "pump-23", identity_context(files))
    refused(outcome, 5)
    check_only_ca_certificates(requests)


def check_only_ca_certificates(requests: list[bytes]) -> None:
    """The one connection that believes anybody has fetched the root, and told nothing."""
    assert [b"GET /.well-known/est/cacerts"] == [request.split(b" HTTP")[0] for request in requests]
    assert b"uthorization" not in requests[0]


def test_plain_noise_in_the_services_place_is_an_error_in_words(fleet: LiveFleet) -> None:
    """An SSH server at the wrong port would end in a traceback."""
    with listening(lambda connection: connection.sendall(b"SSH-2.0-OpenSSH_9.2p1\r\n")) as noise:
        code = replace(fleet.invite("pump-24"), url=noise.url)
        refused(join(fleet.new_agent_home(), code, "pump-24"), 5)


# Answers that get lost ---------------------------------------------------------------------------------------------


class Relay:
    """Passes TCP on to the service; of connection number `lossy` it swallows what the service answers to a request."""

    def __init__(self, url: str, lossy: int) -> None:
        parts = urlsplit(url)
        self._target = (str(parts.hostname), int(parts.port or 0))
        self._lossy = lossy
        self._count = 0

    def serve(self, client: socket.socket) -> None:
        self._count += 1
        with socket.create_connection(self._target, timeout=within(20)) as server:
            has_server_spoken, is_swallowing = threading.Event(), threading.Event()

            def up() -> None:
                with contextlib.suppress(OSError):
                    while data := client.recv(65_536):
                        if self._count == self._lossy and has_server_spoken.is_set():
                            is_swallowing.set()  # the client's second flight: Finished, and the request behind it
                        server.sendall(data)
                    server.shutdown(socket.SHUT_WR)

            thread = threading.Thread(target=up, daemon=True)
            thread.start()
            while data := server.recv(65_536):
                has_server_spoken.set()
                if is_swallowing.is_set():
                    break
                client.sendall(data)
            client.shutdown(socket.SHUT_RDWR)
            thread.join(within(5))


def test_after_a_lost_answer_the_same_command_gets_the_same_certificate(fleet: LiveFleet) -> None:
    """The token is used up and the device has nothing: it would have to be visited."""
    home, real = fleet.new_agent_home(), fleet.invite("pump-30")
    with listening(Relay(fleet.url, lossy=2).serve) as relay:
        code = replace(real, url=relay.url)
        mark = fleet.service.line_count("stderr")
        refused(join(home, code, "pump-30"), 5, "run the same command again")
        issued = fleet.service.wait_for_line(
            r"certificate.issued device=pump-30 serial=(\w+)", stream="stderr", after=mark
        )[1]
        key = (home.generation(1) / "key.pem").read_bytes()
        join(home, code, "pump-30").check()
    assert issued == serial_of(home)
    assert key == home.identity.key.read_bytes()
    with Registry.open(fleet.home.registry) as registry:
        assert 1 == len(service.show(registry, DeviceId("pump-30")).certificates)


# What crosses the wire ---------------------------------------------------------------------------------------------


def test_the_private_key_never_leaves_the_device(fleet: LiveFleet) -> None:
    """The whole point of a signing request: nobody but the device ever has its key."""
    home, seen = fleet.new_agent_home(), list[bytes]()
    genuine = identity_context(fleet.home.enroll_server)
    onward = ssl.create_default_context(cafile=fleet.home.root.certificate)
    parts = urlsplit(fleet.url)

    def serve(connection: ssl.SSLSocket) -> None:
        request = read_request(connection)
        seen.append(request)
        plain = socket.create_connection((str(parts.hostname), int(parts.port or 0)), within(20))
        with plain, onward.wrap_socket(plain, server_hostname=parts.hostname) as server:
            server.sendall(request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
            while data := server.recv(65_536):
                connection.sendall(data)

    with tls_server(genuine, serve) as tap:
        join(home, replace(fleet.invite("pump-40"), url=tap.url), "pump-40").check()
    assert [b"GET", b"POST"] == [request.split(b" ")[0] for request in seen]
    secrets_of_key = shapes_of(home)
    for request in seen:
        check_absent(secrets_of_key, request + base64.b64decode(request.partition(b"\r\n\r\n")[2] or b""))
    for file in stored_files(fleet.home):
        check_absent(secrets_of_key, file.read_bytes())
    check_absent(secrets_of_key, fleet.service.stderr.encode() + fleet.service.stdout.encode())


def shapes_of(home: AgentHome) -> list[bytes]:
    """The private key in every shape in which it could leak."""
    pem = home.identity.key.read_bytes()
    key = load_key(pem)
    number = key.private_numbers().private_value.to_bytes(32)
    der = [
        key.private_bytes(Encoding.DER, form, NoEncryption())
        for form in (PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL)
    ]
    texts = [base64.b64encode(each) for each in (number, *der)] + [number.hex().encode()]
    return [pem, number, *der, *texts, b"".join(pem.splitlines()[1:-1])]


def check_absent(shapes: list[bytes], data: bytes) -> None:
    for shape in shapes:
        assert shape not in data
        assert shape not in b"".join(data.split())


def stored_files(home: AdminHome) -> list[Path]:
    return [path for path in home.path.rglob("*") if path.is_file()]


def test_the_token_is_not_in_the_process_list_when_it_is_read(fleet: LiveFleet) -> None:
    """Every user of the machine sees command lines."""
    home = fleet.new_agent_home()
    code = fleet.invite("pump-41")
    run("device-agent", "join", "-", "--id", "pump-41", "--home", home.path, stdin=f"{code}\n").check()


def test_openssl_verifies_what_was_stored(fleet: LiveFleet) -> None:
    """An independent opinion on chain, purpose and key."""
    home = fleet.joined("pump-42")
    chain = ["-CAfile", str(home.trust), "-untrusted", str(home.identity.certificate), str(home.identity.certificate)]
    subprocess.run(["openssl", "verify", "-purpose", "sslclient", *chain], check=True, capture_output=True)
