"""Whose connection ends when there are too many (pure).

A connection counts for its holder: the address it came from, until it has shown a valid certificate, and then that
certificate. So one stranger cannot shut out the others, nor a gateway's strangers its broker, nor one stolen
certificate the strangers.

What ends is the oldest connection that waits for its peer: of a holder that has more than its share at once, of the
holder with most when none is left. A tenth of all is kept for those who have shown a certificate: so many of them end
for no newcomer, who waits. Nobody's request is cut off while the service works on it, and nobody's connection in its
first moment, which is long enough to shake hands and ask: then a newcomer waits, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

PER_CERTIFICATE: Final = 32
"""A broker has two, its feed and a question; a gateway's tools a few more."""
GRACE_SECONDS: Final = 1.0
RESERVED_SHARE: Final = 10

Holder = str | bytes
"""A network, or a certificate."""


@dataclass(slots=True, eq=False)
class Slot:
    """One connection. `opened` is monotonic, in seconds; `end` ends it, whatever state it is in."""

    holder: Holder
    opened: float
    end: Callable[[], None]
    waits_for_peer: bool = True

    @property
    def is_strangers(self) -> bool:
        return isinstance(self.holder, str)


@dataclass(slots=True)
class Slots:
    """All connections, at most `limit` if whoever opens one asks `in_the_way` before."""

    limit: int
    grace: float = GRACE_SECONDS
    _by_holder: dict[Holder, dict[Slot, None]] = field(default_factory=dict)  # each holder's from the oldest on
    # Holders by how many they have, strangers apart: a thousand networks with one each cost no more than one with all.
    _by_size: dict[tuple[bool, int], dict[Holder, None]] = field(default_factory=dict)
    _count: int = 0
    _known: int = 0

    @property
    def is_full(self) -> bool:
        return self._count >= self.limit

    def share(self, holder: Holder) -> int:
        """What one holder may have: half of all for a network, so that a site with hundreds of devices gets in."""
        return max(1, self.limit // 2) if isinstance(holder, str) else PER_CERTIFICATE

    def open(self, slot: Slot) -> None:
        held = self._by_holder.setdefault(slot.holder, {})
        held[slot] = None
        self._count += 1
        self._known += not slot.is_strangers
        self._resize(slot.holder, len(held) - 1, len(held))

    def close(self, slot: Slot) -> None:
        """The slot is free; again, and nothing happens."""
        held = self._by_holder.get(slot.holder, {})
        if slot not in held:
            return
        del held[slot]
        self._count -= 1
        self._known -= not slot.is_strangers
        self._resize(slot.holder, len(held) + 1, len(held))
        if not held:
            del self._by_holder[slot.holder]

    def _resize(self, holder: Holder, before: int, after: int) -> None:
        is_strangers = isinstance(holder, str)
        if before:
            others = self._by_size[is_strangers, before]
            del others[holder]
            if not others:
                del self._by_size[is_strangers, before]
        if after:
            self._by_size.setdefault((is_strangers, after), {})[holder] = None

    def recognise(self, slot: Slot, certificate: bytes) -> None:
        """The peer has shown a valid certificate."""
        self.close(slot)
        slot.holder = certificate
        self.open(slot)

    def in_the_way(self, network: str, now: float) -> Slot | None:
        """What has to end before another connection from `network` is opened; None, and it may have to wait."""
        return self.over_share(network, now) or (self.oldest_of_most(now) if self.is_full else None)

    def over_share(self, holder: Holder, now: float) -> Slot | None:
        """The oldest of `holder` that may end, if it has its share already."""
        held = self._by_holder.get(holder, {})
        return next(self._ending(held, now), None) if len(held) >= self.share(holder) else None

    def oldest_of_most(self, now: float) -> Slot | None:
        """The oldest that may end of the holder that has most; strangers before those who have shown a certificate."""
        for is_strangers, size in sorted(self._by_size, reverse=True):
            if not is_strangers and self._known <= self.limit // RESERVED_SHARE:
                return None
            for holder in self._by_size[is_strangers, size]:
                for slot in self._ending(self._by_holder[holder], now):
                    return slot
        return None

    def _ending(self, held: dict[Slot, None], now: float) -> Iterator[Slot]:
        return (slot for slot in held if slot.waits_for_peer and now - slot.opened >= self.grace)
