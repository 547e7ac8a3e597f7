"""A broker restarts under a few hundred agents: they come back, all of them, spread as `down/control` asks.

The agents are whole: the supervisor, its connection, its socket for applications, its files; they share this process.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import random
import re
import resource
import secrets
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from device_agent.clock import Moment
from device_agent.core.events import StopRequested
from device_agent.core.state import Settings
from device_agent.renewal import life_of
from device_agent.runner import EventQueue, Runner, World
from device_agent.store import PosixDisk
from enroll import authority
from enroll.registry import Registry
from fleet import pki
from fleet.identity import DeviceId, Role
from fleet.layout import AgentHome, Credential, decode_credential
from fleet.messages import ControlMessage
from fleet.topics import Control
from tests.certificates import pem
from tests.deadlines import within
from tests.fleets import CRL_URL, DOMAIN, Office, certificate_in, csr, new_key
from tests.system.agents import LiveFleet, Operator, live_fleet
from tests.unit.device_agent.clocks import real_clock


@dataclass(frozen=True, slots=True)
class Returned:
    """How long each agent took to be back, in seconds, the fastest first."""

    seconds: tuple[float, ...]

    @property
    def busiest_second(self) -> int:
        """How many came back within the same second."""
        return max(Counter(map(int, self.seconds)).values())

    def __str__(self) -> str:
        half, last = self.seconds[len(self.seconds) // 2], self.seconds[-1]
        return (
            f"{len(self.seconds)} agents back: half after {half:.1f} s, the last after {last:.1f} s, "
            f"at most {self.busiest_second} within one second"
        )


class Watch(logging.Handler):
    """When each agent was ready, by what it logs."""

    def __init__(self) -> None:
        super().__init__()
        self.ready: dict[str, float] = {}
        self.changed = threading.Condition()

    def emit(self, record: logging.LogRecord) -> None:
        if found := re.match(r"connection\.ready device=(\S+)", record.getMessage()):
            with self.changed:
                self.ready[found[1]] = time.monotonic()
                self.changed.notify_all()

    def wait_for(self, count: int, seconds: float) -> None:
        with self.changed:
            is_done = self.changed.wait_for(lambda: len(self.ready) >= count, within(seconds))
        assert is_done, f"{len(self.ready)} of {count} agents are ready"


@dataclass
class Crowd:
    """Agents in this process."""

    homes: Sequence[AgentHome]
    queues: list[EventQueue] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        for home in self.homes:
            queue = EventQueue()
            runner = _runner(home, queue)
            self.queues.append(queue)
            self.threads.append(threading.Thread(target=runner.run, name=home.path.name, daemon=True))
            self.threads[-1].start()

    def stop(self) -> None:
        for queue in self.queues:
            queue.post_now(StopRequested())
        for thread in self.threads:
            thread.join(within(20))
            assert not thread.is_alive()


def _runner(home: AgentHome, queue: EventQueue) -> Runner:
    credential = decode_credential(home.meta.read_bytes())
    life = life_of(credential)
    settings = Settings(credential.device, life.serial, life.not_before, life.not_after, secrets.token_hex(8), "storm")
    chance = random.SystemRandom().random
    world = World(lambda: Moment(time.monotonic(), datetime.now(UTC), chance()), real_clock(), PosixDisk())
    return Runner(home, settings, credential, world, queue)


def enrol_many(fleet: LiveFleet, folder: Path, count: int) -> Iterator[AgentHome]:
    """Homes of devices that the service has certified without the wire, many times faster than `join`."""
    cas = authority.load(fleet.home, DOMAIN, CRL_URL)
    with Registry.open(fleet.home.registry) as registry:
        office = Office(fleet.home, registry, cas, datetime.now(UTC))
        for number in range(count):
            device, key = DeviceId(f"storm-{number}"), new_key()
            leaf = certificate_in(office.enrol(office.invite(device), csr(device, key)))
            key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            yield _write_home(fleet, folder / device, leaf, pem(leaf, cas.devices.certificate), key_pem)


def _write_home(fleet: LiveFleet, path: Path, leaf: x509.Certificate, chain: bytes, key_pem: bytes) -> AgentHome:
    home = AgentHome(path)
    path.mkdir(mode=0o700, parents=True)
    (path / "run").mkdir(mode=0o700)
    home.generation(1).mkdir(mode=0o700)
    home.current.symlink_to("gen-1")
    home.identity.certificate.write_bytes(chain)
    home.identity.key.touch(mode=0o600)
    home.identity.key.write_bytes(key_pem)
    home.trust.write_bytes(fleet.home.root.certificate.read_bytes())
    credential = Credential(
        DeviceId(path.name),
        Role.DEVICE,
        pki.serial_of(leaf),
        leaf.not_valid_before_utc,
        leaf.not_valid_after_utc,
        fleet.url,
    )
    home.meta.write_bytes(credential.encode())
    return home


def restart_under(fleet: LiveFleet, folder: Path, count: int, spread_seconds: float) -> Returned:
    """`count` agents online, the broker killed and started again: when each was back.

    The service is as one that is older than signatures: what is asked of all at once is to come back, and not to start
    a process each that looks at them.
    """
    fleet.home.dispatch_signing.certificate.parent.unlink()
    watch, logger = Watch(), logging.getLogger("device_agent")
    logger.addHandler(watch)
    before, logger.level, logger.propagate = logger.level, logging.INFO, False
    crowd = Crowd(list(enrol_many(fleet, folder, count)))
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            with Operator(fleet) as operator:  # before the crowd: paho's own loop takes no descriptor above 1,023
                crowd.start()
                watch.wait_for(count, 120)
                if spread_seconds:
                    _ask_for(operator, crowd, spread_seconds)
            return _restart(fleet, watch, count, spread_seconds)
    finally:
        crowd.stop()
        logger.removeHandler(watch)
        logger.level, logger.propagate = before, True


def _ask_for(operator: Operator, crowd: Crowd, spread_seconds: float) -> None:
    for home in crowd.homes:
        device = DeviceId(home.path.name)
        control = ControlMessage(device, datetime.now(UTC), spread_seconds)
        operator.publish(Control(device).format(), control.encode())


def _restart(fleet: LiveFleet, watch: Watch, count: int, spread_seconds: float) -> Returned:
    assert fleet.broker is not None
    with watch.changed:
        watch.ready.clear()
    began = time.monotonic()
    fleet.broker.kill()
    fleet.start_broker(port=fleet.broker_address[1])
    watch.wait_for(count, spread_seconds + 120)
    return Returned(tuple(sorted(at - began for at in watch.ready.values())))


def main(arguments: Sequence[str]) -> int:
    """The command line; 1 if those that were asked to be spread were not."""
    parser = argparse.ArgumentParser(prog="dev soak storm", description=__doc__)
    parser.add_argument("--agents", type=int, default=300)
    parser.add_argument("--spread", type=float, default=30.0, metavar="SECONDS")
    options = parser.parse_args(arguments)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    busiest = []
    for spread in (0.0, options.spread):
        with tempfile.TemporaryDirectory() as folder, live_fleet(Path(folder), with_broker=True) as fleet:
            returned = restart_under(fleet, Path(folder) / "storm", options.agents, spread)
            print(f"spread over {spread:.0f} s: {returned}", flush=True)
            busiest.append(returned.busiest_second)
    return 0 if busiest[1] <= busiest[0] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
