"""The amqtt engine: `broker.engine.Engine` on amqtt's broker, with a listener, parser and routing of our own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Final

from broker.directory import Change
from broker.engine import Capabilities, Client, Clock, Event, Listener, Reason, Rules, Stats
from broker.engines.amqtt import admission, hub, packets
from broker.engines.amqtt.announcing import Announcements
from broker.engines.amqtt.counters import CounterTopics
from broker.engines.amqtt.door import Door
from broker.engines.amqtt.durability import Durability
from broker.engines.amqtt.embedding import FleetBroker
from broker.engines.amqtt.hub import Hub
from broker.engines.amqtt.store import Store
from broker.trust import ClientTrust, Trust
from fleet.config import Address
from fleet.errors import FleetError, Unreachable
from fleet.identity import Principal, Serial
from fleet.limits import Limits

_READY_SECONDS: Final = 10.0
_EXPIRY_CHECK_SECONDS: Final = 60.0
DEFAULT_EXPIRY_SECONDS: Final = 14 * 86_400.0
IS_COMPILED: Final = str(hub.__file__).endswith(tuple(EXTENSION_SUFFIXES))
"""Whether messages pass through machine code that mypyc made of these modules (docs/adr/0010)."""


@dataclass(frozen=True, slots=True)
class Durable:
    """That sessions and retained messages outlive the broker: in this file, and for how long without their client."""

    path: Path
    expiry_seconds: float = DEFAULT_EXPIRY_SECONDS
    open_store: Callable[[Path], Store] = Store


class AmqttEngine:
    """Embedded in this process, on its event loop."""

    def __init__(self, now: Clock, durable: Durable | None = None) -> None:
        self.capabilities = Capabilities(cuts_by_serial=True, sessions_outlive_restart=durable is not None)
        self._now = now
        self._durable = durable
        self._durability: Durability | None = None
        self._expiring: asyncio.TimerHandle | None = None
        self._hub: Hub | None = None
        self._door: Door | None = None
        self._broker: FleetBroker | None = None
        self._address: Address | None = None
        self._counters: CounterTopics | None = None
        self._announcements: Announcements | None = None

    async def start(self, listener: Listener, trust: Trust, rules: Rules, observe: Callable[[Event], None]) -> Address:
        """See `Engine.start`."""
        bound = _bind(listener.address)
        host, port, *_ = bound.getsockname()
        self._address = Address(host, port)
        loop = asyncio.get_running_loop()
        if self._durable is None:
            self._hub = Hub(rules, listener.limits, self._now, observe)
            self._door = Door(self._hub, trust, loop)
        else:
            try:
                await self._restore(self._durable, listener.limits, trust, rules, observe)
            except BaseException:
                bound.close()
                raise
        assert self._hub is not None
        assert self._door is not None
        self._expire(0.0)
        self._broker = FleetBroker(self._hub, self._door, bound)
        await self._broker.start()
        return self._address

    async def _restore(
        self, durable: Durable, limits: Limits, trust: Trust, rules: Rules, observe: Callable[[Event], None]
    ) -> None:
        loop = asyncio.get_running_loop()
        durability = Durability(durable.open_store(durable.path), loop, observe)
        kept = await durability.open()
        self._durability = durability
        self._hub = Hub(rules, limits, self._now, observe, durability.journal)
        self._door = Door(self._hub, trust, loop)
        self._door.load = durability.load
        durability.attach(self._hub, kept, self._door.committed, self._door.stalled)

    def _expire(self, passed_seconds: float = _EXPIRY_CHECK_SECONDS) -> None:
        if self._hub is not None and self._durable is not None:
            self._hub.pass_time(passed_seconds, self._durable.expiry_seconds)
            self._expiring = asyncio.get_running_loop().call_later(_EXPIRY_CHECK_SECONDS, self._expire)

    async def wait_ready(self, good: ClientTrust, revoked: ClientTrust | None) -> None:
        """See `Engine.wait_ready`."""
        if code := await self._return_code(good):
            raise FleetError(
                f"the broker does not admit its own client {good.name}: return code {code}",
                hint="enroll device show broker; a revoked broker is enrolled again",
            )
        if revoked is not None and not await self._return_code(revoked):
            raise FleetError(
                f"the broker admits a client of its own that is revoked: {revoked.name}",
                hint="stop it: it keeps nobody out; HOME/broker/revoked must not be listed in the directory",
            )

    async def _return_code(self, canary: ClientTrust) -> int:
        """What CONNECT with an identity of ours is answered. Raises: Unreachable where it is not."""
        try:
            async with asyncio.timeout(_READY_SECONDS):
                return await self._connect_as(canary)
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            raise Unreachable(
                f"the broker cannot be reached by a client of its own: {error}",
                hint="broker/server, broker/client, broker/revoked and broker/trust.pem in HOME must be of one fleet",
            ) from error

    async def _connect_as(self, canary: ClientTrust) -> int:
        assert self._address is not None
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._address.host, self._address.host)  # noqa: S104
        reader, writer = await asyncio.open_connection(host, self._address.port, ssl=canary.context)
        try:
            writer.write(_connect_frame(canary.name))
            answer = await reader.readexactly(4)
            if answer[3] == admission.ACCEPTED:
                writer.write(b"\xe0\x00")
                await writer.drain()
            return answer[3]
        finally:
            writer.close()
            with contextlib.suppress(OSError):  # whoever is refused is closed by the other side
                await writer.wait_closed()

    async def stop(self) -> None:
        """See `Engine.stop`."""
        if self._broker is None or self._hub is None or self._door is None:
            return
        broker, self._broker = self._broker, None
        if self._counters is not None:
            self._counters.stop()
        if self._announcements is not None:
            self._announcements.stop()
        self._hub.leave_all(Reason.STOPPED)
        for connection in tuple(self._door.open):
            connection.end(Reason.STOPPED)
        if self._expiring is not None:
            self._expiring.cancel()
        await broker.shutdown()
        if self._durability is not None:
            await self._durability.close()

    async def replace_trust(self, trust: Trust) -> None:
        """See `Engine.replace_trust`: TLS is ours, so the next connection simply takes the new context."""
        assert self._door is not None
        self._door.trust = trust

    def apply(self, change: Change) -> None:
        """See `Engine.apply`: before `start` there is nobody to cut."""
        if self._hub is not None:
            self._hub.apply(change)

    async def disconnect(self, target: Principal | Serial, reason: Reason) -> int:
        """See `Engine.disconnect`."""
        assert self._hub is not None
        return self._hub.disconnect(target, reason)

    def clients(self) -> tuple[Client, ...]:
        """See `Engine.clients`."""
        return tuple(client for _, client in self._hub.live()) if self._hub is not None else ()

    def stats(self) -> Stats:
        """See `Engine.stats`."""
        if self._hub is None or self._door is None:
            return Stats()
        found = self._hub.stats()
        found.pending = self._door.pending
        return found

    def show(self, read_counters: Callable[[], Mapping[str, str]]) -> None:
        """See `Engine.show`."""
        assert self._hub is not None
        if self._counters is not None:
            self._counters.stop()
        self._counters = CounterTopics(self._hub, asyncio.get_running_loop(), read_counters)

    def announce(self, boot: str) -> None:
        """See `Engine.announce`."""
        assert self._hub is not None
        if self._announcements is not None:
            self._announcements.stop()
        self._announcements = Announcements(self._hub, asyncio.get_running_loop(), boot, self._now)


def _connect_frame(name: str) -> bytes:
    body = b"\x00\x04MQTT\x04\x02\x00\x0a" + len(name).to_bytes(2, "big") + name.encode()
    return b"\x10" + packets.encode_length(len(body)) + body


def _bind(address: Address) -> socket.socket:
    """A socket bound to `address`, not yet listening. Raises: FleetError."""
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, where = found[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise FleetError(f"cannot listen on {address}: {error.strerror}", hint="--listen HOST:PORT") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(where)
    except OSError as error:
        bound.close()
        raise FleetError(
            f"cannot listen on {address}: {error.strerror}",
            hint="stop what listens there, or choose another port: --listen HOST:PORT",
        ) from error
    return bound
