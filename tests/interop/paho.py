"""paho-mqtt as its users drive it: callbacks, a network thread."""

from __future__ import annotations

import queue
import socket
import ssl
from typing import Any, TypeVar

from paho.mqtt.client import Client as PahoClient
from paho.mqtt.client import MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.subscribeoptions import SubscribeOptions

from tests.certificates import Identity
from tests.deadlines import within
from tests.interop.peers import Broker, Connack, Message, Will

T = TypeVar("T")
_SECONDS = 10


class Paho:
    """One paho client after the other."""

    def __init__(self, broker: Broker, identity: Identity) -> None:
        self._broker = broker
        self._identity = identity
        self._client: PahoClient | None = None
        self._is_silent = False
        self._connacks: queue.SimpleQueue[Connack] = queue.SimpleQueue()
        self._subacks: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
        self._unsubacks: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()

    @property
    def client(self) -> PahoClient:
        assert self._client is not None
        return self._client

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
        self._inbox = queue.SimpleQueue()
        self._client = client = PahoClient(
            CallbackAPIVersion.VERSION2,
            client_id=self._identity.id if client_id is None else client_id,
            clean_session=None if level == 5 else clean,
            protocol=MQTTProtocolVersion(level),
            reconnect_on_failure=False,
            manual_ack=holds_acks,
        )
        context = ssl.create_default_context(cafile=self._broker.root_file)
        context.load_cert_chain(self._identity.files.certificate, self._identity.files.key)
        client.tls_set_context(context)
        if will is not None:
            client.will_set(will.topic, will.payload, will.qos, will.retain)
        self._listen(client)
        assert client.connect(self._broker.host, self._broker.port, keep_alive) is MQTTErrorCode.MQTT_ERR_SUCCESS
        client.loop_start()
        return _next(self._connacks)

    def _listen(self, client: PahoClient) -> None:
        inbox = self._inbox

        def on_connect(_: Any, __: Any, flags: Any, code: Any, ___: Any) -> None:
            self._connacks.put(Connack(code.value, flags.session_present))

        def on_subscribe(_: Any, __: Any, ___: int, codes: list[Any], ____: Any) -> None:
            self._subacks.put([code.value for code in codes])

        def on_unsubscribe(_: Any, __: Any, mid: int, ___: Any, ____: Any) -> None:
            self._unsubacks.put(mid)

        def on_message(_: Any, __: Any, message: MQTTMessage) -> None:
            inbox.put(Message(message.topic, message.payload.decode(), message.qos, message.retain, bool(message.dup)))

        client.on_connect, client.on_subscribe = on_connect, on_subscribe
        client.on_unsubscribe, client.on_message = on_unsubscribe, on_message

    def subscribe(self, *filters: tuple[str, int]) -> list[int]:
        asked: list[tuple[str, int | SubscribeOptions]] = list(filters)
        assert self.client.subscribe(asked)[0] is MQTTErrorCode.MQTT_ERR_SUCCESS  # type: ignore[arg-type]
        return _next(self._subacks)

    def unsubscribe(self, *filters: str) -> None:
        assert self.client.unsubscribe(list(filters))[0] is MQTTErrorCode.MQTT_ERR_SUCCESS
        _next(self._unsubacks)

    def publish(self, topic: str, payload: str, qos: int = 0, *, retain: bool = False) -> None:
        sent = self.client.publish(topic, payload, qos, retain)
        sent.wait_for_publish(within(_SECONDS))
        assert sent.is_published()

    def receive(self) -> Message:
        return _next(self._inbox)

    def disconnect(self) -> None:
        self.close()

    def drop(self) -> None:
        connection = self.client.socket()
        assert isinstance(connection, ssl.SSLSocket)
        connection.shutdown(socket.SHUT_RDWR)
        self.close()

    def fall_silent(self) -> None:
        self._is_silent = True
        self.client.loop_stop()  # the one thread: nobody is left to send or read

    def close(self) -> None:
        if self._client is not None:
            client, self._client = self._client, None
            if not self._is_silent:
                client.disconnect()  # the network thread writes it, and ends
            client.loop_stop()
            if (connection := client.socket()) is not None:
                connection.close()
            self._is_silent = False


def _next(answers: queue.SimpleQueue[T]) -> T:
    try:
        return answers.get(timeout=within(_SECONDS))
    except queue.Empty:
        raise AssertionError("nothing came before the deadline") from None
