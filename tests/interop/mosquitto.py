"""The mosquitto programs as a person types them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.certificates import Identity
from tests.interop.peers import Broker, Message
from tests.processes import Finished, Program, run

_FORMAT = "got %q %r %t %p"
_GOT = r"^got (\d) (\d) (\S+) (.*)$"


def arguments(broker: Broker, identity: Identity) -> list[object]:
    """What every mosquitto program takes."""
    where = ["-h", broker.host, "-p", broker.port, "--cafile", broker.root_file]
    return [*where, "--cert", identity.files.certificate, "--key", identity.files.key]


def publish(broker: Broker, identity: Identity, topic: str, *args: object, stdin: str = "") -> Finished:
    """mosquitto_pub, run to its end."""
    known = arguments(broker, identity)
    return run("mosquitto_pub", *known, "-i", identity.id, "-d", "-t", topic, *args, stdin=stdin, seconds=10)


@dataclass(slots=True)
class Subscriber:
    """A mosquitto_sub that runs."""

    program: Program
    seen: int = 0

    def granted(self) -> list[int]:
        """The return codes of its SUBACK."""
        line = self.program.wait_for_line(r"^Subscribed \(mid: 1\): ([\d, ]+)$")
        return [int(code) for code in line.group(1).split(", ")]

    def receive(self) -> Message:
        """The next message, without DUP, which mosquitto_sub shows nobody (`was_marked_again` looks at its log)."""
        self.seen += 1
        last = self.program.wait_for_line(rf"(?:{_GOT})", after=self._line_of(self.seen - 1))
        qos, retain, topic, payload = last.groups()
        return Message(topic, payload, int(qos), retain == "1")

    def _line_of(self, number: int) -> int:
        """The line after that many messages."""
        lines = self.program.stdout.splitlines()
        found = [at for at, line in enumerate(lines, start=1) if re.match(_GOT, line)]
        return found[number - 1] if number else 0


def subscriber(broker: Broker, identity: Identity, *args: object, client_id: str | None = None) -> Subscriber:
    """mosquitto_sub, to be entered as a context by its `program`; with client id "" without any."""
    name = identity.id if client_id is None else client_id
    known = [*arguments(broker, identity), "-d", "-F", _FORMAT, *(["-i", name] if name else [])]
    # stdbuf: what it prints is to be seen at once.
    return Subscriber(Program("stdbuf", "-oL", "mosquitto_sub", *known, *args))
