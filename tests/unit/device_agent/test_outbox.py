"""What waits to be published."""

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from device_agent.outbox import WINDOW, Class, Losses, Outbox, Outgoing


def message(handle: int, kind: Class = Class.TELEMETRY, size: int = 10) -> Outgoing:
    return Outgoing(handle, kind, chr(handle % 64), b"x" * (size - 1))


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


def test_a_newer_word_on_a_command_overtakes_progress_that_waits() -> None:
    """Firmware that reports progress in a loop would fill the memory while the broker is away."""
    outbox = Outbox()
    for handle, command_id in enumerate(["", "", "final", ""]):
        outbox = outbox.put(Outgoing(handle, Class.RESULT, "results/c1", b"{}", command_id=command_id))
    assert [2, 3] == handles(outbox.waiting)
    assert 2 * len("results/c1{}") == outbox.waiting_bytes


def test_what_was_read_from_disk_comes_before_what_is_not_there_yet() -> None:
    """Measurements of one stream would arrive out of order after an outage."""
    outbox = filled([Class.TELEMETRY, Class.ALARM, Class.RESULT])
    read = [Outgoing(10 + row, Class.TELEMETRY, "t", b"x", row=row) for row in (1, 2)]
    assert [1, 2, 11, 12, 0] == handles(outbox.put_read(read).waiting)


def test_what_is_not_on_disk_waits_for_older_messages_that_are() -> None:
    """A fresh measurement would overtake a week of older ones."""
    outbox = filled([Class.TELEMETRY, Class.RESULT])
    outbox, taken = outbox.take(held=[Class.TELEMETRY])
    assert [1] == handles(taken)
    outbox, taken = outbox.put_read([Outgoing(9, Class.TELEMETRY, "t", b"x", row=1)]).take(held=[Class.TELEMETRY])
    assert [9] == handles(taken)
    assert [0] == handles(outbox.take()[1])


def test_what_is_on_disk_leaves_the_memory_unless_it_is_in_flight() -> None:
    """A week offline would fill the memory, or a message would be sent twice on one connection."""
    outbox, _ = filled([Class.TELEMETRY] * 2).take()
    outbox = outbox.put(message(2)).put(message(3)).written({1: 1, 2: 2})
    assert ([(0, 0), (1, 1)], [3]) == ([(m.handle, m.row) for m in outbox.in_flight], handles(outbox.waiting))
    assert 2 == outbox.unspooled
    assert [0, 1] == handles(outbox.disconnected().waiting[:2])
    assert 3 == outbox.without_rows().unspooled


def test_the_oldest_telemetry_goes_first_and_is_counted() -> None:
    """A long outage would fill the memory of the device, or lose what was asked for, or lose in silence."""
    outbox = filled([Class.ALARM, Class.TELEMETRY, Class.TELEMETRY, Class.RESULT], max_messages=2)
    assert [0, 3] == handles(outbox.waiting)
    assert Losses(telemetry=2) == outbox.dropped
    outbox = outbox.put(message(4, Class.ALARM))
    assert [4, 3] == handles(outbox.waiting)
    assert Losses(telemetry=2, alarms=1) == outbox.dropped


def test_results_are_never_dropped() -> None:
    """The fleet would wait for the answer to a command that was executed."""
    outbox = filled([Class.RESULT] * 5, max_messages=2)
    assert 5 == len(outbox.waiting)


def test_the_bound_in_bytes_holds() -> None:
    """A thousand messages of 64 kB would be 64 MB."""
    outbox = Outbox(max_bytes=100)
    for handle in range(30):
        outbox = outbox.put(message(handle, size=30))
    assert (90, 27, [27, 28, 29]) == (outbox.waiting_bytes, outbox.dropped.total, handles(outbox.waiting))


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
            kind = data.draw(st.sampled_from([Class.TELEMETRY, Class.ALARM]))
            outbox, put = outbox.put(message(put, kind, data.draw(st.integers(1, 60)))), put + 1
        elif action == "take":
            outbox, _ = outbox.take()
        elif action == "lost":
            outbox = outbox.disconnected()
        elif outbox.in_flight:
            outbox, found = outbox.confirm(data.draw(st.sampled_from(outbox.in_flight)).handle)
            confirmed += found is not None
        assert put == len(outbox.waiting) + len(outbox.in_flight) + confirmed + outbox.dropped.total
        assert outbox.waiting_bytes == sum(each.size_bytes for each in outbox.waiting) <= 400
        assert len(outbox.waiting) <= 12
        assert len(outbox.in_flight) <= WINDOW
