"""Numbers that are good once, for who signs one soon; nothing is kept of those that are not used (pure).

A nonce carries when it ends and a seal that only its maker can make. So asking for any number of them costs no memory
and takes nobody else's away; what is remembered until it ends is the few that were used by somebody who proved a key.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

MAX_SPENT: Final = 10_000
_DRAWN_BYTES: Final = 16
_SEAL_BYTES: Final = 16
_ENDS = struct.Struct(">d")


class TooManySpent(Exception):
    """So many were used of late that no more can be remembered."""


@dataclass(slots=True)
class Nonces:
    """Those of one process: another one's, or an earlier run's, are nothing here. Times are monotonic, in seconds."""

    secret: bytes = field(repr=False)
    token_bytes: Callable[[int], bytes] = field(repr=False)
    seconds: float
    _spent: dict[str, float] = field(default_factory=dict)

    def draw(self, now: float) -> str:
        """A new one."""
        body = self.token_bytes(_DRAWN_BYTES) + _ENDS.pack(now + self.seconds)
        return base64.urlsafe_b64encode(body + self._seal(body)).rstrip(b"=").decode()

    def is_good(self, nonce: str, now: float) -> bool:
        """Whether it is one of ours, in time, and not used yet."""
        ends = self._end(nonce)
        return ends is not None and now < ends and nonce not in self._spent

    def spend(self, nonce: str, now: float) -> None:
        """It is used now; the caller has seen that it is good. Raises: TooManySpent."""
        ends = self._end(nonce)
        assert ends is not None
        if len(self._spent) >= MAX_SPENT:
            self._spent = {other: until for other, until in self._spent.items() if until > now}
        if len(self._spent) >= MAX_SPENT:
            raise TooManySpent
        self._spent[nonce] = ends

    def _end(self, nonce: str) -> float | None:
        """When it ends; None if it is not ours, or is not written as it was given: one nonce has one text."""
        try:
            raw = base64.urlsafe_b64decode(nonce + "=" * (-len(nonce) % 4))
        except (ValueError, binascii.Error):
            return None
        body, seal = raw[:-_SEAL_BYTES], raw[-_SEAL_BYTES:]
        if len(body) != _DRAWN_BYTES + _ENDS.size or not hmac.compare_digest(seal, self._seal(body)):
            return None
        if base64.urlsafe_b64encode(raw).rstrip(b"=").decode() != nonce:
            return None
        return float(_ENDS.unpack(body[_DRAWN_BYTES:])[0])

    def _seal(self, body: bytes) -> bytes:
        return hmac.digest(self.secret, body, hashlib.sha256)[:_SEAL_BYTES]
