"""The fleet's own certificates: renewed before they end, put into use without a restart or a dropped connection.

A home is made as it would have been made weeks ago, and the renewal is run from here at a time within what a new
certificate is backdated by: so nobody has to turn a clock.
"""

from __future__ import annotations

import errno
import os
import secrets
import ssl
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from enroll import authority
from enroll.own_identities import number_in_use, own_identities
from enroll.registry import Registry, identity
from enroll.registry.records import CertificateState
from enroll.renewal import Renewal
from fleet import pki
from fleet.config import load
from fleet.identity import DISPATCH, State
from fleet.layout import AdminHome
from tests import mqtt
from tests.fleets import CRL_URL, DOMAIN, new_home
from tests.processes import Program
from tests.system.brokers import enrol, mosquitto, operator, peer, start_broker, start_service, wait_ready

NEARLY_DUE, AHEAD = timedelta(days=59, hours=23, minutes=30), timedelta(minutes=50)
ALL = [
    "server/enroll",
    "server/broker",
    "broker/broker",
    "broker/broker",
    "service/dispatch",
    "operator/admin",
    "server/dispatch-signing",
]


def home_of(path: Path, age: timedelta) -> AdminHome:
    return new_home(path / "fleet", datetime.now(UTC) - age)


def renew(home: AdminHome, registry: Registry, ahead: timedelta) -> list[str]:
    """What is renewed by a service whose clock is so far ahead."""
    config = load(home.config.read_text())
    cas = authority.load(home, DOMAIN, CRL_URL)
    made = Renewal(home, config, registry, cas, secrets.token_bytes).renew_due(datetime.now(UTC) + ahead)
    return [own.name for own in made]


def certificate(path: Path) -> x509.Certificate:
    return authority.read_certificate(path)


def shown_by(port: int) -> int:
    """The serial of the certificate that a server shows to whoever connects now."""
    pem = ssl.get_server_certificate(("127.0.0.1", port))
    return x509.load_pem_x509_certificate(pem.encode()).serial_number


def test_servers_swap_and_nobody_is_dropped(tmp_path: Path) -> None:
    """Every ninety days somebody would have to restart both, and the fleet would reconnect at once."""
    home = home_of(tmp_path, NEARLY_DUE)
    pump = enrol(home, "pump-07")
    with start_service(home) as service, start_broker(home) as broker, Registry.open(home.registry) as registry:
        https, mqtts = wait_ready(service), wait_ready(broker)
        before = certificate(home.broker_server.certificate).serial_number
        with peer(home, pump, mqtts) as device:
            assert mqtt.ACCEPTED == device.ask(mqtt.connect("pump-07"))
            assert ALL == renew(home, registry, AHEAD)
            broker.wait_for_line("trust.replaced", stream="stderr")
            service.wait_for_line("identity.shown", stream="stderr")
            device.sync()
            with peer(home, pump, mqtts) as newcomer:
                der = newcomer.socket.getpeercert(binary_form=True)
                assert der is not None
                shown = x509.load_der_x509_certificate(der).serial_number
        assert before != shown
        assert certificate(home.broker_server.certificate).serial_number == shown
        assert certificate(home.enroll_server.certificate).serial_number == shown_by(https)
        assert _is_healthy(home, https)


def _is_healthy(home: AdminHome, port: int) -> bool:
    context = ssl.create_default_context(cafile=str(home.root.certificate))
    with urllib.request.urlopen(f"https://localhost:{port}/healthz", context=context) as answer:
        return bool(200 == answer.status)


