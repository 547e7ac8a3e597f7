"""The connection to Home Assistant's broker (a real Mosquitto, mutual TLS): who it is, and if it hangs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from enroll.bridge import second as bridge
from enroll.bridge.house import Publication
from enroll.bridge.second import NotTrusted, SecondConnection, read_password
from fleet.errors import Denied, FleetError, Unreachable
from fleet.layout import IdentityFiles
from tests.faults.relay import Relay
from tests.system.houses import Second
from tests.unit.device_agent.authority import new_authority

_BOUND = 20
"""So much may be on its way, unconfirmed."""


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Second]:
    second = Second(tmp_path_factory.mktemp("house"), new_authority("house"))
    with second.running():
        yield second


def opened(login: bridge.Second, monotonic: Callable[[], float] = time.monotonic) -> SecondConnection:
    return SecondConnection.open(login, "bridge/availability", monotonic)


def refused(login: bridge.Second, kind: type[FleetError]) -> FleetError:
    with pytest.raises(kind) as caught:
        opened(login)
    assert kind is caught.type
    assert "correct" not in str(caught.value)
    return caught.value


def test_what_is_published_is_there(house: Second) -> None:
    """A house whose broker wants certificates cannot be shown anything."""
    with closing(opened(house.login())) as connection:
        connection.publish([Publication("kept/a", b"1")], time.monotonic)
        connection.settle(time.monotonic)
    with closing(opened(house.login())) as connection:
        assert ("kept/a", b"1") in connection.recall(("kept/#",), time.monotonic)


def test_a_broker_by_another_ca_is_not_believed(house: Second, tmp_path: Path) -> None:
    """Whoever answers there gets the password, and all that the fleet measures."""
    other = tmp_path / "other.pem"
    other.write_text(new_authority("other").roots_pem)
    error = refused(replace(house.login(), ca=other), NotTrusted)
    assert f"its certificate is not good by {other}: " in error.message
    assert "--ca FILE: who has issued it" == error.hint
    assert "by the system's CAs: " in refused(replace(house.login(), ca=None), NotTrusted).message


def test_a_broker_of_another_name_is_not_believed(house: Second) -> None:
    """Any certificate of that CA will do, whoever has it."""
    error = refused(house.login("localhost"), NotTrusted)
    assert "its certificate is another's: hostname mismatch" in error.message
    assert "connect to a name that it has" == error.hint


def test_a_broker_that_wants_a_certificate_is_said_to(house: Second) -> None:
    """It closes the connection, and does not say why."""
    error = refused(replace(house.login(), identity=None), Unreachable)
    assert "does it want a certificate? --cert FILE --key FILE" == error.hint


def test_a_wrong_password_is_no_lost_connection(house: Second) -> None:
    """It is tried for ever."""
    error = refused(replace(house.login(), password="battery"), Denied)
    assert "refuses: not authorized" in error.message
    assert "battery" not in error.message


def test_what_speaks_tls_is_not_spoken_to_in_the_open(house: Second) -> None:
    """A person who forgot --ca learns of a lost connection, and looks for it in the network."""
    error = refused(replace(house.login(), ca=None, identity=None, is_tls=False), Unreachable)
    assert "the connection has ended" in error.message


@pytest.mark.parametrize("content", ["", "no certificate"])
def test_files_that_cannot_be_used_are_named(house: Second, tmp_path: Path, content: str) -> None:
    """A path that was typed wrong is a traceback, or a broker that is away."""
    damaged = tmp_path / "damaged.pem"
    damaged.write_text(content)
    assert str(damaged) in refused(replace(house.login(), ca=damaged), FleetError).message
    identity = IdentityFiles(damaged, damaged)
    assert str(damaged) in refused(replace(house.login(), identity=identity), FleetError).message
    assert str(tmp_path / "none") in refused(replace(house.login(), ca=tmp_path / "none"), FleetError).message


def test_the_password_is_the_first_line(house: Second) -> None:
    """The line break that every editor leaves is a part of it."""
    assert "correct horse" == read_password(house.password)


def test_one_that_hangs_takes_no_more_than_its_bound(house: Second) -> None:
    """What the fleet measures piles up in memory, or the bridge waits for a dead link for ever."""
    with Relay(("127.0.0.1", house.port)) as relay, closing(opened(house.login(port=relay.port))) as connection:
        relay.freeze()
        taken: list[int] = []

        def endless() -> Iterator[Publication]:
            for number in count():
                taken.append(number)
                yield Publication("a", b"x")

        seconds = map(float, count())  # each look at the clock is a second later
        with pytest.raises(Unreachable, match="it takes nothing within 10 s"):
            connection.publish(endless(), lambda: next(seconds))
    assert _BOUND == len(taken)
