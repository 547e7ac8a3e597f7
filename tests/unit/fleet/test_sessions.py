"""What a broker says of its sessions."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.engine import Reason
from fleet import sessions
from fleet.identity import DISPATCH, DeviceId, Principal, Role, Serial
from fleet.messages import InvalidMessage
from fleet.policy import DEFAULT_POLICY, Action
from fleet.sessions import Alive, Announcement, Began, Changes, Ended, Ending, Page
from tests.unit.fleet.strategies import principals

_numbers = st.integers(0, 2**40)
_boots = st.from_regex(r"[0-9a-f]{1,16}", fullmatch=True)
_clients = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
_times = st.integers(0, 10**12).map(lambda ms: datetime(2026, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms))
_began = st.builds(
    Began, _numbers, _clients, principals, st.just(Serial("ab")), st.sampled_from(["10.0.0.7:1", "[::1]:9"]), _times
)
_ended = st.builds(Ended, _numbers, _clients, _numbers, st.sampled_from(Ending), _times)
_changes = st.lists(_began | _ended, max_size=4).map(tuple)


def _reread_changes(said: Changes) -> Announcement:
    lines = map(sessions.encode_change, said.changes)
    return sessions.decode(sessions.CHANGES, sessions.encode_changes(said.boot, said.first, said.last, lines))


@given(_boots, _numbers, _numbers, _changes)
def test_changes_survive(boot: str, first: int, last: int, changes: tuple[Began | Ended, ...]) -> None:
    """What happened is told otherwise than it was."""
    said = Changes(boot, first, last, changes)
    assert said == _reread_changes(said)


@given(_boots, _numbers, st.integers(1, 70_000), st.lists(_began, max_size=3), st.lists(_ended, max_size=3))
def test_a_list_survives(boot: str, seq: int, buckets: int, began: list[Began], ended: list[Ended]) -> None:
    """Whoever is there is taken for somebody else, or for nobody."""
    buckets = min(buckets, sessions.MAX_BUCKETS)
    payload = sessions.encode_page(boot, seq, map(sessions.encode_change, began), map(sessions.encode_change, ended))
    page = sessions.decode(sessions.page_topic(buckets, buckets - 1), payload)
    assert Page(boot, seq, buckets, buckets - 1, tuple(began), tuple(ended)) == page


@given(_boots, _numbers, st.integers(0, sessions.MAX_UPTIME_SECONDS), st.booleans())
def test_that_it_is_alive_survives(boot: str, seq: int, uptime: int, is_stopping: bool) -> None:
    """A broker that says goodbye is taken for one that was killed."""
    alive = Alive(boot, seq, float(uptime), is_stopping)
    assert alive == sessions.decode(sessions.BROKER, sessions.encode_alive(alive))


@pytest.mark.parametrize("uptime", [b"-1", b"1e12", b"1e308", b"true", b'"7"', b"null", b"315360001"])
def test_no_broker_runs_for_ever(uptime: bytes) -> None:
    """When it began is before all time, and dispatch fails at each attempt to say who left since."""
    with pytest.raises(InvalidMessage):
        sessions.decode(sessions.BROKER, b'{"v":1,"boot":"a","seq":1,"uptime":' + uptime + b"}")


@given(st.binary(max_size=40) | st.sampled_from([b'{"v":1,"boot":"a","seq":1}', b'{"v":true,"boot":"a"}', b"[]"]))
def test_anything_else_is_refused_as_a_message(payload: bytes) -> None:
    """One broken message ends dispatch."""
    for topic in (sessions.BROKER, sessions.CHANGES, sessions.page_topic(1, 0)):
        with pytest.raises(InvalidMessage):
            sessions.decode(topic, payload)


@pytest.mark.parametrize(
    "change",
    [
        b'{"n":1,"id":"A+","role":"device","serial":"a","address":"x","at":"2026-01-01T00:00:00Z"}',
        b'{"n":1,"id":"a","role":"king","serial":"a","address":"x","at":"2026-01-01T00:00:00Z"}',
        b'{"n":1,"id":"a","role":"device","serial":"-","address":"x","at":"2026-01-01T00:00:00Z"}',
        b'{"n":1,"id":"a","role":"device","serial":"a","address":7,"at":"2026-01-01T00:00:00Z"}',
        b'{"n":-1,"client":"a","began":1,"reason":"keepalive","at":"2026-01-01T00:00:00Z"}',
        b'{"n":1,"client":"a","began":1,"reason":["keepalive"],"at":"2026-01-01T00:00:00Z"}',
        b'{"n":1,"client":"a","began":1,"reason":"keepalive","at":"noon"}',
        b'{"n":1,"client":"","began":1,"reason":"keepalive","at":"2026-01-01T00:00:00Z"}',
        b"7",
    ],
)
def test_a_change_that_is_none_is_refused(change: bytes) -> None:
    """What is not within the grammar gets into the registry, or ends dispatch."""
    with pytest.raises(InvalidMessage):
        sessions.decode(sessions.CHANGES, sessions.encode_changes("a", 1, 1, [change]))


@pytest.mark.parametrize("place", ["list/0/0", "list/4/4", "list/04/1", "list/70000/1", "list/4", "else", "list/4/1/x"])
def test_a_list_has_its_place(place: str) -> None:
    """A list of the wrong bucket would say of everybody that they are gone."""
    with pytest.raises(InvalidMessage):
        sessions.decode(f"{sessions.ROOT}/{place}", sessions.encode_page("a", 1, (), ()))


def test_every_reason_of_the_broker_to_end_a_session_has_its_word() -> None:
    """The history says other than the broker's log and metrics."""
    before_a_session = {
        Reason.HANDSHAKE, Reason.TOO_SLOW, Reason.TOO_MANY_CONNECTIONS, Reason.TOO_MANY_CONNECTS, Reason.RESUMED,
        Reason.WRONG_ISSUER, Reason.BAD_NAME, Reason.NOT_ADMITTED, Reason.STALE_DIRECTORY, Reason.FOREIGN_CLIENT_ID,
        Reason.NO_CLIENT_ID, Reason.WILL_DENIED, Reason.WRONG_VERSION,
    }  # fmt: skip
    said_by_nobody = {Ending.OTHER, Ending.RESTARTED, Ending.UNHEARD, Ending.NO_SESSION}
    assert {each.value for each in set(Reason) - before_a_session} == {
        each.value for each in set(Ending) - said_by_nobody
    }