def test_clients_of_the_fleets_own_go_on_with_their_next_certificates(tmp_path: Path) -> None:
    """The broker would stop hearing of revocations, dispatch of devices, and the operator would be locked out."""
    home = home_of(tmp_path, NEARLY_DUE)
    with start_service(home) as service, Registry.open(home.registry) as registry:
        wait_ready(service)
        with start_broker(home) as broker:
            wait_ready(broker)
            service.wait_for_line("dispatch.online", stream="stderr")
            seen = broker.line_count("stderr")
            assert ALL == renew(home, registry, AHEAD)
            broker.wait_for_line("trust.replaced", stream="stderr", after=seen)
            broker.wait_for_line("directory.following", stream="stderr", after=seen)
        with start_broker(home) as broker:
            serial = pki.serial_of(certificate(home.dispatch.certificate))
            port = wait_ready(broker)
            broker.wait_for_line(f"connection.accepted client=dispatch .*serial={serial}", stream="stderr")
            sent = ("-t", "fleet/notices/hello", "-m", "x", "-q", 1)
            mosquitto("mosquitto_pub", home, operator(home), port, "admin", *sent).check()
            assert "canary.incomplete" not in broker.stderr


def test_what_ran_out_while_nothing_ran_is_good_again_after_a_start(tmp_path: Path) -> None:
    """A gateway that was off for a season would need a new fleet."""
    home = home_of(tmp_path, timedelta(days=120))
    with start_service(home) as service:
        port = wait_ready(service)
        assert _is_healthy(home, port)
        with start_broker(home) as broker:
            wait_ready(broker)
            service.wait_for_line("dispatch.online", stream="stderr")


def test_a_certificate_that_was_ended_is_not_renewed(tmp_path: Path) -> None:
    """Revoking dispatch would last until its next renewal."""
    home = home_of(tmp_path, timedelta(days=70))
    with Registry.open(home.registry) as registry:
        with registry.write() as transaction:
            held = identity.find_principal(transaction, DISPATCH.id)
            assert held is not None
            serials = [each.serial for each in identity.certificates_of(transaction, held.id)]
            identity.set_certificate_states(transaction, serials, CertificateState.REVOKED)
        renewed = renew(home, registry, timedelta())
    assert "service/dispatch" not in renewed
    assert "operator/admin" in renewed


@pytest.mark.parametrize("fails", ["fsync", "symlink"])  # before the commit, and after it
def test_a_renewal_that_was_cut_off_is_made_again(
    tmp_path: Path, fails: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A power cut would leave a key without its certificate in use, or two successors."""
    home = home_of(tmp_path, timedelta(days=70))
    with Registry.open(home.registry) as registry:
        monkeypatch.setattr(os, fails, _disk_error)
        assert [] == renew(home, registry, timedelta())
        assert "identity.not_renewed" in caplog.text
        monkeypatch.undo()
        assert {1} == {number_in_use(own) for own in own_identities(home)}
        assert 7 == len(renew(home, registry, timedelta()))
        assert {2} == {number_in_use(own) for own in own_identities(home)}
        with registry.read() as transaction:
            live = identity.live_certificates_of(transaction, DISPATCH.id)
            held = identity.find_principal(transaction, DISPATCH.id)
    assert held is not None
    assert State.ACTIVE is held.state
    assert [CertificateState.CONFIRMED, CertificateState.PENDING] == sorted(each.state for each in live)
    assert pki.serial_of(certificate(home.dispatch.certificate)) in {each.serial for each in live}


def _disk_error(*_: object) -> None:
    raise OSError(errno.EIO, "Input/output error")


def test_nothing_is_renewed_before_its_time(tmp_path: Path) -> None:
    """The registry would fill with certificates, one a minute."""
    home = home_of(tmp_path, timedelta(days=30))
    with Registry.open(home.registry) as registry:
        assert [] == renew(home, registry, timedelta())


def test_serve_tells_what_it_renewed(tmp_path: Path) -> None:
    """An admin who looks for what changed would find nothing."""
    home = home_of(tmp_path, timedelta(days=70))
    with start_service(home) as service:
        wait_ready(service)
        assert 7 == len(_lines(service, "identity.renewed name="))


def _lines(program: Program, text: str) -> list[str]:
    return [line for line in program.stderr.splitlines() if text in line]
