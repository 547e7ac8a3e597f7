"""A device whose certificate has expired, by real processes over real TLS: the agent, the service, the broker."""

from __future__ import annotations

import json
import random
import re
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from device_agent import credentials
from device_agent.store import PosixDisk
from device_agent.succession import Succession
from fleet import est, pki, recovery
from fleet.identity import DeviceId
from fleet.layout import AgentHome
from tests.faults.losing import losing
from tests.faults.power_cut import Cuts, cut_recoveries
from tests.processes import run
from tests.system.agents import Agent, LiveFleet, live_fleet, serial_of, status_of
from tests.system.enrolling import Service
from tests.system.sleepers import SINCE, asleep, renewed_unheard
from tests.system.test_agent_renewal import ask_at, generations, renew, service_address, states
from tests.unit.device_agent.servers import http_answer, read_request, tls_server

NIGHT, LONG = timedelta(hours=8), timedelta(days=250)


@pytest.fixture(scope="module", name="fleet")
def _fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveFleet]:
    since = datetime.now(UTC) - SINCE
    with live_fleet(tmp_path_factory.mktemp("recovery"), with_broker=True, since=since) as fleet:
        yield fleet


def waiting_request(fleet: LiveFleet, device: str) -> dict[str, object]:
    """The one request of the device."""
    listed = json.loads(fleet.enroll("request", "list", "-o", "json").stdout)
    [found] = [each for each in listed if each["device"] == device]
    return dict(found)


def test_it_comes_back_by_itself_under_its_name(fleet: LiveFleet) -> None:
    """A device from a drawer would have to be visited, or be another one from then on."""
    home = asleep(fleet, "pump-01", 100 * timedelta(days=1))
    first = serial_of(home)
    with Agent(home).wait_ready() as agent:
        agent.wait_for_line("renewal.confirmed", stream="stderr")
        said = status_of(home)
        assert ("online", "ok", "pump-01") == (said["state"], said["code"], said["device"])
        assert first != said["serial"] == serial_of(home)
        assert "cryptography" not in Path(f"/proc/{agent.pid}/maps").read_text()
    assert ["confirmed", "confirmed"] == states(fleet, "pump-01")
    assert ["gen-2"] == generations(home)


def post(fleet: LiveFleet, home: AgentHome, folder: Path, device: str) -> tuple[int, bytes]:
    """What a key of that generation, and a new one, get from the running service."""
    used = x509.load_pem_x509_certificate((folder / "cert.pem").read_bytes())
    key = credentials.load_key((folder / "key.pem").read_bytes())
    csr = est.build_csr(credentials.load_key(credentials.new_key_pem()), DeviceId(device))
    with Service(fleet.home, fleet.service, service_address(fleet)[1]).connection() as connection:
        nonce = recovery.decode_nonce(connection.ask(f"GET {recovery.NONCE} HTTP/1.1")[1])
        signature = pki.sign(key, recovery.statement(used.public_bytes(Encoding.DER), nonce, csr))
        body = recovery.Claim(pki.serial_of(used), nonce, csr, signature).encode()
        head = f"POST {recovery.RECOVER} HTTP/1.1\r\nContent-Type: {recovery.MEDIA_TYPE}"
        return connection.ask(f"{head}\r\nContent-Length: {len(body)}", body)


def test_the_old_certificate_recovers_no_more(fleet: LiveFleet, tmp_path: Path) -> None:
    """A card that was copied in the drawer would make a second device."""
    home = asleep(fleet, "pump-02", NIGHT)
    stolen = tmp_path / "stolen"
    stolen.mkdir()
    for name in ("cert.pem", "key.pem"):
        (stolen / name).write_bytes((home.current / name).read_bytes())
    renew(home).check()
    status, body = post(fleet, home, stolen, "pump-02")
    assert (403, True) == (status, b"confirmed a later" in body)
    assert 2 == len(states(fleet, "pump-02"))


