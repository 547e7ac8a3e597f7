"""Thousands of devices whose renewals are due within a minute: spread by the service's pacing, and all finished.

Twice: all of them against the real service in this process, in a time of its own that passes as fast as it can, with
the clamps of the real agent; and a sample of them over real TLS against `enroll serve`, in real time.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import logging
import os
import random
import secrets
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding

from benchmarks import _fleet
from benchmarks._renewals import Renewer
from device_agent.renewal import MAX_WAIT_SECONDS, Life
from enroll import authority
from enroll.est_app import EstApp
from enroll.home import read_config
from enroll.pacing import RENEWALS_PER_SECOND
from enroll.registry import Registry, identity
from enroll.registry.records import CertificateRecord, CertificateState
from enroll.service import Enrolment
from fleet import est
from fleet.est import EstRequest, EstResponse
from fleet.identity import DeviceId
from fleet.layout import IdentityFiles
from tests.fleets import certificate_in, csr

DUE_WITHIN_SECONDS: Final = 60.0
_BATCH: Final = 16  # as `enroll.worker`
_MOMENT_SECONDS: Final = 0.05  # what comes within it comes together


class Step(Enum):
    """What a device does next."""

    ASK = auto()
    RENEW = auto()
    CONFIRM = auto()


@dataclass(slots=True)
class Device:
    """One simulated device: its certificate, and when it renewed (seconds of the storm)."""

    id: DeviceId
    life: Life
    certificate: bytes
    successor: bytes = b""
    waited: float = 0.0
    renewed_at: float = -1.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """When each device had its new certificate, the first first; what was refused; and the service's CPU for each."""

    seconds: tuple[float, ...]
    longest_wait: float
    refused: int
    cpu_ms: float

    @property
    def busiest_second(self) -> int:
        return max(Counter(map(int, self.seconds)).values())

    @property
    def is_spread(self) -> bool:
        """Whether no second had more than the service's pace; a moment's more is the width of a batch."""
        return self.busiest_second <= RENEWALS_PER_SECOND * (1 + _MOMENT_SECONDS) + 1

    def __str__(self) -> str:
        return (
            f"{len(self.seconds)} renewed: half after {self.seconds[len(self.seconds) // 2]:.0f} s, the last after "
            f"{self.seconds[-1]:.0f} s, at most {self.busiest_second} within one second, the longest wait "
            f"{self.longest_wait:.0f} s, {self.refused} refused; {self.cpu_ms:.1f} ms CPU each"
        )


