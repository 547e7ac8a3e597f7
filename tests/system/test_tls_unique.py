"""Requests that say for which connection they were made (RFC 7030, 3.5), over real TLS 1.2 and 1.3.

openssl writes them: it encodes a challengePassword as libest does, which hands its value to the same function.
"""

from __future__ import annotations

import base64
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import run
from tests.system.brokers import enrol
from tests.system.enrolling import Service, running_service

TLS_1_2, TLS_1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
OTHER = base64.b64encode(bytes(12)).decode()
NOT_THIS = b"the request's challengePassword is not the tls-unique of this connection\n"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("tls")) as service:
        yield service


def made_by_openssl(folder: Path, device: str, challenge: str) -> bytes:
    """The DER of a request with that challengePassword, and the same key each time for a device."""
    key, config, out = folder / f"{device}.key", folder / f"{device}.cnf", folder / f"{device}.csr"
    config.write_text(
        "[req]\nprompt = no\ndistinguished_name = name\nattributes = attributes\n"
        f"[name]\nCN = {device}\n[attributes]\nchallengePassword = {challenge}\n"
    )
    if not key.exists():
        run("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key).check()
    run("openssl", "req", "-new", "-key", key, "-config", config, "-outform", "DER", "-out", out).check()
    return out.read_bytes()


def test_a_request_for_this_connection_is_signed(running: Service, tmp_path: Path) -> None:
    """libest, told to prove possession, cannot enrol."""
    token = running.token("proven")
    with running.connection(version=TLS_1_2) as connection:
        request = made_by_openssl(tmp_path, "proven", connection.tls_unique)
        assert 200 == connection.enrol(token, request)[0]
        assert 200 == connection.enrol(token, request)[0]  # asked again: the same certificate


def test_a_request_for_another_connection_is_refused_and_its_token_stays_good(running: Service, tmp_path: Path) -> None:
    """Whoever relays a device's request gets it signed, or spends its token."""
    token = running.token("relayed")
    with running.connection(version=TLS_1_2) as of_device, running.connection(version=TLS_1_2) as of_relay:
        assert of_device.tls_unique != of_relay.tls_unique
        request = made_by_openssl(tmp_path, "relayed", of_device.tls_unique)
        status, reason = of_relay.enrol(token, request)
        assert (400, NOT_THIS) == (status, reason[: len(NOT_THIS)])
        assert 200 == of_device.enrol(token, request)[0]


def test_a_relay_does_not_get_around_it_by_tls_1_3(running: Service, tmp_path: Path) -> None:
    """Whoever relays a request chooses the version in which there is nothing to compare."""
    token = running.token("upgraded")
    with running.connection(version=TLS_1_2) as of_device, running.connection(version=TLS_1_3) as of_relay:
        request = made_by_openssl(tmp_path, "upgraded", of_device.tls_unique)
        status, reason = of_relay.enrol(token, request)
        assert (400, True) == (status, b"TLS 1.3 has no tls-unique" in reason)
        assert 200 == of_device.enrol(token, request)[0]


@pytest.mark.parametrize("challenge", [OTHER, "secret", "="])
def test_a_value_that_is_wrong_is_refused(running: Service, tmp_path: Path, challenge: str) -> None:
    """Any value is as good as the right one."""
    with running.connection(version=TLS_1_2) as connection:
        request = made_by_openssl(tmp_path, "wrong", challenge)
        status, reason = connection.enrol(running.token("wrong"), request)
    assert (400, NOT_THIS) == (status, reason[: len(NOT_THIS)])


def test_the_end_of_the_right_value_is_not_enough(running: Service, tmp_path: Path) -> None:
    """A value is compared in part."""
    with running.connection(version=TLS_1_2) as connection:
        request = made_by_openssl(tmp_path, "part", connection.tls_unique[:-4])
        assert 400 == connection.enrol(running.token("part"), request)[0]


def test_a_renewal_proves_possession_too(running: Service, tmp_path: Path) -> None:
    """A relayed request gets a new certificate for a device that has one."""
    files = enrol(running.home, "renewing")
    with running.connection(files, TLS_1_2) as connection, running.connection(files, TLS_1_2) as other:
        request = made_by_openssl(tmp_path, "renewing", connection.tls_unique)
        assert 400 == other.enrol(None, request)[0]
        assert 200 == connection.enrol(None, request)[0]
