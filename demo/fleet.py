"""The parts of the demo's fleet, each a process of its own, started as a person would start it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.processes import Finished, Program, run

PASSPHRASE = "the demo keeps no secrets"


@dataclass(slots=True)
class Authority:
    """One fleet's home, and its enrollment service once started."""

    home: Path
    stack: ExitStack
    trust_domain: str
    environment: dict[str, str] = field(default_factory=lambda: {"FLEET_CA_PASSPHRASE": PASSPHRASE})

    def init(self) -> str:
        """Make the CA, the registry and the identities on this host; what `enroll init` printed."""
        return self.enroll("init", "--trust-domain", self.trust_domain, "--host", "127.0.0.1").stdout

    def enroll(self, *arguments: object) -> Finished:
        """Run one `enroll` command that should work."""
        return run("enroll", *arguments, "--home", self.home, env=self.environment).check()

    def serve(self) -> tuple[Program, str]:
        """The running enrollment service and its URL."""
        service = self.stack.enter_context(Program("enroll", "serve", "--home", self.home, "--listen", "127.0.0.1:0"))
        return service, service.wait_for_line(r"^enroll: ready (\S+)$")[1]

    def serve_broker(self) -> tuple[Program, str]:
        """The running broker and its URL."""
        broker = self.stack.enter_context(Program("broker", "serve", "--home", self.home, "--listen", "127.0.0.1:0"))
        return broker, broker.wait_for_line(r"^broker: ready (\S+)$")[1]

    def join_code(self, device: str) -> str:
        """A join code for one device."""
        token = json.loads(self.enroll("token", "create", "--device", device, "-o", "json").stdout)
        return str(token["code"])


@dataclass(slots=True)
class Device:
    """One device: an agent's home, the agent, the firmware stub."""

    id: str
    home: Path
    stack: ExitStack

    def join(self, code: str) -> Finished:
        """Enrol; the caller looks at the outcome."""
        return run("device-agent", "join", code, "--id", self.id, "--home", self.home)

    def start(self) -> Program:
        """The agent, connected and subscribed, with the firmware stub on its socket."""
        agent = self.stack.enter_context(Program("device-agent", "run", "--home", self.home))
        agent.wait_for_line(rf"^device-agent: ready {re.escape(self.id)}$")
        socket = self.home / "run" / "app.sock"
        stub = self.stack.enter_context(Program("firmware-stub", "--socket", socket, "--interval", "1"))
        stub.wait_for_line("^firmware-stub: ready")
        return agent


@contextmanager
def fleet_in(folder: Path) -> Iterator[tuple[Authority, Authority, list[Device]]]:
    """Our fleet, a stranger's, and three devices; nothing is started yet, everything is stopped in the end."""
    with ExitStack() as stack:
        ours = Authority(folder / "fleet", stack, "demo.example")
        strangers = Authority(folder / "mallory", stack, "mallory.example")
        devices = [Device(f"pump-{n:02}", folder / f"pump-{n:02}", stack) for n in (1, 2, 3)]
        yield ours, strangers, devices
