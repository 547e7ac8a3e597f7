"""Which generation is in use, which came before it, and which is to come: as the folders of a home tell.

    gen-4  whole, older than `current`   previous: what there is to fall back to, until its successor is confirmed
    gen-5  <- current                    in use
    gen-6  whole, newer                  candidate: certified, not proven yet
    gen-6  without meta.json             pending: its key may have been sent (`store`)

A crash at any moment leaves one of these states, and each is gone on from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from device_agent.store import Disk, Store
from fleet.errors import InvalidInput, NotFound
from fleet.layout import AgentHome, Credential, decode_credential

_META: Final = "meta.json"


@dataclass(frozen=True, slots=True)
class Generation:
    """One that is whole."""

    folder: Path
    credential: Credential


@dataclass(frozen=True, slots=True)
class Succession:
    """The generations of one home that has an identity."""

    home: AgentHome
    disk: Disk

    @property
    def _store(self) -> Store:
        return Store(self.home, self.disk)

    def previous(self) -> Generation | None:
        """What the one in use succeeded, and could be gone back to."""
        return next((each for each in reversed(list(self._whole())) if self._rank(each.folder) < 0), None)

    def candidate(self) -> Generation | None:
        """The newest that is whole and not in use yet."""
        return next((each for each in reversed(list(self._whole())) if self._rank(each.folder) > 0), None)

    def newest_first(self) -> list[tuple[Generation, bool]]:
        """Every one that is whole, and whether it is newer than the one in use."""
        return [(each, self._rank(each.folder) > 0) for each in reversed(list(self._whole()))]

    def promote_candidate(self) -> Credential:
        """The candidate is in use from now on. Raises: NotFound, OSError."""
        found = self.candidate()
        if found is None:
            raise NotFound("there is no successor to put into use", hint="device-agent renew")
        self._store.promote(found.folder)
        return found.credential

    def fall_back(self) -> Credential:
        """The previous one is in use again. Raises: NotFound, OSError."""
        found = self.previous()
        if found is None:
            raise NotFound("there is no identity to go back to", hint="device-agent renew")
        self._store.promote(found.folder)
        return found.credential

    def forget_previous(self) -> None:
        """Remove every generation older than the one in use: it has been confirmed. Raises: OSError."""
        self._remove(-1)

    def discard_successors(self) -> None:
        """Remove every generation newer than the one in use, whole or not. Raises: OSError."""
        self._remove(1)

    def _remove(self, side: int) -> None:
        store = self._store
        for folder in store.generations():
            if self._rank(folder) * side > 0:
                store.remove(folder)

    def _whole(self) -> Iterator[Generation]:
        for folder in self._store.generations():
            try:
                yield Generation(folder, decode_credential((folder / _META).read_bytes()))
            except (OSError, InvalidInput):
                continue

    def _rank(self, folder: Path) -> int:
        """Below 0 for one that is older than that in use, 0 for it, above for a newer one."""
        return number_of(folder.name) - number_of(self.home.current.readlink().name)


def number_of(name: str) -> int:
    """N of gen-N. Raises: ValueError."""
    return int(name.removeprefix("gen-"))