@dataclass
class Storm:
    """All devices in a time of its own; `began` is the moment in which the first renewal is due."""

    app: EstApp
    devices: Sequence[Device]
    began: datetime
    seconds: float = 0.0
    refused: int = 0
    cpu_seconds: float = 0.0
    _due: list[tuple[float, int, Step, Device]] = field(default_factory=list)
    _order: itertools.count[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.app.clock = lambda: self.began + timedelta(seconds=self.seconds)
        self.app.monotonic = lambda: self.seconds

    def run(self, chance: random.Random, due_within: float) -> Outcome:
        for device in self.devices:
            self._at(chance.uniform(0, due_within), Step.ASK, device)
        while self._due:
            self._answer(self._next())
        done = sorted(device.renewed_at for device in self.devices)
        return Outcome(
            tuple(done), max(each.waited for each in self.devices), self.refused, 1000 * self.cpu_seconds / len(done)
        )

    def _at(self, seconds: float, step: Step, device: Device) -> None:
        heapq.heappush(self._due, (seconds, next(self._order), step, device))

    def _next(self) -> list[tuple[Step, Device]]:
        """Those who come within one moment, as many as the service answers together."""
        self.seconds = max(self.seconds, self._due[0][0])
        found: list[tuple[Step, Device]] = []
        while self._due and self._due[0][0] <= self.seconds + _MOMENT_SECONDS and len(found) < _BATCH:
            _, _, step, device = heapq.heappop(self._due)
            found.append((step, device))
        return found

    def _answer(self, asked: Sequence[tuple[Step, Device]]) -> None:
        requests = [_request(step, device) for step, device in asked]
        began = time.process_time()
        answers = self.app.handle_all(requests)
        self.cpu_seconds += time.process_time() - began
        for (step, device), answer in zip(asked, answers, strict=True):
            self._go_on(step, device, answer)

    def _go_on(self, step: Step, device: Device, answer: EstResponse) -> None:
        """What the agent does with the answer."""
        if answer.status != 200:
            self.refused += 1
            self._at(self.seconds + 30.0, step, device)
            return
        match step:
            case Step.ASK:
                asked = float(json.loads(answer.body)["wait_seconds"])
                device.waited = device.life.paced_seconds(self.app.clock(), asked)
                self._at(self.seconds + device.waited, Step.RENEW, device)
            case Step.RENEW:
                device.successor = certificate_in(answer).public_bytes(Encoding.DER)
                device.renewed_at = self.seconds
                self._at(self.seconds + 1.0, Step.CONFIRM, device)
            case Step.CONFIRM:
                pass


def _request(step: Step, device: Device) -> EstRequest:
    match step:
        case Step.ASK:
            return EstRequest("GET", est.RENEWAL_INFO, peer=device.certificate, address="192.0.2.7")
        case Step.RENEW:
            headers = {"content-type": est.PKCS10}
            body = est.encode_body(csr(device.id))
            return EstRequest("POST", est.SIMPLE_REENROLL, headers, body, peer=device.certificate, address="192.0.2.7")
        case Step.CONFIRM:
            return EstRequest("POST", est.CONFIRM, peer=device.successor, address="192.0.2.7")
    raise AssertionError(step)


def simulated(folder: Path, count: int, chance: random.Random, due_within: float = DUE_WITHIN_SECONDS) -> Outcome:
    """`count` devices in a time of their own; the registry holds what it should in the end."""
    home = _fleet.new_home(folder / "fleet")
    ids = list(_fleet.add_clients(home, [f"storm-{number}" for number in range(count)]))
    logger = logging.getLogger("enroll")
    before, logger.level = logger.level, logging.WARNING
    try:
        with Registry.open(home.registry) as registry:
            config = read_config(home)
            cas = authority.load(home, config.trust_domain, config.crl_url)
            enrolment = Enrolment(registry, cas.devices, config.trust_domain, secrets.token_bytes)
            app = EstApp(enrolment, cas.certificates, tuple, lambda: datetime.now(UTC), time.monotonic)
            devices = [_device(each) for device in ids for each in _certificates(registry, device)]
            outcome = Storm(app, devices, devices[0].life.at(0.65)).run(chance, due_within)
            _check(registry, ids)
    finally:
        logger.level = before
    return outcome


def _device(found: CertificateRecord) -> Device:
    assert found.principal is not None
    return Device(found.principal, Life(found.serial, found.not_before, found.not_after), found.der)


def _certificates(registry: Registry, id: DeviceId) -> list[CertificateRecord]:
    with registry.read() as transaction:
        return identity.certificates_of(transaction, id)


def _check(registry: Registry, ids: Sequence[DeviceId]) -> None:
    """Each device has been renewed, once, and uses its new certificate."""
    for device in ids:
        states = [each.state for each in _certificates(registry, device)]
        assert [CertificateState.CONFIRMED] * 2 == states, f"{device}: {states}"


def over_tls(folder: Path, count: int) -> Outcome:
    """`count` devices that are due at once, over real TLS and in real time, each request as an agent makes it."""
    home = _fleet.new_home(folder / "fleet")
    clients = _fleet.add_clients(home, [f"storm-{number}" for number in range(count)])
    with _fleet.running("enroll", home) as service, ThreadPoolExecutor(count) as pool:
        stopping, before, began = threading.Event(), service.cpu_seconds, time.perf_counter()

        def renew(device: DeviceId, files: IdentityFiles) -> tuple[float, float]:
            renewer = Renewer(home, service.port, device, files)
            waited = min(renewer.wait_seconds(), MAX_WAIT_SECONDS)
            stopping.wait(waited)
            renewer.renew()
            return time.perf_counter() - began, waited

        try:
            done = sorted(pool.map(renew, clients.keys(), clients.values()))
        finally:
            stopping.set()
        cpu_ms = 1000 * (service.cpu_seconds - before) / count
    with Registry.open(home.registry) as registry:
        _check(registry, list(clients))
    return Outcome(tuple(at for at, _ in done), max(waited for _, waited in done), 0, cpu_ms)


def main(arguments: Sequence[str]) -> int:
    """The command line; 1 if they were not spread, or somebody was refused."""
    parser = argparse.ArgumentParser(prog="dev soak renewal-storm", description=__doc__)
    parser.add_argument("--devices", type=int, default=10_000, help="in a time of their own (default: %(default)s)")
    parser.add_argument("--real", type=int, default=300, help="over real TLS (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="of the moments")
    options = parser.parse_args(arguments)
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        many = simulated(Path(folder), options.devices, random.Random(options.seed))
    print(f"due within a minute: {many}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        few = over_tls(Path(folder), options.real)
    print(f"due at once, over TLS: {few}  (load average {os.getloadavg()[0]:.1f})")
    return 0 if many.is_spread and not many.refused else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
