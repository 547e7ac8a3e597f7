"""amqtt's Broker with its doors replaced by ours: it keeps the life cycle, the configuration and the plug-ins.

What is overridden is pinned to amqtt 0.12.1 and listed in docs/adr/0002-amqtt-engine.md; a test checks that every hook
is still there.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Final, NoReturn, cast

from amqtt.broker import Broker, Server
from amqtt.contexts import BrokerConfig, ListenerConfig
from amqtt.errors import BrokerError
from amqtt.session import Session

from broker.engines.amqtt.door import Door
from broker.engines.amqtt.hub import Hub
from broker.engines.amqtt.listener import Connection
from broker.engines.amqtt.packets import Publish

OVERRIDDEN: Final = (
    "_start_listeners",
    "_broadcast_message",
    "retain_message",
    "stream_connected",
    "ws_connected",
    "external_connected",
    "_client_connected",
)
_BACKLOG: Final = 1024


class FleetBroker(Broker):
    """One listener, bound already; every other way in is closed."""

    def __init__(self, hub: Hub, door: Door, bound: socket.socket) -> None:
        # Plug-ins are named by our own code or not at all: amqtt's defaults let anonymous clients in.
        config = BrokerConfig(listeners={"default": ListenerConfig(bind=None)}, plugins={})
        super().__init__(config, door.loop)
        self._hub = hub
        self._door = door
        self._bound = bound

    async def _start_listeners(self) -> None:
        instance = await self._door.loop.create_server(self._new_connection, sock=self._bound, backlog=_BACKLOG)
        self._servers["default"] = Server("default", instance)

    def _new_connection(self) -> asyncio.Protocol:
        # It has no base, or mypyc would not compile it; the loop calls methods and looks at no class.
        return cast("asyncio.Protocol", Connection(self._door))

    async def _broadcast_message(
        self, session: Session | None, topic: str | None, data: bytes | bytearray | None, force_qos: int | None = None
    ) -> None:
        """What a plug-in publishes takes the same route as everything."""
        self._hub.publish_own(Publish.of(topic or "", bytes(data or b""), force_qos or 0, retain=False))

    async def retain_message(
        self,
        source_session: Session | None,
        topic_name: str | None,
        data: bytes | bytearray | None,
        qos: int | None = None,
    ) -> None:
        """What a plug-in retains is kept where everything is."""
        self._hub.retained.set(Publish.of(topic_name or "", bytes(data or b""), qos or 0, retain=True), None)

    async def stream_connected(self, *_: object, **__: object) -> NoReturn:
        raise BrokerError("this broker has no other way in")

    ws_connected = external_connected = _client_connected = stream_connected
