"""amqtt 0.12.1 as it ships: its own broker, listener and plug-ins, set up for mutual TLS as well as its manual allows.

It is what the attacks of `test_holes_*.py` must succeed against: the proof that they test. Identity is checked by
amqtt's own `UserAuthCertPlugin` (the SPIFFE id in the certificate is the client id), topics by its own access control
list. That list goes by the user name, and no plug-in of amqtt's takes the user name from a certificate: clients send
their common name, and here nobody lies about it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
import warnings
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

from amqtt.broker import Broker
from amqtt.contexts import BrokerConfig, ListenerConfig

from fleet.identity import Server
from fleet.limits import Limits
from tests.certificates import DOMAIN, Identity, TestFleet, client_context
from tests.deadlines import within
from tests.mqtt import Peer

T = TypeVar("T")

_DEVICES = ("pump-07", "valve-1", "meter-3")
_ADMIN = "admin"

logging.getLogger("amqtt").setLevel(logging.CRITICAL)


class ShippedBroker:
    """A context in which amqtt's own broker accepts connections, on an event loop of its own.

    Of `limits` it takes what amqtt can be told: how many connections there may be.
    """

    is_as_shipped = True

    def __init__(self, fleet: TestFleet, limits: Limits) -> None:
        self.fleet = fleet
        self.address = ("", 0)
        self._max_connections = limits.max_connections
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(_ignore)
        self._thread = threading.Thread(target=self._loop.run_forever, name="amqtt")

    def __enter__(self) -> Self:
        self._thread.start()
        self._broker = self._await(self._start())
        (listening,) = self._broker._servers["default"].instance.sockets
        self.address = listening.getsockname()[:2]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._await(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(within(10))
        self._loop.close()

    async def _start(self) -> Broker:
        with warnings.catch_warnings():
            # `acl` is said to be replaced by `subscribe-acl`, which this version does not take.
            warnings.simplefilter("ignore", DeprecationWarning)
            broker = Broker(self._config(), self._loop)
        await broker.start()
        return broker

    def _config(self) -> BrokerConfig:
        identity = self.fleet.server(Server.BROKER).files
        listener = ListenerConfig(
            bind="127.0.0.1:0",
            ssl=True,
            cafile=self.fleet.trust_file,
            certfile=identity.certificate,
            keyfile=identity.key,
            max_connections=self._max_connections,
        )
        may_publish = {name: [f"devices/{name}/up/#"] for name in _DEVICES}
        may_read = {name: [f"devices/{name}/down/#", "fleet/notices/#"] for name in _DEVICES}
        plugins: dict[str, Any] = {
            "amqtt.contrib.cert.UserAuthCertPlugin": {"uri_domain": DOMAIN},
            "amqtt.plugins.topic_checking.TopicAccessControlListPlugin": {
                "acl": may_read | {_ADMIN: ["#"]},
                "publish_acl": may_publish | {_ADMIN: ["devices/#", "fleet/notices/#"]},
            },
        }
        return BrokerConfig(listeners={"default": listener}, plugins=plugins)

    async def _stop(self) -> None:
        """End it, and every task that it leaves behind."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._broker.shutdown(), within(3))
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def _await(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(within(20))

    def device(self, id: str) -> Identity:
        """A device that the access control list knows."""
        assert id in _DEVICES
        return self.fleet.client(id)

    def admin(self) -> Identity:
        """Who may read and command every device. Its certificate says device: the plug-in knows no other role."""
        return self.fleet.client(_ADMIN)

    def revoke(self, identity: Identity) -> None:
        """amqtt has nothing to tell of it: neither a directory nor a CRL can be configured."""

    def peer(self, identity: Identity | None) -> Peer:
        return Peer(self.address, client_context(self.fleet.root_file, identity))

    def session_count(self) -> int:
        return len(self._broker.sessions)

    def cpu_seconds(self) -> float:
        """What its thread has computed so far."""
        assert self._thread.ident is not None
        return time.clock_gettime(time.pthread_getcpuclockid(self._thread.ident))


def _ignore(_loop: asyncio.AbstractEventLoop, _context: dict[str, Any]) -> None:
    """What amqtt's tasks die of is not this test's subject."""
