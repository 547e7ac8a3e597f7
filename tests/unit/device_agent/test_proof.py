"""What a broker's answer says of a certificate, over real TLS."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from device_agent.failures import Cause
from device_agent.proof import Proof
from device_agent.renewal import Code
from fleet.config import Address
from fleet.identity import DeviceId
from fleet.layout import AgentHome, IdentityFiles
from tests.unit.device_agent.authority import Authority, new_authority
from tests.unit.device_agent.clocks import real_clock
from tests.unit.device_agent.servers import server_context, tls_server

PUMP = DeviceId("pump-07")


@pytest.fixture(scope="module", name="authority")
def _authority() -> Authority:
    return new_authority()


def proof_of(authority: Authority, folder: Path) -> Proof:
    home = AgentHome(folder / "home")
    certificate, key = authority.client(PUMP).write(home.generation(2))
    home.trust.write_text(authority.roots_pem)
    return Proof(home, PUMP, IdentityFiles(certificate, key), real_clock())


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (b"\x20\x02\x00\x02", None),
        (b"\x20\x02\x00\x00", None),
        (b"\x20\x02\x00\x05", Cause.REFUSED),
        (b"\x20\x02\x00\x04", Cause.REFUSED),
        (b"\x20\x02\x00\x03", Cause.UNREACHABLE),
        (b"\x20\x02\x00\x01", Cause.BAD_ANSWER),
        (b"HTTP", Cause.BAD_ANSWER),
        (b"\x20\x02", Cause.CLOSED),
        (b"", Cause.CLOSED),
    ],
)
def test_the_answer_to_a_connect_without_an_id(
    authority: Authority, tmp_path: Path, answer: bytes, cause: Cause | None
) -> None:
    """A certificate that the broker refuses would be put into use, or one that it takes never."""
    asked = list[bytes]()

    def serve(connection: ssl.SSLSocket) -> None:
        asked.append(connection.recv(64))
        connection.sendall(answer)

    with tls_server(server_context(authority.server("broker"), tmp_path / "broker"), serve) as broker:
        failure = proof_of(authority, tmp_path).by_broker(Address("127.0.0.1", broker.port))
    assert cause == (failure and failure.cause)
    assert [b"\x10\x0c\x00\x04MQTT\x04\x00\x00\x0a\x00\x00"] == asked  # MQTT 3.1.1, no session of its own, no id


def test_nothing_is_said_to_who_is_no_broker_of_ours(authority: Authority, tmp_path: Path) -> None:
    """The enrollment service's certificate, stolen, would do for a broker."""
    asked = list[bytes]()
    context = server_context(authority.server("enroll"), tmp_path / "enroll")
    with tls_server(context, lambda connection: asked.append(connection.recv(64))) as impostor:
        failure = proof_of(authority, tmp_path).by_broker(Address("127.0.0.1", impostor.port))
    assert failure is not None
    assert (Cause.IMPOSTOR, []) == (failure.cause, [data for data in asked if data])


def test_one_broker_that_takes_it_is_enough_and_none_is_no_proof(authority: Authority, tmp_path: Path) -> None:
    """One broker of several that is away would stop every renewal, or a fleet without one would prove everything."""

    def serve(connection: ssl.SSLSocket) -> None:
        connection.recv(64)
        connection.sendall(b"\x20\x02\x00\x02")

    proof = proof_of(authority, tmp_path)
    with tls_server(server_context(authority.server("broker"), tmp_path / "broker"), serve) as broker:
        assert None is proof.by_any([Address("127.0.0.1", 1), Address("127.0.0.1", broker.port)])
    problem = proof.by_any([Address("127.0.0.1", 1)])
    assert problem is not None
    assert "unreachable" == problem.code
    nobody = proof.by_any([])
    assert nobody is not None
    assert Code.NO_PROOF == nobody.code