def test_it_shows_no_certificate_and_its_key_says_it_all(fleet: LiveFleet, tmp_path: Path) -> None:
    """An expired certificate is let in by TLS after all; or a stranger's key gets one."""
    home = asleep(fleet, "pump-03", NIGHT)
    running = Service(fleet.home, fleet.service, service_address(fleet)[1])
    with pytest.raises((OSError, IndexError)), running.connection(home.identity) as connection:
        connection.ask(f"GET {recovery.NONCE} HTTP/1.1")
    forged = tmp_path / "forged"
    forged.mkdir()
    (forged / "cert.pem").write_bytes((home.current / "cert.pem").read_bytes())
    (forged / "key.pem").write_bytes(credentials.new_key_pem())
    assert 401 == post(fleet, home, forged, "pump-03")[0]
    assert 403 == post(fleet, home, home.current, "pump-02")[0]


def test_renew_recovers_where_no_agent_runs(fleet: LiveFleet) -> None:
    """Who stands before the device would be told to fetch a token."""
    home = asleep(fleet, "pump-04", NIGHT)
    looked = json.loads(run("device-agent", "doctor", "-o", "json", "--home", home.path).stdout)
    [found] = [each for each in looked if each["code"] == "identity-expired"]
    assert "device-agent renew" in found["hint"]
    first = serial_of(home)
    renewed = renew(home).check().stdout
    assert serial_of(home) in renewed
    assert first != serial_of(home)
    assert ["gen-2"] == generations(home)


def test_a_revoked_device_never_comes_back(fleet: LiveFleet) -> None:
    """A stolen device would be good again once its certificate has expired."""
    home = asleep(fleet, "pump-05", NIGHT)
    fleet.enroll("device", "revoke", "pump-05", "--yes")
    refused = renew(home)
    assert (4, True, True) == (refused.returncode, "recovery-refused" in refused.stderr, "revoked" in refused.stderr)
    with Agent(home) as agent:
        agent.wait_for_line("renewal.failed .*code=recovery-refused", stream="stderr")
        said = status_of(home)
        assert ("waiting", "recovery-refused") == (said["state"], said["code"])
        assert "is revoked" in said["words"]
    assert ["revoked"] == states(fleet, "pump-05")


def test_after_the_grace_an_admin_lets_it_in(fleet: LiveFleet) -> None:
    """A device that slept for most of a year would be lost, or nobody would have looked at it."""
    home = asleep(fleet, "pump-06", LONG)
    with Agent(home) as agent:
        agent.wait_for_line("renewal.failed .*code=waiting-for-approval", stream="stderr")
        request = waiting_request(fleet, "pump-06")
        said = status_of(home)
        assert "waiting-for-approval" == said["code"]
        assert f"request {request['id']}" in said["words"]
        assert f"enroll request approve {request['id']}" == said["hint"]
        shown = fleet.enroll("request", "show", request["id"]).stdout
        assert f"recovery of {serial_of(home)}" in shown
        assert re.search(r"why +[0-9a-f]+ expired 250 days ago, past the grace", shown)
        assert re.search(r"cert 1 +[0-9a-f]+ confirmed", shown)
        looked = json.loads(run("device-agent", "doctor", "-o", "json", "--home", home.path).stdout)
        assert "waiting-for-approval" in {each["code"] for each in looked}
        fleet.enroll("request", "approve", request["id"])
        renew(home).check()  # or wait until it asks again, as it may just have done
        agent.wait_ready()
    assert "confirmed" == states(fleet, "pump-06")[-1]


def test_who_was_denied_hears_why_and_goes_on_asking(fleet: LiveFleet) -> None:
    """Somebody would wait before the device for ever, or each attempt would be another request on the admin's list."""
    home = asleep(fleet, "pump-07", LONG)
    waits = renew(home)
    assert (7, True) == (waits.returncode, "waiting-for-approval" in waits.stderr)
    request = waiting_request(fleet, "pump-07")["id"]
    fleet.enroll("request", "deny", request, "--reason", "it was sold")
    denied = renew(home)
    assert (4, True) == (denied.returncode, "it was sold" in denied.stderr)
    listed = json.loads(fleet.enroll("request", "list", "--all", "-o", "json").stdout)
    assert [request] == [each["id"] for each in listed if each["device"] == "pump-07"]


