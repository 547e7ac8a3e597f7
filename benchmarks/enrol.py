"""CPU that one enrolment costs the service (cold TLS, durable), and how much of it is TLS, beside OpenSSL's own server.

Three loads, in turns: new connections that ask `openssl s_server` for a file, new connections that ask `enroll serve`
for /healthz, and new connections that enrol a device each with a token of its own. What a server used is what the
kernel accounted to its process. The bar is for the mean of all rounds. What else runs on the machine adds to it (cold
caches, a shared core): how far apart the round that cost least and the one that cost most are says how much. A round in
which a hypervisor gave the CPUs to other machines is done again, a few times: what it gave them is known, what they did
to the caches is not.
"""

from __future__ import annotations

import argparse
import base64
import secrets
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import psutil
from cryptography.hazmat.primitives.asymmetric import ec

from enroll import service
from enroll.initialise import Plan, initialise
from enroll.registry import Registry
from enroll.tokens import TokenOrder
from fleet import est
from fleet.config import parse_address
from fleet.identity import DeviceId, TrustDomain
from fleet.layout import AdminHome

BAR_MS = 2.5  # DESIGN section 10
_MOST_STOLEN: Final = 0.01
_TRIES: Final = 4


@dataclass(frozen=True, slots=True)
class Load:
    """What a load cost: CPU of the service, and the time it took."""

    count: int
    cpu_seconds: float
    wall_seconds: float

    @property
    def cpu_ms(self) -> float:
        return 1000 * self.cpu_seconds / self.count


@dataclass(frozen=True, slots=True)
class Round:
    """All loads, in the same moment of the machine, and what share of its CPUs went to other machines meanwhile."""

    peer: Load
    handshakes: Load
    enrolments: Load
    stolen: float


