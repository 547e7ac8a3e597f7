"""What Home Assistant takes as MQTT device discovery, as a JSON schema.

Written down from homeassistant 2026.11.0, components/mqtt: `DEVICE_DISCOVERY_SCHEMA` and what it names in `schemas.py`,
the platforms in `sensor.py` and `binary_sensor.py`, and `DEVICE_CLASS_UNITS` in components/sensor/const.py as far as we
use it. Stricter where Home Assistant ignores: keys that it does not know are refused.
"""

from __future__ import annotations

from typing import Any, Final

_TEXT: Final = {"type": "string"}
_TOPIC: Final = {"type": "string", "minLength": 1, "maxLength": 65_535, "not": {"pattern": "[+#\\x00-\\x1f]"}}
_AVAILABILITY: Final = {
    "type": "object",
    "properties": {
        "topic": _TOPIC,
        "payload_available": _TEXT,
        "payload_not_available": _TEXT,
        "value_template": _TEXT,
    },
    "required": ["topic"],
    "additionalProperties": False,
}
_UNITS: Final = {
    "temperature": ["°C", "°F", "K"],
    "pressure": ["bar", "hPa", "Pa"],
    "voltage": ["V"],
    "current": ["A"],
    "power": ["W", "kW"],
    "frequency": ["Hz"],
    "duration": ["s"],
    "illuminance": ["lx"],
    "signal_strength": ["dBm"],
    "data_size": ["B"],
    "distance": ["m"],
}
_ENTITY: Final[dict[str, Any]] = {
    "platform": {"enum": ["sensor", "binary_sensor"]},
    "unique_id": _TEXT,
    "name": {"type": ["string", "null"]},
    "state_topic": _TOPIC,
    "device_class": _TEXT,
}
_SENSOR: Final = {
    "properties": _ENTITY
    | {
        "device_class": {"enum": list(_UNITS)},
        "state_class": {"enum": ["measurement"]},  # not of energy, whose totals are no measurement
        "unit_of_measurement": _TEXT,
    },
    "allOf": [
        {
            "if": {"required": ["device_class"], "properties": {"device_class": {"const": measured}}},
            "then": {"required": ["unit_of_measurement"], "properties": {"unit_of_measurement": {"enum": units}}},
        }
        for measured, units in _UNITS.items()
    ],
    "additionalProperties": False,
}
_COMPONENT: Final = {
    "type": "object",
    "required": ["platform", "unique_id", "state_topic"],
    "if": {"properties": {"platform": {"const": "sensor"}}},
    "then": _SENSOR,
    "else": {"properties": _ENTITY, "additionalProperties": False},
}
DISCOVERY: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "device": {
            "type": "object",
            "properties": {
                "identifiers": {"type": "array", "items": _TEXT, "minItems": 1},
                **dict.fromkeys(("manufacturer", "model", "model_id", "name", "hw_version", "sw_version"), _TEXT),
                **dict.fromkeys(("serial_number", "via_device", "suggested_area"), _TEXT),
            },
            "required": ["identifiers"],
            "additionalProperties": False,
        },
        "origin": {
            "type": "object",
            "properties": {"name": _TEXT, "sw_version": _TEXT},
            "required": ["name"],
            "additionalProperties": False,
        },
        "availability": {"type": "array", "items": _AVAILABILITY},
        "availability_mode": {"enum": ["all", "any", "latest"]},
        "qos": {"enum": [0, 1, 2]},
        "components": {"type": "object", "additionalProperties": _COMPONENT},
    },
    "required": ["device", "origin", "components"],
    "additionalProperties": False,
}
TOPIC_LEVELS: Final = r"device/[a-zA-Z0-9_-]+/[a-zA-Z0-9_-]+/config"
"""`TOPIC_MATCHER` in discovery.py, with a node id."""
