"""All that Home Assistant is to know of the fleet, and what has to be published so that it does (pure).

    PREFIX/device/NAME/pump-07/config                          the device and its entities (retained)
    PREFIX/NAME/devices/pump-07/availability                   online, offline (retained)
    PREFIX/NAME/devices/pump-07/load/l1/sensor                 0.5 (retained)
    PREFIX/NAME/bridge/availability                            online; offline is the bridge's will (retained)
    PREFIX/NAME/bridge/owner                                   which bridge has begun last under this name (retained)

A restart begins with what the other broker has kept, so that nothing vanishes from Home Assistant and comes back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from enroll.bridge.entities import Entity, Kind, Value, label
from enroll.bridge.units import Unit, unit_of
from enroll.export.readings import Reading
from fleet import messages, topics
from fleet.errors import FleetError, InvalidInput
from fleet.identity import DeviceId
from fleet.messages import Presence, StatusMessage

MAX_ENTITIES: Final = 256  # of one device
MAX_DEVICES: Final = 10_000
_MAX_CONFIG_BYTES: Final = 524_288
_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")  # as Home Assistant takes a node id


@dataclass(frozen=True, slots=True)
class Publication:
    """One message to the other broker; retained. An empty one removes."""

    topic: str
    payload: bytes
    qos: int = 1


@dataclass(frozen=True, slots=True)
class Layout:
    """Where things are on the other broker: below `prefix`, under a `name` that no other bridge there has."""

    prefix: str = "homeassistant"
    name: str = "mqtt-fleet"

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise InvalidInput(f"{self.name[:80]!r} cannot be a bridge's name", hint="use letters, digits, _ and -")
        if not topics.is_topic_name(self.prefix) or self.prefix.startswith("$") or "" in self.prefix.split("/"):
            raise InvalidInput(f"{self.prefix[:80]!r} cannot be a prefix", hint="as homeassistant")

    @property
    def bridge(self) -> str:
        return f"{self.prefix}/{self.name}/bridge/availability"

    @property
    def owner(self) -> str:
        return f"{self.prefix}/{self.name}/bridge/owner"

    @property
    def configs(self) -> str:
        """The filter of what tells which devices this bridge has shown."""
        return f"{self.prefix}/device/{self.name}/+/config"

    def config(self, device: DeviceId) -> str:
        return f"{self.prefix}/device/{self.name}/{device}/config"

    def availability(self, device: DeviceId) -> str:
        return f"{self.prefix}/{self.name}/devices/{device}/availability"

    def state(self, device: DeviceId, entity: Entity) -> str:
        return f"{self.prefix}/{self.name}/devices/{device}/{entity.stream}/{entity.key}/{entity.kind.value}"

    def device_of(self, topic: str) -> DeviceId | None:
        """Whose configuration is there."""
        start, end = self.configs.split("+")
        try:
            return DeviceId(topic.removeprefix(start).removesuffix(end))
        except InvalidInput:
            return None


@dataclass(slots=True)
class _Device:
    """One device as it is shown; `shown` has the configuration of each entity, `now` its value."""

    shown: dict[Entity, Mapping[str, Any]] = field(default_factory=dict)
    now: dict[Entity, str] = field(default_factory=dict)
    presence: Presence | None = None
    agent: str = ""


@dataclass(slots=True)
class House:
    """What is shown. `ignored` counts values beyond what one device, or all, may have."""

    layout: Layout
    units: Mapping[str, Unit]
    version: str
    ignored: int = 0
    _devices: dict[DeviceId, _Device] = field(default_factory=dict)

    @property
    def devices(self) -> list[DeviceId]:
        return list(self._devices)

    def hear(self, reading: Reading, values: Iterable[Value]) -> list[Publication]:
        """What a device measured: only what has changed is published."""
        device = self._known(reading.device)
        if device is None:
            self.ignored += 1
            return []
        is_new, found = False, []
        for value in values:
            if value.entity not in device.now:  # not in this run
                if value.entity not in device.shown and len(device.shown) >= MAX_ENTITIES:
                    self.ignored += 1
                    continue
                is_new |= self._show(reading.device, device, value)
            if device.now.get(value.entity) != value.text:
                device.now[value.entity] = value.text
                found.append(Publication(self.layout.state(reading.device, value.entity), value.text.encode(), 0))
        is_first = device.presence is None and bool(device.shown)
        if is_first:  # a device without an agent says no status: it is there while it speaks
            device.presence = Presence.ONLINE
        return [
            *([self._config(reading.device, device)] if is_new else []),
            *([self._availability(reading.device, device)] if is_first or is_new else []),
            *found,
        ]

    def _show(self, id: DeviceId, device: _Device, value: Value) -> bool:
        """Whether Home Assistant has to be told."""
        before, device.shown[value.entity] = device.shown.get(value.entity), self._entity(id, value)
        return before != device.shown[value.entity]

    def presence(self, id: DeviceId, status: StatusMessage) -> list[Publication]:
        """A device came or went. One that has measured nothing yet is not shown."""
        device = self._known(id)
        if device is None:
            return []
        agent = label("", status.agent_version).strip() or device.agent
        is_new, before = device.presence is not status.presence, device.agent
        device.presence, device.agent = status.presence, agent
        if not device.shown:
            return []
        return [
            *([self._config(id, device)] if agent != before else []),
            *([self._availability(id, device)] if is_new else []),
        ]

    def remove(self, id: DeviceId) -> list[Publication]:
        """The device is none of the fleet any more, or not one of those that are shown."""
        device = self._devices.pop(id, None) or _Device()
        states = (self.layout.state(id, each) for each in device.shown)
        # The configuration last: while it is there, the next run knows what has to go.
        return [Publication(topic, b"") for topic in (*states, self.layout.availability(id), self.layout.config(id))]

    def everything(self) -> Iterator[Publication]:
        """All of it, for a broker that may have lost what it had."""
        for name, device in self._devices.items():
            if device.shown:
                yield self._config(name, device)
                if device.presence is not None:
                    yield self._availability(name, device)
                for entity, text in device.now.items():
                    yield Publication(self.layout.state(name, entity), text.encode(), 0)

    def recall(self, topic: str, payload: bytes) -> None:
        """What the other broker has kept of an earlier run: which entities there are. All else comes again."""
        owner = self.layout.device_of(topic)
        if owner is None or owner in self._devices:
            return
        try:
            fields = messages.decode_object(payload, max_bytes=_MAX_CONFIG_BYTES)
        except FleetError:
            return
        components, device = fields.get("components"), self._known(owner)
        if device is None or not isinstance(components, dict):
            return
        for name, shown in list(components.items())[:MAX_ENTITIES]:
            entity = _entity_of(name)
            if entity is not None and isinstance(shown, dict):
                device.shown[entity] = self._entity(owner, Value(entity, entity.key, ""), shown)

    def _known(self, id: DeviceId) -> _Device | None:
        if id not in self._devices:
            if len(self._devices) >= MAX_DEVICES:
                return None
            self._devices[id] = _Device()
        return self._devices[id]

    def _entity(self, id: DeviceId, value: Value, kept: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """One component. Of what was `kept` only the name that people read, which is not to change, is believed."""
        entity, name = value.entity, (kept or {}).get("name")
        unit = unit_of(entity.stream, value.field, self.units) if entity.kind is Kind.NUMBER else Unit()
        return {
            "platform": entity.kind.value,
            "unique_id": f"{self.layout.name}/{id}/{entity.id}",
            "name": label("", name).strip() if isinstance(name, str) else label(entity.stream, value.field),
            "state_topic": self.layout.state(id, entity),
            **({"state_class": "measurement"} if entity.kind is Kind.NUMBER else {}),
            **({"unit_of_measurement": unit.text} if unit.text else {}),
            **({"device_class": unit.measures} if unit.measures else {}),
        }

    def _config(self, id: DeviceId, device: _Device) -> Publication:
        about = {"identifiers": [f"{self.layout.name}/{id}"], "name": str(id)}
        config = {
            "device": about | ({"sw_version": device.agent} if device.agent else {}),
            "origin": {"name": "mqtt-fleet", "sw_version": self.version},
            "availability": [{"topic": self.layout.bridge}, {"topic": self.layout.availability(id)}],
            "availability_mode": "all",
            "qos": 1,
            "components": {entity.id: device.shown[entity] for entity in sorted(device.shown)},
        }
        return Publication(self.layout.config(id), json.dumps(config, ensure_ascii=False).encode())

    def _availability(self, id: DeviceId, device: _Device) -> Publication:
        return Publication(self.layout.availability(id), str(device.presence or Presence.OFFLINE).encode())


def _entity_of(name: str) -> Entity | None:
    """The entity with that id, if it can be one of ours."""
    try:
        stream, key, kind = name.split(":")
        return Entity(topics.check_name(stream), topics.check_name(key), Kind(kind))
    except ValueError:
        return None
    except FleetError:
        return None