def main(arguments: Sequence[str]) -> int:
    """Measure and print; 1 if an enrolment costs more than the bar."""
    parser = argparse.ArgumentParser(prog="bench enrol", description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="enrolments in a round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="(default: %(default)s)")
    parser.add_argument("--parallel", type=int, default=4, help="connections at a time (default: %(default)s)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        home = new_home(Path(folder) / "fleet")
        with running_service(home) as (process, port), openssl_server(home, Path(folder)) as (peer, peer_port):
            context = client_context(home)
            service = Server(process, Sender(context, port, options.parallel))
            openssl = Server(peer, Sender(context, peer_port, options.parallel))
            openssl.cost([HEALTH] * 100)  # warm: imports, statements, the allocator
            service.cost([HEALTH] * 100 + list(enrolments_of(home, 100, "warm")))
            rounds: list[Round] = []
            for number in range(_TRIES * options.rounds):
                rounds.append(one_round(openssl, service, list(enrolments_of(home, options.count, f"{number}"))))
                if sum(each.stolen <= _MOST_STOLEN for each in rounds) == options.rounds:
                    break
            return report(quietest(rounds, options.rounds))


def one_round(peer: Server, service: Server, enrolments: Sequence[bytes]) -> Round:
    """All loads, one after the other."""
    before, gets = psutil.cpu_times(), [HEALTH] * len(enrolments)
    loads = peer.cost(gets), service.cost(gets), service.cost(enrolments)
    after = psutil.cpu_times()
    return Round(*loads, (after.steal - before.steal) / (sum(after) - sum(before)))


def quietest(rounds: Sequence[Round], count: int) -> list[Round]:
    """So many, from which least was stolen; what they cost does not count here."""
    found = sorted(rounds, key=lambda each: each.stolen)[:count]
    if len(rounds) > count or found[-1].stolen > _MOST_STOLEN:
        print(
            f"of {len(rounds)} rounds the {count} from which a hypervisor took least for others, "
            f"up to {found[-1].stolen:.0%} of the CPUs"
        )
    return found


def report(rounds: Sequence[Round]) -> int:
    """Print all loads, and the share of TLS."""
    print(f"{'CPU ms each':32}{'mean':>10}{'least':>10}{'median':>10}{'most':>10}{'per second':>12}")
    peer = print_line("GET from `openssl s_server`", [each.peer for each in rounds])
    tls = print_line("TLS 1.3 handshake + GET /healthz", [each.handshakes for each in rounds])
    whole = print_line("cold enrolment, durable", [each.enrolments for each in rounds])
    print(f"{'  of that TLS and HTTP':32}{tls:10.2f}{tls / whole:10.0%}")
    print(f"{'  of that CSR, registry, CA':32}{whole - tls:10.2f}{1 - tls / whole:10.0%}")
    print(f"{'  in connections of OpenSSL':32}{whole / peer:10.1f}")
    verdict = "met" if whole <= BAR_MS else "MISSED"
    count = sum(each.enrolments.count for each in rounds)
    print(f"bar: <= {BAR_MS} ms CPU for an enrolment: {verdict}  ({count}, on {psutil.cpu_count()} CPUs)")
    return 0 if whole <= BAR_MS else 1


def print_line(name: str, loads: Sequence[Load]) -> float:
    """One load over all rounds; its mean."""
    costs = sorted(load.cpu_ms for load in loads)
    whole = Load(
        sum(load.count for load in loads),
        sum(load.cpu_seconds for load in loads),
        sum(load.wall_seconds for load in loads),
    )
    columns = (whole.cpu_ms, costs[0], statistics.median(costs), costs[-1])
    print(f"{name:32}" + "".join(f"{cost:10.2f}" for cost in columns) + f"{whole.count / whole.wall_seconds:12.0f}")
    return whole.cpu_ms


def new_home(path: Path) -> AdminHome:
    """A fleet of its own."""
    home = AdminHome(path)
    plan = Plan(
        TrustDomain("bench.example"),
        ("localhost", "127.0.0.1"),
        "http://localhost:8080/crl",
        b"only for this run",
        parse_address("127.0.0.1:0"),
        parse_address("127.0.0.1:0"),
    )
    initialise(home, plan, now=datetime.now(UTC), token_bytes=secrets.token_bytes)
    return home


def enrolments_of(home: AdminHome, count: int, name: str = "bench") -> Iterator[bytes]:
    """The bytes of `count` enrolments: each a device of its own, its key, its token."""
    with Registry.open(home.registry) as registry:
        for number in range(count):
            device = DeviceId(f"{name}-{number}")
            invitation = service.invite(
                registry, TokenOrder(device), by="bench", now=datetime.now(UTC), token_bytes=secrets.token_bytes
            )
            body = est.encode_body(est.build_csr(ec.generate_private_key(ec.SECP256R1()), device))
            credentials = base64.b64encode(f"bench:{invitation.token}".encode()).decode()
            head = (
                f"POST {est.SIMPLE_ENROLL} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                f"Authorization: Basic {credentials}\r\n"
                f"Content-Type: {est.PKCS10}\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            yield head.encode() + body


HEALTH = f"GET {est.HEALTH} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()


@contextmanager
def running_service(home: AdminHome) -> Iterator[tuple[psutil.Process, int]]:
    """`enroll serve` as a process of its own, ready, and its port."""
    program = Path(sys.executable).with_name("enroll")
    command = [str(program), "--home", str(home.path), "serve", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        ready = process.stdout.readline().split()
        try:
            if ready[:2] != ["enroll:", "ready"]:
                raise RuntimeError("enroll serve did not come up")
            yield psutil.Process(process.pid), urlsplit(ready[2]).port or 0
        finally:
            process.terminate()


@dataclass(frozen=True, slots=True)
class Sender:
    """Sends requests, each over a connection of its own, some at a time."""

    context: ssl.SSLContext
    port: int
    parallel: int

    def all(self, requests: Sequence[bytes]) -> None:
        """Send all; every answer has to be 200."""
        with ThreadPoolExecutor(self.parallel) as pool:
            for _ in pool.map(self.checked, requests):
                pass

    def checked(self, request: bytes) -> None:
        """Send one; its answer has to be 200."""
        with self._connection() as tls:
            tls.sendall(request)
            answer = b""
            while chunk := tls.recv(16_384):
                answer += chunk
        if answer[8:13] != b" 200 ":
            raise RuntimeError(f"the server answered {answer[:200]!r}")

    def shake_hands(self, _: bytes) -> None:
        """Connect, and go."""
        with self._connection():
            pass

    @contextmanager
    def _connection(self) -> Iterator[ssl.SSLSocket]:
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self.context.wrap_socket(connection, server_hostname="localhost") as tls:
                yield tls


@contextmanager
def openssl_server(home: AdminHome, folder: Path) -> Iterator[tuple[psutil.Process, int]]:
    """OpenSSL's own server with the service's identity, that asks for a client certificate too; and its port."""
    folder.joinpath("healthz").write_text("ok\n")
    own = home.enroll_server
    options = ["-accept", "127.0.0.1:0", "-WWW", "-num_tickets", "0", "-no_ticket", "-verify", "1"]
    files = {
        "-cert": own.certificate,
        "-cert_chain": own.certificate,
        "-key": own.key,
        "-CAfile": home.root.certificate,
    }
    command = ["openssl", "s_server", *options, *(str(word) for pair in files.items() for word in pair)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=folder) as process,
        ThreadPoolExecutor(1) as reader,
    ):
        assert process.stdout is not None
        ready = next(line for line in process.stdout if line.startswith("ACCEPT"))
        reader.submit(process.stdout.read)  # a line for each connection
        try:
            yield psutil.Process(process.pid), int(ready.rpartition(":")[2])
        finally:
            process.terminate()


def client_context(home: AdminHome) -> ssl.SSLContext:
    """TLS that trusts the fleet's root alone."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(home.root.certificate)
    return context


@dataclass(frozen=True, slots=True)
class Server:
    """A process that is asked."""

    process: psutil.Process
    send: Sender

    def cost(self, requests: Sequence[bytes]) -> Load:
        """What these requests cost it."""
        return measured(self.process, lambda: self.send.all(requests), len(requests))


def measured(process: psutil.Process, load: Callable[[], None], count: int) -> Load:
    """Run a load; what it cost the process."""
    before, began = process.cpu_times(), time.perf_counter()
    load()
    after, ended = process.cpu_times(), time.perf_counter()
    return Load(count, after.user + after.system - before.user - before.system, ended - began)
