"""paho's client without `urllib.request` (`device_agent.lean`): `mqtt` never asks it for a proxy."""

from device_agent.lean import postponed

with postponed("urllib.request"):
    import paho.mqtt.client as client

__all__ = ["client"]
