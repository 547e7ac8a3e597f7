"""Devices that enrol for minutes at a steady rate: throughput, latency, and where the service's CPU goes.

Three loads against one `enroll serve`, in one run and at one rate: TLS handshakes and nothing else, those that ask for
/healthz, and enrolments with a token each. A request is due at its moment whether or not those before it were answered
(Tene's coordinated omission), and its latency counts from then. What the service used is what the kernel accounted to
its process. The parts of an enrolment are sampled in this process, where the same code runs on a registry of its own.
"""

from __future__ import annotations

import argparse
import logging
import secrets
import signal
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import psutil

from benchmarks.enrol import HEALTH, Sender, client_context, enrolments_of, new_home, running_service
from enroll import authority
from enroll.est_app import EstApp
from enroll.registry import Registry
from enroll.service import Enrolment
from fleet import est
from fleet.est import EstRequest
from fleet.identity import TrustDomain
from fleet.layout import AdminHome

_DOMAIN = TrustDomain("bench.example")
_SAMPLED = 1500
_SAMPLE_SECONDS = 0.001
# The outermost of these that is on the stack is what a sample counts for.
_PARTS = {
    ("fleet/est.py", "parse_csr"): "CSR: read, signature verified",
    ("enroll/issuer.py", "issue"): "CA: signed, verified, checked",
    ("registry/statement.py", None): "registry",
    ("registry/database.py", None): "registry",
}
_REST = "Python between them"


@dataclass(frozen=True, slots=True)
class Load:
    """What a load cost the service, and what its clients saw. Seconds."""

    cpu: float
    wall: float
    latencies: list[float]

    @property
    def cpu_ms(self) -> float:
        return 1000 * self.cpu / len(self.latencies)

    @property
    def line(self) -> str:
        p50, p99 = (1000 * statistics.quantiles(self.latencies, n=100)[at] for at in (49, 98))
        return f"{self.cpu_ms:12.2f}{len(self.latencies) / self.wall:12.1f}{p50:10.1f}{p99:10.1f}"


def main(arguments: Sequence[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="bench enrol_steady", description=__doc__)
    parser.add_argument("--devices", type=int, default=50, help="connections at a time, at most (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=100.0, help="a second (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=120.0, help="of enrolments (default: %(default)s)")
    options = parser.parse_args(arguments)
    count = round(options.rate * options.seconds)
    with tempfile.TemporaryDirectory() as folder:
        home = new_home(Path(folder) / "fleet")
        requests = list(enrolments_of(home, count + 100))
        parts = sampled_parts(new_home(Path(folder) / "sampled"))
        with running_service(home) as (process, port):
            send = Sender(client_context(home), port, options.devices)
            send.all([HEALTH] * 100 + requests[:100])  # warm: imports, statement caches, the allocator

            def load(each: Callable[[bytes], object], sent: Sequence[bytes]) -> Load:
                return paced(process, each, sent, options.rate, options.devices)

            handshakes = load(send.shake_hands, [b""] * (count // 4))
            answers = load(send.checked, [HEALTH] * (count // 4))
            enrolments = load(send.checked, requests[100:])
    report(handshakes, answers, enrolments, parts)
    return 0


def report(handshakes: Load, answers: Load, enrolments: Load, parts: dict[str, float]) -> None:
    """Print the loads, then what an enrolment is made of."""
    print(f"{'':36}{'CPU ms each':>12}{'per second':>12}{'p50 ms':>10}{'p99 ms':>10}")
    print(f"{'TLS 1.3 handshake':36}{handshakes.line}")
    print(f"{'TLS 1.3 handshake + GET /healthz':36}{answers.line}")
    print(f"{'cold enrolment, durable':36}{enrolments.line}")
    http = answers.cpu_ms - handshakes.cpu_ms
    shares = {"TLS": handshakes.cpu_ms, "HTTP": http, **parts}
    shares["handing over; caches that went cold"] = enrolments.cpu_ms - sum(shares.values())
    for name, cpu_ms in shares.items():
        print(f"{'  of that ' + name:46}{cpu_ms:6.2f} ms{cpu_ms / enrolments.cpu_ms:6.0%}")
    ratio = enrolments.cpu_ms / handshakes.cpu_ms
    print(f"an enrolment costs {ratio:.1f} TLS handshakes  ({len(enrolments.latencies)}, on {psutil.cpu_count()} CPUs)")


def paced(
    process: psutil.Process, each: Callable[[bytes], object], sent: Sequence[bytes], rate: float, parallel: int
) -> Load:
    """Send each at its moment; what it cost the process."""
    before, began = process.cpu_times(), time.perf_counter()

    def one(due: float, request: bytes) -> float:
        each(request)
        return time.perf_counter() - due

    with ThreadPoolExecutor(parallel) as pool:
        sending = []
        for number, request in enumerate(sent):
            due = began + number / rate
            time.sleep(max(0.0, due - time.perf_counter()))
            sending.append(pool.submit(one, due, request))
        latencies = [future.result() for future in sending]
    after = process.cpu_times()
    used = after.user + after.system - before.user - before.system
    return Load(used, time.perf_counter() - began, latencies)


def sampled_parts(home: AdminHome) -> dict[str, float]:
    """Milliseconds of CPU that the parts of an enrolment take, where nothing else runs between them."""
    requests = [_as_value(request) for request in enrolments_of(home, _SAMPLED + 100)]
    logging.getLogger("enroll").setLevel(logging.WARNING)
    with Registry.open(home.registry) as registry:
        cas = authority.load(home, _DOMAIN, "http://localhost:8080/crl")
        enrolment = Enrolment(registry, cas.devices, _DOMAIN, secrets.token_bytes)
        app = EstApp(enrolment, cas.certificates, tuple, lambda: datetime.now(UTC), time.monotonic)
        for request in requests[:100]:
            app.handle(request)
        began = time.process_time()
        with sampling() as samples:
            for request in requests[100:]:
                assert 200 == app.handle(request).status
        used_ms = 1000 * (time.process_time() - began) / _SAMPLED
    total = sum(samples.values())
    return {name: used_ms * samples[name] / total for name in (*dict.fromkeys(_PARTS.values()), _REST)}


@contextmanager
def sampling() -> Iterator[Counter[str]]:
    """Counts, by what was running, each millisecond of CPU that this process uses."""
    samples = Counter[str]()

    def sample(_signal: int, frame: FrameType | None) -> None:
        samples[_part_of(frame)] += 1

    before = signal.signal(signal.SIGPROF, sample)
    signal.setitimer(signal.ITIMER_PROF, _SAMPLE_SECONDS, _SAMPLE_SECONDS)
    try:
        yield samples
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _part_of(frame: FrameType | None) -> str:
    found = _REST
    while frame is not None:
        code = frame.f_code
        for (file, function), part in _PARTS.items():
            if code.co_filename.endswith(file) and function in (None, code.co_name):
                found = part
        frame = frame.f_back
    return found


def _as_value(request: bytes) -> EstRequest:
    head, _, body = request.partition(b"\r\n\r\n")
    fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
    headers = {name.lower(): value for name, value in fields.items()}
    return EstRequest("POST", est.SIMPLE_ENROLL, headers, body, address="127.0.0.1")
