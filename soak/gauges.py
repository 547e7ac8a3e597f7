"""What the broker tells an operator: its counters under `$SYS/`, and the retained status of every device."""

from __future__ import annotations

import asyncio
import json
import ssl
from typing import Any, Final

from soak.link import Link
from tests import mqtt

Gauges = dict[str, float]

_PREFIX: Final = "$SYS/broker/"
_AGAIN_SECONDS: Final = 1.5
_RETAINED: Final = "retained unseen"
_WANTED: Final = {
    "clients/total": "sessions",
    "subscriptions/count": "subscriptions",
    "retained messages/count": _RETAINED,
    "queued messages/count": "queued messages",
    "messages/inflight": "messages in flight",
}


async def read_gauges(port: int, context: ssl.SSLContext, operator: str) -> Gauges:
    """The counters as they are now, this connection with them. Retained: what nobody can see."""
    await _retained(port, context, operator, "$SYS/#")
    await asyncio.sleep(_AGAIN_SECONDS)  # then what the first look has brought forth is counted too
    found = await _retained(port, context, operator, "$SYS/#")
    seen = await _retained(port, context, operator, "devices/+/up/#")
    gauges = {name: float(found[_PREFIX + topic]) for topic, name in _WANTED.items() if _PREFIX + topic in found}
    if _RETAINED in gauges:
        gauges[_RETAINED] -= len(seen) + len(found)
    return gauges


async def read_statuses(port: int, context: ssl.SSLContext, operator: str) -> dict[str, dict[str, Any]]:
    """The status of every device."""
    found = await _retained(port, context, operator, "devices/+/up/status")
    return {topic.split("/")[1]: _fields(payload) for topic, payload in found.items()}


def _fields(payload: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(payload)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


async def _retained(port: int, context: ssl.SSLContext, operator: str, topic_filter: str) -> dict[str, bytes]:
    """What is retained and matches."""
    found: dict[str, bytes] = {}
    done = asyncio.Event()

    def came(_link: Link, first: int, body: bytes) -> None:
        if first & 0xF0 == 0x30:
            end = 2 + int.from_bytes(body[:2], "big")
            found[body[2:end].decode()] = body[end:]
        elif first == 0xD0:
            done.set()

    link = await Link.open(port, context, came, lambda _: done.set())
    link.send(mqtt.connect(f"{operator}:gauges") + mqtt.subscribe((topic_filter, 0)) + mqtt.PINGREQ)
    async with asyncio.timeout(30):
        await done.wait()
    link.send(mqtt.DISCONNECT)
    await link.wait_ended()
    return found
