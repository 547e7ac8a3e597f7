"""How often somebody may do something, or be refused: fixed windows, in bounded memory (pure)."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

WINDOW_SECONDS: Final = 60.0
MAX_KEYS: Final = 10_000


@dataclass(slots=True)
class RateLimit:
    """Counts by key; `limit` in one window are let through. Times are in seconds; before its beginning no window is."""

    limit: int
    window_seconds: float = WINDOW_SECONDS
    _windows: OrderedDict[str, tuple[float, int]] = field(default_factory=OrderedDict)

    def retry_after(self, key: str, now: float) -> float:
        """Seconds until `key` may try again; 0 when it may now."""
        began, count = self._windows.get(key, (now, 0))
        left = began + self.window_seconds - now
        return left if count >= self.limit and 0 < left <= self.window_seconds else 0.0

    def count(self, key: str, now: float) -> None:
        """One more. The key that was counted longest ago is forgotten when memory is full."""
        began, count = self._windows.pop(key, (now, 0))
        if not 0 <= now - began < self.window_seconds:
            began, count = now, 0
        self._windows[key] = (began, count + 1)
        if len(self._windows) > MAX_KEYS:
            self._windows.popitem(last=False)


ALL_OF_THE_FIRST: Final = 8
FORGET_SECONDS: Final = 3600.0


@dataclass(slots=True)
class Sparsely:
    """What to log of what strangers can repeat at will: the first few, then the 16th, 32nd, 64th of the same key.

    A key that was quiet for `forget_seconds` begins anew. In bounded memory; times are monotonic, in seconds.
    """

    first: int = ALL_OF_THE_FIRST
    forget_seconds: float = FORGET_SECONDS
    _counts: OrderedDict[str, tuple[float, int]] = field(default_factory=OrderedDict)

    def count(self, key: str, now: float) -> int:
        """The number of this one if it is to be logged, else 0."""
        last, count = self._counts.pop(key, (now, 0))
        count = 1 if now - last >= self.forget_seconds else count + 1
        self._counts[key] = (now, count)
        if len(self._counts) > MAX_KEYS:
            self._counts.popitem(last=False)
        return count if count <= self.first or count & (count - 1) == 0 else 0


@lru_cache(maxsize=4096)
def network_of(address: str) -> str:
    """What counts as one address: all of it in IPv4, the /64 that one customer has in IPv6."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((parsed, 64), strict=False))
