"""What the signature of a command costs: dispatch's, the verifier's, and the way to its process and back.

CPU time of this process for the first two, wall time for the third: the median of many.
"""

from __future__ import annotations

import argparse
import queue
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from benchmarks import _fleet
from device_agent.core.effects import Verify
from device_agent.core.events import Event, Verified
from device_agent.verdicts import Verdict
from device_agent.verifier_client import VerifierClient
from device_agent.verifying import Verifier
from enroll import downlink
from enroll.downlink import DownlinkSigner
from fleet.identity import DeviceId
from fleet.layout import AdminHome, AgentHome
from fleet.messages import CommandMessage

TOPIC = "devices/pump-07/down/commands/echo/c1"


def main(arguments: Sequence[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="bench downlink", description=__doc__)
    parser.add_argument("--rounds", type=int, default=2000, help="of each (default: %(default)s)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        home = _fleet.new_home(Path(folder) / "fleet")
        _measure(home, Path(folder), options.rounds)
    return 0


def _measure(home: AdminHome, folder: Path, rounds: int) -> None:
    now = datetime.now(UTC)
    body = CommandMessage(DeviceId("pump-07"), now, now + timedelta(hours=1), {"say": secrets.token_hex(8)}).encode()
    signer, chains = DownlinkSigner(home.dispatch_signing), downlink.signers(home)
    signed = signer.sign(TOPIC, body, now)
    root = x509.load_pem_x509_certificate(home.root.certificate.read_bytes())
    verifier = Verifier([root], chains)
    print(f"a command of {len(body)} bytes, {len(signed)} signed")
    print(f"sign     {_median(lambda: signer.sign(TOPIC, body, now), rounds, time.process_time):7.0f} µs of CPU")
    print(f"verify   {_median(lambda: verifier.judge(TOPIC, signed, now), rounds, time.process_time):7.0f} µs of CPU")
    posted = queue.Queue[Event]()
    device = AgentHome(folder / "device")
    device.path.mkdir()
    device.trust.write_bytes(home.root.certificate.read_bytes())
    client = VerifierClient(device, posted.put)

    def ask() -> None:
        client.verify(Verify(1, TOPIC, signed, now), chains)
        assert posted.get(timeout=60) == Verified(1, Verdict.GOOD)

    try:
        print(f"begin    {_median(ask, 1):7.0f} µs until the first word of a new process")
        print(f"ask it   {_median(ask, rounds):7.0f} µs until its word")
    finally:
        client.close()


def _median(work: Callable[[], object], rounds: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """In microseconds."""
    spans = []
    for _ in range(rounds):
        began = clock()
        work()
        spans.append(clock() - began)
    return 1e6 * statistics.median(spans)
