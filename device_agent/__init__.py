"""The agent on a device: makes the key, enrols, connects, renews."""

__version__ = "0.1.0"  # importlib.metadata would know, for 2 MB of memory: a test compares them

from device_agent.lean import postponed

with postponed("inspect"):
    import dataclasses  # noqa: F401 - before anybody else does