def test_a_word_that_nobody_knows_is_some_reason() -> None:
    """A newer broker's sessions would seem never to end."""
    line = b'{"n":2,"client":"a","began":1,"reason":"asteroid","at":"2026-01-01T00:00:00Z"}'
    said = sessions.decode(sessions.CHANGES, sessions.encode_changes("a", 2, 2, [line]))
    assert isinstance(said, Changes)
    assert [Ending.OTHER] == [each.ending for each in said.changes if isinstance(each, Ended)]


def test_every_reason_is_explained_to_operators() -> None:
    """The history has a word that is nowhere said what it means."""
    text = (Path(__file__).parents[3] / "docs" / "operations.md").read_text(encoding="utf-8")
    table = text.partition("| reason | what happened |\n")[2].partition("\n\n")[0]
    words = {word for line in table.splitlines()[1:] for word in re.findall(r"`([a-z-]+)`", line.split("|")[1])}
    assert {each.value for each in Ending} == words


def test_only_who_commands_may_read_who_is_there() -> None:
    """A device, or any service, would see where all others are."""
    may_read = {
        str(who)
        for who in (*(Principal(role, DeviceId("a")) for role in Role), DISPATCH)
        if DEFAULT_POLICY.decide(who, Action.SUBSCRIBE, sessions.ALL).allowed
    }
    assert {"operator/a", "service/dispatch"} == may_read
