"""Whether the fleet takes a certificate, found out without disturbing the connection that lives on the one before.

The enrollment service says it by answering `/v1/config`. A broker says it by how it refuses a CONNECT without a client
id that wants to keep its session: such a one is always refused (MQTT-3.1.3-8), with return code 2 if only the id is
wrong, and otherwise if the certificate is. No session is touched by it; the broker logs one refusal, `no-client-id`.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from device_agent import config_client, https, tls
from device_agent.clock import Clock
from device_agent.failures import Cause, Failure
from device_agent.renewal import Code, Problem, problem_of
from fleet.address import Address
from fleet.identity import DeviceId, Server
from fleet.layout import AgentHome, IdentityFiles

_SECONDS: Final = 10.0
_CONNECT_WITHOUT_ID: Final = b"\x10\x0c\x00\x04MQTT\x04\x00\x00\x0a\x00\x00"
_DISCONNECT: Final = b"\xe0\x00"
_ACCEPTED, _ID_REJECTED, _UNAVAILABLE, _BAD_LOGIN, _NOT_AUTHORISED = 0, 2, 3, 4, 5


@dataclass(frozen=True, slots=True)
class Proof:
    """Asks on behalf of `device`, with the certificate in `identity`."""

    home: AgentHome
    device: DeviceId
    identity: IdentityFiles
    clock: Clock

    def by_service(self, url: str) -> tuple[Address, ...] | Failure:
        """The brokers, told to the holder of the new certificate; or why not."""
        try:
            return config_client.fetch_brokers(self.home, url, self.clock, self.identity)
        except https.RequestFailed as error:
            return error.failure

    def by_any(self, brokers: Iterable[Address]) -> Problem | None:
        """None if a broker takes the certificate; else why the last one that was asked does not."""
        problem = Problem(Code.NO_PROOF, "no broker is known to try the new certificate on", "an admin starts one")
        for broker in brokers:
            failure = self.by_broker(broker)
            if failure is None:
                return None
            problem = problem_of(failure, self.device)
            if failure.cause in (Cause.REFUSED, Cause.CLOSED):
                message = f"{broker} does not take the new certificate ({failure.detail})"
                return Problem(Code.BROKER_REFUSES, message, "does the broker reach the service? broker's log says why")
        return problem

    def by_broker(self, broker: Address) -> Failure | None:
        """Why that broker does not take the certificate; None if it does."""
        peer = str(broker)
        try:
            context = tls.context_for(Server.BROKER, self.home.trust.read_text(), self.clock, self.identity)
            with context.in_time(lambda: tls.connect(context, broker, _SECONDS)) as connection:
                connection.settimeout(_SECONDS)
                connection.sendall(_CONNECT_WITHOUT_ID)
                return _read_answer(connection, peer)
        except (OSError, ValueError) as error:
            return tls.failure_of(error, peer)


def _read_answer(connection: ssl.SSLSocket, peer: str) -> Failure | None:
    data = b""
    while len(data) < 4:
        more = connection.recv(4 - len(data))
        if not more:
            return Failure(Cause.CLOSED, peer, "no CONNACK")
        data += more
    match data:
        case bytes() if data[0] != 0x20:
            return Failure(Cause.BAD_ANSWER, peer, f"{data.hex()} is no CONNACK")
        case bytes() if data[3] == _ACCEPTED:
            connection.sendall(_DISCONNECT)
            return None
        case bytes() if data[3] == _ID_REJECTED:
            return None
        case bytes() if data[3] == _UNAVAILABLE:
            return Failure(Cause.UNREACHABLE, peer, "CONNACK: unavailable")
        case bytes() if data[3] in (_BAD_LOGIN, _NOT_AUTHORISED):
            return Failure(Cause.REFUSED, peer, "CONNACK: not authorized")
        case _:
            return Failure(Cause.BAD_ANSWER, peer, f"CONNACK: return code {data[3]}")
