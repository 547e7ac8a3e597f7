"""What the engine overrides in amqtt 0.12.1 is there, and amqtt's own ways in are closed."""

from __future__ import annotations

import asyncio
import importlib.metadata
import inspect
import socket
from collections.abc import Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from amqtt.broker import Broker
from amqtt.errors import BrokerError

from broker.directory import Directory
from broker.engine import Rules
from broker.engines.amqtt.door import Door
from broker.engines.amqtt.embedding import OVERRIDDEN, FleetBroker
from broker.engines.amqtt.hub import Hub
from broker.trust import load_trust
from fleet.identity import Serial, Server
from fleet.limits import Limits
from fleet.policy import DEFAULT_POLICY
from tests.certificates import TestFleet


async def _look_up(_serial: Serial) -> None:
    return None


def test_amqtt_is_the_release_whose_internals_are_known() -> None:
    """Another release may have other hooks, and an override that nobody calls."""
    assert "0.12.1" == importlib.metadata.version("amqtt")


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_every_hook_is_amqtts_and_takes_what_amqtt_passes(name: str) -> None:
    """An override that nobody calls would leave amqtt's own door open."""
    theirs, ours = getattr(Broker, name), getattr(FleetBroker, name)
    assert theirs is not ours
    assert inspect.iscoroutinefunction(theirs)
    assert inspect.iscoroutinefunction(ours)
    parameters = inspect.signature(ours).parameters.values()
    if not any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        assert list(inspect.signature(theirs).parameters) == list(inspect.signature(ours).parameters)


@pytest.mark.parametrize("name", ["stream_connected", "ws_connected", "external_connected", "_client_connected"])
def test_every_other_way_in_is_closed(name: str) -> None:
    """A plug-in could open a listener that lets anyone in."""

    async def enter() -> None:
        broker = FleetBroker.__new__(FleetBroker)
        entered: Coroutine[Any, Any, None] = getattr(broker, name)(None, None)
        await entered

    with pytest.raises(BrokerError):
        asyncio.run(enter())


def test_no_plug_in_of_amqtts_defaults_is_loaded(unbound: FleetBroker) -> None:
    """AnonymousAuthPlugin is among them."""
    assert [] == list(unbound.plugins_manager._plugins)
    assert unbound.listeners_config["default"].bind is None


def test_what_a_plug_in_publishes_takes_our_route(unbound: FleetBroker) -> None:
    """It would wait in a queue that nobody reads."""
    asyncio.run(unbound.retain_message(None, "$SYS/broker/version", b"1"))
    assert [b"1"] == [message.payload for message in unbound._hub.retained.matching("$SYS/#")]
    asyncio.run(unbound.internal_message_broadcast("x", b"1"))
    assert unbound._broadcast_queue.empty()


@pytest.fixture
def unbound(tmp_path: Path) -> FleetBroker:
    """A broker that has not been started."""
    fleet = TestFleet(tmp_path)
    now = datetime.now(UTC)
    trust = load_trust(fleet.trust_file, fleet.server(Server.BROKER).files, now)

    async def make() -> FleetBroker:
        hub = Hub(Rules(DEFAULT_POLICY, Directory(), _look_up, lambda: True), Limits(), lambda: now, lambda _: None)
        with socket.socket() as closed_again:
            return FleetBroker(hub, Door(hub, trust, asyncio.get_running_loop()), closed_again)

    return asyncio.run(make())
