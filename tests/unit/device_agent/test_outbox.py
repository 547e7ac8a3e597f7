"""What waits to be published."""

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from device_agent.outbox import WINDOW, Class, Outbox, Outgoing


def message(handle: int, kind: Class = Class.TELEMETRY, size: int = 10) -> Outgoing:
    return Outgoing(handle, kind, "t", b"x" * (size - 1))


def filled(kinds: Iterable[Class], max_messages: int = 1_000) -> Outbox:
    outbox = Outbox(max_messages=max_messages)
    for handle, kind in enumerate(kinds):
        outbox = outbox.put(message(handle, kind))
    return outbox


def handles(messages: Iterable[Outgoing]) -> list[int]:
    return [each.handle for each in messages]


def test_a_higher_class_overtakes_and_order_within_a_class_stays() -> None:
    """An answer to a command would wait behind an hour of telemetry, or telemetry would arrive out of order."""
    outbox = filled([Class.TELEMETRY, Class.RESULT, Class.TELEMETRY, Class.PRESENCE, Class.RESULT])
    assert [3, 1, 4, 0, 2] == handles(outbox.waiting)


def test_the_oldest_telemetry_goes_first_and_is_counted() -> None:
    """A long outage would fill the memory of the device, or lose what was asked for, or lose in silence."""
    outbox = filled([Class.EVENT, Class.TELEMETRY, Class.TELEMETRY, Class.RESULT], max_messages=2)
    assert [3, 0] == handles(outbox.waiting)
    assert outbox.dropped == 2


def test_results_are_never_dropped() -> None:
    """The fleet would wait for the answer to a command that was executed."""
    outbox = filled([Class.RESULT] * 5, max_messages=2)
    assert 5 == len(outbox.waiting)


def test_the_bound_in_bytes_holds() -> None:
    """A thousand messages of 64 kB would be 64 MB."""
    outbox = Outbox(max_bytes=100)
    for handle in range(30):
        outbox = outbox.put(message(handle, size=30))
    assert (90, 27, [27, 28, 29]) == (outbox.waiting_bytes, outbox.dropped, handles(outbox.waiting))


def test_no_more_than_the_window_is_in_flight() -> None:
    """A broker that stops reading would move the queue into paho, where nothing is bounded."""
    outbox, taken = filled([Class.TELEMETRY] * 50).take()
    assert list(range(WINDOW)) == handles(taken)
    outbox, found = outbox.confirm(0)
    assert found is not None
    outbox, taken = outbox.take()
    assert [WINDOW] == handles(taken)


def test_what_was_in_flight_is_sent_again_before_what_waits() -> None:
    """A message that the broker never confirmed would be lost with the connection, or would be late."""
    outbox, _ = filled([Class.TELEMETRY] * (WINDOW + 2)).take()
    assert list(range(WINDOW + 2)) == handles(outbox.disconnected().waiting)


def test_presence_is_not_kept_over_a_connection() -> None:
    """An old `offline` would follow the new `online`."""
    outbox, _ = filled([Class.PRESENCE, Class.HELLO, Class.RESULT]).take()
    assert [2] == handles(outbox.disconnected().waiting)


@given(st.lists(st.sampled_from(["put", "take", "confirm", "lost"]), max_size=120), st.data())
def test_nothing_but_counted_drops_is_ever_lost(actions: list[str], data: st.DataObject) -> None:
    """A message would vanish on some path between waiting, in flight and confirmed."""
    outbox, put, confirmed = Outbox(max_messages=12, max_bytes=400), 0, 0
    for action in actions:
        if action == "put":
            kind = data.draw(st.sampled_from([Class.TELEMETRY, Class.EVENT]))
            outbox, put = outbox.put(message(put, kind, data.draw(st.integers(1, 60)))), put + 1
        elif action == "take":
            outbox, _ = outbox.take()
        elif action == "lost":
            outbox = outbox.disconnected()
        elif outbox.in_flight:
            outbox, found = outbox.confirm(data.draw(st.sampled_from(outbox.in_flight)).handle)
            confirmed += found is not None
        assert put == len(outbox.waiting) + len(outbox.in_flight) + confirmed + outbox.dropped
        assert outbox.waiting_bytes == sum(each.size_bytes for each in outbox.waiting) <= 400
        assert len(outbox.waiting) <= 12
        assert len(outbox.in_flight) <= WINDOW
