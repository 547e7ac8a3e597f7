"""Devices that do what they are told: raw connections to a real broker, a thread each."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

from fleet.identity import DeviceId
from fleet.layout import AdminHome, IdentityFiles
from fleet.messages import Envelope, HelloMessage, Presence, ResultMessage, ResultState, StatusMessage
from fleet.topics import Command, Hello, Result, Status, parse
from tests import mqtt
from tests.deadlines import within
from tests.mqtt import Peer
from tests.system.brokers import peer


@dataclass
class Worker:
    """A device that answers each command with what `outcomes` says of its name, or done.

    `told`: the ids of commands that came, by name; one that came again is answered again, and stands there once.
    """

    id: DeviceId
    peer: Peer
    outcomes: dict[str, ResultState]
    told: dict[str, list[str]] = field(default_factory=dict)
    _seq: int = 0

    def begin(self) -> None:
        """Subscribe, and say so."""
        assert mqtt.ACCEPTED == self.peer.ask(mqtt.connect(self.id, keep_alive=0))
        assert mqtt.suback(1) == self.peer.ask(mqtt.subscribe((f"devices/{self.id}/down/#", 1)))
        self._say(Status(self.id).format(), StatusMessage(self._envelope(), Presence.ONLINE).encode(), retain=True)
        self._say(Hello(self.id).format(), HelloMessage(self._envelope(), "test").encode())

    def run(self) -> None:
        """Do as one is told until the connection ends."""
        with suppress(ConnectionError, OSError):
            while True:
                with suppress(AssertionError):  # nothing came for a while
                    self._handle(self.peer.receive())

    def _handle(self, frame: bytes) -> None:
        if frame[0] & 0xF0 != 0x30:  # an acknowledgement
            return
        at = next(at for at in range(1, 5) if frame[at] < 0x80) + 1
        end = at + 2 + int.from_bytes(frame[at : at + 2], "big")
        self.peer.send(mqtt.puback(int.from_bytes(frame[end : end + 2], "big")))
        match parse(frame[at + 2 : end].decode()):
            case Command(_, name, command):
                self._do(name, command)

    def _do(self, name: str, command: str) -> None:
        known = self.told.setdefault(name, [])
        if command not in known:
            known.append(command)
        state = self.outcomes.get(name, ResultState.DONE)
        self._say(Result(self.id, command).format(), ResultMessage(self._envelope(), state).encode())

    def _say(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        self._seq += 1
        self.peer.send(mqtt.publish(topic, payload, 1, self._seq % 65_535 + 1, retain=retain))

    def _envelope(self) -> Envelope:
        return Envelope(self.id, datetime.now(UTC), "boot", self._seq)


@contextmanager
def at_work(
    home: AdminHome,
    port: int,
    files: dict[DeviceId, IdentityFiles],
    outcomes: dict[str, ResultState],
) -> Iterator[Sequence[Worker]]:
    """These devices, connected; at the end their connections are cut, and they are waited for."""
    with ExitStack() as stack:
        workers = [
            Worker(device, stack.enter_context(peer(home, each, port)), outcomes) for device, each in files.items()
        ]
        threads = []
        for worker in workers:
            worker.begin()
            threads.append(threading.Thread(target=worker.run, name=worker.id))
            threads[-1].start()
        try:
            yield workers
        finally:
            for worker in workers:
                worker.peer.socket.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join(within(20))
