"""The soak's account finds what a broker may do wrong: otherwise a green soak would mean nothing."""

from __future__ import annotations

import pytest

from soak.ledger import ALL_UP, Key, Kind, Ledger, down

TOPIC = "devices/pump-1/up/telemetry/x"
READER = "archive:all"


class Story:
    """One publisher and one reader."""

    def __init__(self, granted_qos: int = 2, *, is_durable: bool = True) -> None:
        self.ledger = Ledger(READER, frozenset({"hostile-1"}))
        self.subscription = self.ledger.subscribed(READER, ALL_UP, granted_qos, is_durable=is_durable)

    def sent(self, qos: int = 1) -> tuple[Key, bytes]:
        key, payload = self.ledger.write("pump-1", TOPIC, qos, Kind.DATA, b"padding|")
        self.ledger.sent(key)
        return key, payload

    def acked(self, qos: int = 1) -> tuple[Key, bytes]:
        key, payload = self.sent(qos)
        self.ledger.acked(key)
        return key, payload

    def came(self, payload: bytes, qos: int = 1, topic: str = TOPIC, first: int = 0x30) -> None:
        self.ledger.delivered(READER, {ALL_UP}, first | qos << 1, topic, payload)


def test_what_was_acknowledged_and_did_not_come_is_missing() -> None:
    """A broker could lose messages."""
    story = Story()
    (key, payload), (unacknowledged, _) = story.acked(), story.sent()
    assert [(READER, key)] == story.ledger.missing()
    assert [unacknowledged] == story.ledger.unacknowledged(lambda _: True)
    story.came(payload)
    assert [] == story.ledger.missing()
    assert 0 == story.ledger.fault_count


@pytest.mark.parametrize("is_durable", [True, False])
def test_a_clean_session_that_ended_is_owed_nothing(is_durable: bool) -> None:
    """What was lost with a connection would be called lost; or what waits for a session would not."""
    story = Story(is_durable=is_durable)
    story.acked()
    story.subscription.end = story.subscription.start + 1000
    assert int(is_durable) == len(story.ledger.missing())


def test_what_was_sent_before_the_subscription_is_not_owed() -> None:
    """The soak would fail for nothing."""
    ledger = Ledger(READER, frozenset())
    key, _ = ledger.write("pump-1", TOPIC, 1, Kind.DATA, b"")
    ledger.sent(key)
    ledger.subscribed(READER, ALL_UP, 1, is_durable=True).start += 1
    ledger.acked(key)
    assert [] == ledger.missing()


@pytest.mark.parametrize(("qos", "faults"), [(0, 1), (1, 0), (2, 1)])
def test_only_qos_1_may_come_twice(qos: int, faults: int) -> None:
    """Exactly once would be at least once."""
    story = Story()
    _, payload = story.acked(qos)
    story.came(payload, qos)
    story.came(payload, qos)
    assert faults == story.ledger.fault_count


def test_order_is_kept() -> None:
    """A broker could deliver an old measurement last."""
    story = Story()
    (_, first), (_, second) = story.acked(), story.acked()
    story.came(second)
    story.came(first)
    assert 1 == story.ledger.fault_count


def test_what_was_never_asked_for_is_a_fault() -> None:
    """A device could read another's messages."""
    story = Story()
    _, payload = story.acked()
    story.ledger.delivered("pump-2", {down("pump-2")}, 0x30, TOPIC, payload)
    assert 1 == story.ledger.fault_count


def test_what_nobody_published_is_a_fault_unless_it_is_a_strangers_own() -> None:
    """A hostile device could speak for another."""
    story = Story()
    story.came(b"forged", topic="devices/hostile-1/up/x")
    assert 0 == story.ledger.fault_count
    story.came(b"forged")
    assert 1 == story.ledger.fault_count


def test_a_will_that_nobody_may_see_is_a_fault() -> None:
    """A revoked device would have the last word."""
    story = Story()
    status = "devices/pump-1/up/status"
    key, payload = story.ledger.write("pump-1", status, 1, Kind.WILL, b"")
    story.ledger.void(key)
    story.came(payload, topic=status)
    assert 1 == story.ledger.fault_count


def test_a_will_is_owed_once_its_connection_broke() -> None:
    """A device that died would seem alive."""
    story = Story()
    key, _ = story.ledger.write("pump-1", "devices/pump-1/up/status", 1, Kind.WILL, b"")
    assert [] == story.ledger.missing()
    story.ledger.due(key, 5)
    assert [(READER, key)] == story.ledger.missing()
