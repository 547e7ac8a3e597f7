"""A broker of the engine's own kind, and one client of each role, of each library in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from broker.engine import Clock, Engine
from broker.engines.amqtt.engine import AmqttEngine
from fleet.identity import Role
from fleet.policy import DEFAULT_RULES, Action, Policy, Rule
from tests.certificates import Identity, TestFleet
from tests.contract.engines import RunningEngine
from tests.interop.mqttjs import MqttJs, Node
from tests.interop.paho import Paho
from tests.interop.peers import Broker, Client, Library

ENGINES: dict[str, Callable[[Clock], Engine]] = {"amqtt": AmqttEngine}

# Beyond the default policy, for what brokers are commonly tested with: wildcards first, and topics that begin with $.
EXTRA_RULES = (
    Rule("test-reads-everything", Role.OPERATOR, Action.SUBSCRIBE, "#"),
    Rule("test-reads-dollar", Role.OPERATOR, Action.SUBSCRIBE, "$test/#"),
    Rule("test-writes-dollar", Role.OPERATOR, Action.PUBLISH, "$test/#"),
)


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> TestFleet:
    """The fleet whose broker it is."""
    return TestFleet(tmp_path_factory.mktemp("fleet"))


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, fleet: TestFleet) -> Iterator[RunningEngine]:
    """An engine that accepts connections, with the default policy and the rules above."""
    policy = Policy((*DEFAULT_RULES, *EXTRA_RULES))
    with RunningEngine(ENGINES[request.param], fleet, policy=policy) as running:
        yield running


@pytest.fixture
def broker(engine: RunningEngine, fleet: TestFleet) -> Broker:
    """Where clients find it."""
    return Broker(*engine.address, str(fleet.root_file))


@pytest.fixture
def pump(engine: RunningEngine) -> Identity:
    return engine.device("pump-07")


@pytest.fixture
def admin(engine: RunningEngine) -> Identity:
    return engine.admit(engine.fleet.client("admin", Role.OPERATOR))


@pytest.fixture
def historian(engine: RunningEngine) -> Identity:
    return engine.admit(engine.fleet.client("historian", Role.SERVICE))


@pytest.fixture(scope="session")
def node() -> Iterator[Node]:
    """The process of all MQTT.js clients that are not to stop."""
    started = Node()
    with started.program:
        yield started


@pytest.fixture
def libraries(node: Node) -> dict[str, Library]:
    """Each client library by its name."""
    return {"paho": Paho, "MQTT.js": lambda broker, identity: MqttJs(node, broker, identity)}


# Every library is both sides of every scenario, and meets the other one.
PAIRS = [("paho", "MQTT.js"), ("MQTT.js", "paho")]


@pytest.fixture(params=PAIRS, ids=lambda pair: f"{pair[0]} device, {pair[1]} operator")
def pair(request: pytest.FixtureRequest) -> tuple[str, str]:
    """The libraries of the device and of the operator and the service."""
    found: tuple[str, str] = request.param
    return found


Join = Callable[[str, Identity], Client]


@pytest.fixture
def new_client(libraries: dict[str, Library], broker: Broker) -> Iterator[Join]:
    """Makes clients of a library, and closes them at the end."""
    with ExitStack() as made:

        def make(library: str, identity: Identity) -> Client:
            client = libraries[library](broker, identity)
            made.callback(client.close)
            return client

        yield make


@pytest.fixture
def device(new_client: Join, pair: tuple[str, str], pump: Identity) -> Client:
    """Not connected yet."""
    return new_client(pair[0], pump)


@pytest.fixture
def operator(new_client: Join, pair: tuple[str, str], admin: Identity) -> Client:
    """Not connected yet."""
    return new_client(pair[1], admin)


@pytest.fixture
def service(new_client: Join, pair: tuple[str, str], historian: Identity) -> Client:
    """Not connected yet."""
    return new_client(pair[1], historian)