def test_a_renewal_that_the_service_never_heard_of_was_confirmed_by_nobody(fleet: LiveFleet) -> None:
    """A device that lost its power right after a renewal would have only a key that the service does not take."""
    home = asleep(fleet, "pump-08", NIGHT)
    renewed_unheard(fleet, home, "pump-08", NIGHT)
    assert ["gen-1", "gen-2"] == generations(home)
    with Agent(home).wait_ready() as agent:
        agent.wait_for_line("renewal.confirmed", stream="stderr")
    assert ["confirmed", "superseded", "confirmed"] == states(fleet, "pump-08")
    assert ["gen-3"] == generations(home)


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 6])
def test_a_lost_answer_makes_no_second_certificate(fleet: LiveFleet, number: int) -> None:
    """A device would have used up its only chance: 1 that it has expired, 2 the nonce, 3 the certificate, 4 the CA's,
    5 the proof, 6 the confirmation.
    """
    device = f"pump-1{number}"
    home = asleep(fleet, device, NIGHT)
    with losing(service_address(fleet), number) as (relay, loss):
        real = ask_at(home, relay.url)
        lost = renew(home)
        assert loss.count >= number
        again = renew(home) if lost.returncode else lost
    again.check()
    assert 2 == len(states(fleet, device))
    ask_at(home, real)
    with Agent(home).wait_ready() as agent:
        if number == 6:
            agent.wait_for_line("renewal.confirmed", stream="stderr")
    assert ["gen-2"] == generations(home)


@pytest.mark.parametrize(("device", "line"), [("pump-20", "renewal.begun"), ("pump-21", "renewal.trying")])
def test_an_agent_killed_while_it_recovers_comes_back(fleet: LiveFleet, device: str, line: str) -> None:
    """A watchdog, or a power cut, would cost the device its only chance."""
    home = asleep(fleet, device, NIGHT)
    with Agent(home) as agent:
        agent.wait_for_line(line, stream="stderr")
        agent.kill()
    with Agent(home).wait_ready() as agent:
        agent.wait_for_line("renewal.confirmed", stream="stderr")
    assert 2 == len(states(fleet, device))
    assert None is Succession(home, PosixDisk()).previous()


@pytest.mark.timeout(240)
def test_a_recovery_killed_anywhere_succeeds_in_the_end(fleet: LiveFleet, tmp_path: Path) -> None:
    """A power cut in a recovery would use up the device's only chance."""
    cuts = Cuts(fleet, tmp_path, random.Random(11))
    cut_recoveries(cuts, 30, lambda: asleep(fleet, f"agent-{fleet._homes + 1}", NIGHT))  # as its home is named
    assert cuts.count >= 3


def test_a_proxy_that_answers_502_is_waited_for(fleet: LiveFleet) -> None:
    """A device would give up, or throw away the key that was to be certified."""
    home = asleep(fleet, "pump-30", NIGHT)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(fleet.home.enroll_server.certificate, fleet.home.enroll_server.key)
    context.load_verify_locations(fleet.home.devices_ca.certificate)
    context.load_verify_locations(fleet.home.root.certificate)
    context.verify_mode = ssl.CERT_OPTIONAL

    def refuse(connection: ssl.SSLSocket) -> None:
        read_request(connection)
        connection.sendall(http_answer("502 Bad Gateway", b"no upstream\n", "Connection: close\r\n"))

    with tls_server(context, refuse) as proxy:
        ask_at(home, proxy.url)
        keys = set()
        for _ in range(2):
            refused = renew(home)
            assert (5, True) == (refused.returncode, "service-error" in refused.stderr)
            keys.add((home.generation(2) / "key.pem").read_bytes())
    assert 1 == len(keys)
