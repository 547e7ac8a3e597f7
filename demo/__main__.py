"""Tell the story of one fleet in a minute, and exit non-zero if any claim did not hold."""

from __future__ import annotations

import argparse
import json
import queue
import signal
import sys
import tempfile
import threading
from pathlib import Path
from urllib.parse import urlsplit

from demo.fleet import Authority, Device, fleet_in
from demo.intruder import knock, tls_context, trespass
from demo.narrator import Narrator
from fleet.join import JoinCode, parse_join_code
from fleet.messages import parse_time
from tests.processes import Program, run


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="./dev demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="stay up at the end, and print the commands to try next")
    arguments = parser.parse_args()
    narrator = Narrator()
    with (
        tempfile.TemporaryDirectory(prefix="mqtt-fleet-demo-") as folder,
        fleet_in(Path(folder)) as (ours, strangers, devices),
    ):
        Story(narrator, ours, strangers, devices).tell()
        status = narrator.summary()
        if arguments.keep:
            keep(ours, devices)
    return status


class Story:
    """The demo, step by step. Each step uses what the ones before it left."""

    def __init__(self, narrator: Narrator, ours: Authority, strangers: Authority, devices: list[Device]) -> None:
        self.narrator, self.ours, self.strangers, self.devices = narrator, ours, strangers, devices
        self.enroll_url = self.broker_host = ""
        self.broker_port = 0

    def tell(self) -> None:
        """All of it, in order; a step that cannot be done ends the story, and is a claim that did not hold."""
        steps = (
            self.found_the_fleet,
            self.meet_an_impostor,
            self.enrol_devices,
            self.reach_for_another,
            self.refuse_strangers,
            self.talk,
            self.explain,
            self.revoke,
        )
        for step in steps:
            try:
                step()
            except (AssertionError, OSError, queue.Empty) as error:
                self.narrator.check(
                    False, f"step {self.narrator.steps} can be done", str(error) or type(error).__name__
                )
                return

    def found_the_fleet(self) -> None:
        self.narrator.step("A fleet: an offline-able root, two issuing CAs, a registry; then the two servers")
        self.narrator.show(self.ours.init())
        _, self.enroll_url = self.ours.serve()
        self.broker, broker_url = self.ours.serve_broker()
        address = urlsplit(broker_url)
        self.broker_host, self.broker_port = str(address.hostname), int(address.port or 0)
        self.narrator.say(
            f"enrollment service at {self.enroll_url}, broker at {broker_url} (mutual TLS and nothing else)"
        )

    def meet_an_impostor(self) -> None:
        """The stranger runs the same software, with a root of its own."""
        self.narrator.step("An impostor: somebody else's enrollment service, at the address that the device was told")
        self.strangers.init()
        service, url = self.strangers.serve()
        code = parse_join_code(self.ours.join_code("lured"))
        lured = Device("lured", self.ours.home.parent / "lured", self.ours.stack)
        outcome = lured.join(str(JoinCode(url, code.root_pin, code.token)))
        self.narrator.show(outcome.stderr)
        self.narrator.check(outcome.returncode != 0, "the device refuses the impostor", "it enrolled there")
        asked = service.stdout + service.stderr
        self.narrator.check("simpleenroll" not in asked, "the impostor never saw the token", "it was sent")

    def enrol_devices(self) -> None:
        self.narrator.step("Three devices enrol: each makes its key, and sends a signing request with its join code")
        for device in self.devices:
            code = self.ours.join_code(device.id)
            self.narrator.show(f"$ device-agent join {code[:38]}… --id {device.id}")
            outcome = device.join(code)
            self.narrator.show(outcome.stdout + outcome.stderr)
            key = device.home / "current" / "key.pem"
            is_private = key.exists() and key.stat().st_mode & 0o077 == 0
            self.narrator.check(
                outcome.returncode == 0 and is_private, f"{device.id} has a certificate, and a key only it can read"
            )

    def reach_for_another(self) -> None:
        thief, victim = self.devices[0], self.devices[1]
        self.narrator.step(f"{thief.id} is certified, and reaches for the topics of {victim.id}")
        context = tls_context(thief.home / "trust.pem", thief.home / "current")
        attempts = trespass(self.broker_host, self.broker_port, context, thief.id, victim.id)
        self.narrator.check(attempts.granted_own, f"{thief.id} may subscribe to devices/{thief.id}/down/#")
        self.narrator.check(not attempts.granted_foreign, f"{thief.id} may not subscribe to devices/{victim.id}/down/#")
        self.narrator.check(attempts.is_cut_on_foreign_publish, f"{thief.id} is cut for publishing as {victim.id}")

    def refuse_strangers(self) -> None:
        self.narrator.step("Clients that the broker does not know")
        trust = self.devices[0].home / "trust.pem"
        address = (self.broker_host, self.broker_port)
        answer = knock(*address, tls_context(trust, None), "nobody")
        self.narrator.check(bool(answer), f"a client without a certificate is refused: {answer}")
        answer = knock(*address, tls_context(trust, self.strangers.home / "operator" / "current"), "admin")
        self.narrator.check(bool(answer), f"a client with another fleet's certificate is refused: {answer}")

    def talk(self) -> None:
        self.narrator.step(
            "The devices talk: agents with the reference firmware, an operator listening with `enroll tail`"
        )
        tail = self.ours.stack.enter_context(Program("enroll", "tail", "--home", self.ours.home))
        self.agents = {device.id: device.start() for device in self.devices}
        for device in self.devices:
            line = tail.wait_for_line(rf"{device.id}\b.*telemetry").string
            self.narrator.show(line)
        self.narrator.check(True, "telemetry of all three arrives")
        sent = self.ours.enroll("send", self.devices[0].id, "echo", '{"hello": "fleet"}', "--wait")
        self.narrator.show(f'$ enroll send {self.devices[0].id} echo \'{{"hello": "fleet"}}\' --wait\n{sent.stdout}')
        self.narrator.check("hello" in sent.stdout, "a command is carried out, and its answer comes back")
        self.narrator.show("$ enroll device list\n" + self.ours.enroll("device", "list").stdout)

    def explain(self) -> None:
        self.narrator.step("The mutual-TLS conversation, with the real certificates in it: `device-agent explain`")
        explained = run("device-agent", "explain", "--home", self.devices[1].home)
        self.narrator.show(explained.stdout + explained.stderr)
        self.narrator.check(explained.returncode == 0, "both sides proved who they are")

    def revoke(self) -> None:
        device = self.devices[2]
        self.narrator.step(f"{device.id} is stolen: `enroll device revoke {device.id}`")
        mark = self.broker.line_count("stderr")
        self.ours.enroll("device", "revoke", device.id, "--yes")
        cut = self.broker.wait_for_line(
            rf"connection\.ended client={device.id}\b.*reason=revoked", stream="stderr", after=mark
        )
        self.narrator.show(cut.string)
        milliseconds = self._milliseconds_to(cut.string, device.id)
        self.narrator.check(milliseconds < 1000, f"its session is cut {milliseconds:.0f} ms after the order")
        context = tls_context(device.home / "trust.pem", device.home / "current")
        answer = knock(self.broker_host, self.broker_port, context, device.id)
        self.narrator.check(bool(answer), f"its certificate does not get back in: {answer}")

    def _milliseconds_to(self, cut: str, device: str) -> float:
        """From the order's time in the audit log to the broker's log line, by one clock."""
        entries = json.loads(self.ours.enroll("log", "list", "-o", "json").stdout)
        revoked = next(
            e for e in entries if e["event"] == "principal.revoked" and e["fields"]["principal"] == f"device/{device}"
        )
        return (parse_time(cut.split(maxsplit=1)[0]) - parse_time(revoked["at"])).total_seconds() * 1000


def keep(ours: Authority, devices: list[Device]) -> None:
    """Stay up until Ctrl-C or SIGTERM."""
    device = devices[0].home
    print(f"""
The fleet stays up until Ctrl-C. In another terminal, in this folder:

    export FLEET_HOME={ours.home} PATH={Path(sys.executable).parent}:$PATH
    enroll device list
    enroll tail
    enroll send pump-01 identify --wait
    enroll policy check pump-01 publish devices/pump-02/up/status
    device-agent status --home {device}
    device-agent explain --home {device}
""")
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()


if __name__ == "__main__":
    sys.exit(main())
