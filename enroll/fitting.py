"""Whether devices would do a command, by what they have said that they take; asked before it is given.

A device that has not said anything takes any command. What fits here is checked again on the device, which may have
other firmware by then.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Final

from enroll.registry import Registry, Transaction, catalogues
from fleet.catalogue import Catalogue, misfit, parse_catalogue
from fleet.identity import DeviceId
from fleet.messages import JsonObject

_BATCH: Final = 500


def misfits(registry: Registry, devices: Sequence[DeviceId], name: str, args: JsonObject) -> dict[DeviceId, str]:
    """Those of these devices that would not do the command, and why. Raises: RegistryUnavailable."""
    judged: dict[str, str | None] = {}  # what is said by one firmware is judged once
    found: dict[DeviceId, str] = {}
    for device, text in _texts(registry, devices):
        if text not in judged:
            judged[text] = misfit(_read(text), name, args)
        if reason := judged[text]:
            found[device] = reason
    return found


def catalogue_of(transaction: Transaction, device: DeviceId) -> Catalogue | None:
    """What the device takes, if it has said so."""
    text = catalogues.texts_of(transaction, [device]).get(device)
    return None if text is None else _read(text)


def _read(text: str) -> Catalogue:
    return parse_catalogue(json.loads(text))


def _texts(registry: Registry, devices: Sequence[DeviceId]) -> Iterator[tuple[DeviceId, str]]:
    for start in range(0, len(devices), _BATCH):
        with registry.read() as transaction:
            yield from catalogues.texts_of(transaction, devices[start : start + _BATCH]).items()
