"""The admins of the soak: they revoke, suspend and resume through the registry, as the command line does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, Final

from enroll import service
from enroll.registry import Registry
from fleet.identity import DeviceId

_BY: Final = "soak"


class Office:
    """One registry, used from one thread at a time."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._turn = asyncio.Lock()

    async def revoke(self, device: str) -> None:
        await self._each(service.revoke, [device])

    async def suspend(self, *devices: str) -> None:
        await self._each(service.suspend, devices)

    async def resume(self, *devices: str) -> None:
        await self._each(service.resume, devices)

    async def _each(self, act: Callable[..., Any], devices: Iterable[str]) -> None:
        def work() -> None:
            for device in devices:
                act(self._registry, DeviceId(device), by=_BY, now=datetime.now(UTC))

        async with self._turn:
            await asyncio.to_thread(work)
