"""MQTT.js as its users drive it, in a Node process that is told by lines of JSON what to do."""

from __future__ import annotations

import itertools
import json
import re
import signal
from pathlib import Path
from typing import Any

from tests.certificates import Identity
from tests.interop.peers import Broker, Connack, Message, Will
from tests.processes import Program

_SCRIPT = Path(__file__).with_name("mqttjs.js")


class RefusedByLibrary(AssertionError):
    """MQTT.js told its user of an error; `code` is the broker's, or text."""

    def __init__(self, message: str, code: object) -> None:
        super().__init__(f"{message} ({code})")
        self.code = code


class Node:
    """A process with any number of MQTT.js clients."""

    def __init__(self) -> None:
        self.program = Program("node", _SCRIPT, takes_input=True)
        self._ids = itertools.count()
        self._names = itertools.count()
        try:
            self.program.wait_for_line('"ready":true')
        except AssertionError:
            self.program.stop()
            raise

    def new_name(self) -> str:
        return f"client-{next(self._names)}"

    def ask(self, name: str, what: str, **fields: object) -> Any:
        """The answer to a command. Raises: RefusedByLibrary."""
        number = next(self._ids)
        self.program.write_line(json.dumps({"id": number, "client": name, "do": what, **fields}))
        answer = json.loads(self.program.wait_for_line(rf'^\{{"id":{number},.*').group())
        if "error" in answer:
            raise RefusedByLibrary(answer["error"], answer.get("code"))
        return answer["answer"]

    def message(self, name: str, number: int) -> Message:
        """The message of that number that a client received."""
        line = self.program.wait_for_line(rf'^\{{"client":{re.escape(json.dumps(name))},"number":{number},.*').group()
        return Message(**{key: value for key, value in json.loads(line).items() if key not in ("client", "number")})


class MqttJs:
    """One MQTT.js client after the other."""

    def __init__(self, node: Node, broker: Broker, identity: Identity) -> None:
        self._node = node
        self._name = node.new_name()
        self._broker = broker
        self._identity = identity
        self._received = 0
        self._is_open = False

    def _ask(self, what: str, **fields: object) -> Any:
        return self._node.ask(self._name, what, **fields)

    def connect(
        self,
        *,
        client_id: str | None = None,
        clean: bool = True,
        keep_alive: int = 60,
        will: Will | None = None,
        level: int = 4,
        holds_acks: bool = False,
    ) -> Connack:
        self.close()
        self._name, self._received = self._node.new_name(), 0
        name = self._identity.id if client_id is None else client_id
        options: dict[str, object] = {"clientId": name, "clean": clean, "keepalive": keep_alive}
        if will is not None:
            options["will"] = {"topic": will.topic, "payload": will.payload, "qos": will.qos, "retain": will.retain}
        self._is_open = True
        try:
            answer = self._ask("connect", **self._where(), options=options | _version(level), holdsAcks=holds_acks)
        except RefusedByLibrary as refused:
            if isinstance(refused.code, int):
                return Connack(refused.code)
            raise
        return Connack(answer["code"], answer["present"])

    def _where(self) -> dict[str, object]:
        """The broker, and what is shown to it."""
        files, broker = self._identity.files, self._broker
        where = {"host": broker.host, "port": broker.port, "ca": broker.root_file}
        return where | {"cert": str(files.certificate), "key": str(files.key)}

    def subscribe(self, *filters: tuple[str, int]) -> list[int]:
        granted: list[int] = self._ask("subscribe", filters=filters)
        return granted

    def unsubscribe(self, *filters: str) -> None:
        self._ask("unsubscribe", filters=filters)

    def publish(self, topic: str, payload: str, qos: int = 0, *, retain: bool = False) -> None:
        self._ask("publish", topic=topic, payload=payload, qos=qos, retain=retain)

    def receive(self) -> Message:
        message = self._node.message(self._name, self._received)
        self._received += 1
        return message

    def disconnect(self) -> None:
        self._ask("disconnect")
        self._is_open = False

    def drop(self) -> None:
        self._ask("drop")

    def fall_silent(self) -> None:
        self._node.program.send_signal(signal.SIGSTOP)

    def close(self) -> None:
        self._node.program.send_signal(signal.SIGCONT)
        if self._is_open:
            self._is_open = False
            self._ask("close")


def _version(level: int) -> dict[str, object]:
    """MQTT.js' options for a version of the protocol."""
    options: dict[str, object] = {"protocolVersion": level}
    if level == 3:
        options["protocolId"] = "MQIsdp"
    if level != 4:
        options["reconnectPeriod"] = 1  # ms: that it does not try again has to be its own decision
    return options
