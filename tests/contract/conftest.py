"""Engines, each with a fleet of its own making, and registries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from broker.engine import Clock, Engine
from enroll.registry import Registry
from fleet.identity import Role
from fleet.limits import Limits
from tests.certificates import Identity, TestFleet
from tests.contract.attacks import Target, limits_of
from tests.contract.durable import Site
from tests.contract.engines import DURABLE_ENGINES, ENGINES, RunningEngine
from tests.contract.registries import REGISTRIES, RegistryFactory, check_invariants
from tests.contract.shipped import ShippedBroker


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> TestFleet:
    """The fleet whose broker it is."""
    return TestFleet(tmp_path_factory.mktemp("fleet"))


@pytest.fixture(scope="session")
def other_fleet(tmp_path_factory: pytest.TempPathFactory) -> TestFleet:
    """A fleet of the same names, and not ours."""
    return TestFleet(tmp_path_factory.mktemp("other-fleet"))


# What an engine keeps on disk is tested where that can make a difference.
_DURABLE = ("delivery", "interface", "revocation", "standard", "standard_messages", "topics")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test of engines with each of them, but for those that a disk has nothing to do with."""
    if "make_engine" in metafunc.fixturenames:
        is_durable = metafunc.module.__name__.rpartition("test_engine_")[2] in _DURABLE
        names = [name for name in ENGINES if is_durable or name not in DURABLE_ENGINES]
        metafunc.parametrize("make_engine", names, indirect=True, scope="session")


@pytest.fixture(scope="session")
def make_engine(request: pytest.FixtureRequest) -> Callable[[Clock], Engine]:
    """Each engine in turn."""
    return ENGINES[request.param]


@pytest.fixture
def broker(make_engine: Callable[[Clock], Engine], fleet: TestFleet) -> Iterator[RunningEngine]:
    """An engine that accepts connections, with an empty directory."""
    with RunningEngine(make_engine, fleet) as running:
        yield running


@pytest.fixture
def limited(make_engine: Callable[[Clock], Engine], fleet: TestFleet) -> Iterator[Callable[[Limits], RunningEngine]]:
    """Makes engines with other limits."""
    started: list[RunningEngine] = []

    def start(limits: Limits) -> RunningEngine:
        running = RunningEngine(make_engine, fleet, limits)
        started.append(running)
        return running.__enter__()

    yield start
    for running in started:
        running.__exit__(None, None, None)


@pytest.fixture(params=[*(name for name in ENGINES if name not in DURABLE_ENGINES), "as-shipped"])
def target(request: pytest.FixtureRequest, fleet: TestFleet) -> Iterator[Target]:
    """What an attack is run against: each engine of ours, and amqtt as it ships."""
    limits = limits_of(request.function)
    if request.param == "as-shipped":
        with ShippedBroker(fleet, limits) as shipped:
            yield shipped
    else:
        with RunningEngine(ENGINES[request.param], fleet, limits) as running:
            yield running


@pytest.fixture
def pump(broker: RunningEngine) -> Identity:
    return broker.device("pump-07")


@pytest.fixture
def valve(broker: RunningEngine) -> Identity:
    return broker.device("valve-1")


@pytest.fixture
def operator(broker: RunningEngine) -> Identity:
    return broker.admit(broker.fleet.client("admin", Role.OPERATOR))


@pytest.fixture
def site(fleet: TestFleet, tmp_path: Path) -> Site:
    """A file for engines, and who the directory lists."""
    return Site(
        fleet,
        tmp_path / "sessions.db",
        fleet.client("pump-07"),
        fleet.client("admin", Role.OPERATOR),
        fleet.client("valve-1"),
    )


@pytest.fixture(params=REGISTRIES)
def factory(request: pytest.FixtureRequest) -> RegistryFactory:
    """Each registry in turn."""
    return REGISTRIES[request.param]


@pytest.fixture
def registry(factory: RegistryFactory, tmp_path: Path) -> Iterator[Registry]:
    """An empty registry; its invariants are checked at the end."""
    with factory(tmp_path) as opened:
        yield opened
        check_invariants(opened)
