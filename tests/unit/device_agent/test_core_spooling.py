"""What goes to disk and comes back, as the core decides it; the disk is the real one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from device_agent.core.connection import GOODBYE_SECONDS
from device_agent.core.effects import Log, OpenSpool, Publish, ReadSpool, SaveJournal, WriteSpool
from device_agent.core.events import (
    AppJoined,
    AppSaid,
    Connected,
    Disconnected,
    Sent,
    Started,
    StopRequested,
    Subscribed,
    Tick,
)
from device_agent.core.report import status_line
from device_agent.core.shelf import Bounds
from device_agent.core.spooling import (
    FLUSH_SECONDS,
    GROUP_MESSAGES,
    REPORT_SECONDS,
    RETRY_SECONDS,
    WRITTEN_BYTES_A_SECOND,
)
from device_agent.core.step import next_deadline
from device_agent.failures import Cause, Failure
from device_agent.journal import Phase
from device_agent.outbox import MAX_MESSAGES, WINDOW
from device_agent.requests import PublishEvent, PublishTelemetry, ReportResult
from fleet.messages import ResultState
from tests.unit.device_agent.story import FETCHED, SETTINGS, Story, of_kind, published

LOST = Failure(Cause.LOST)
FULL = "database or disk is full"


def measure(story: Story, count: int = 1, size: int = 10, qos: int = 0) -> list[object]:
    effects: list[object] = []
    for number in range(count):
        effects += story.feed(AppSaid(1, PublishTelemetry("load", {"n": number, "x": "x" * size}, qos)))
    return effects


def offline(bounds: Bounds | None = None) -> Story:
    """An agent with an application and no broker."""
    story = Story(settings=replace(SETTINGS, bounds=bounds or Bounds()))
    story.feed(Started(), AppJoined(1), Disconnected(1, LOST))
    return story


def wait(story: Story, seconds: float) -> list[object]:
    story.seconds += seconds
    return list(story.feed(Tick()))


def come_back(story: Story) -> None:
    """The pause is over, and a broker is there."""
    wait(story, 200)
    story.feed(FETCHED)
    story.go_online()
    assert story.state.is_online


def writes(effects: Sequence[object]) -> list[WriteSpool]:
    return [effect for effect in effects if isinstance(effect, WriteSpool)]


def test_what_is_confirmed_in_time_never_touches_the_disk() -> None:
    """SD cards wear: a device that is connected would write every message."""
    story = Story()
    story.go_online()
    story.feed(AppJoined(1))
    for _ in range(100):
        measure(story, qos=1)
        story.seconds += 1
        story.confirm_all()
        story.feed(Tick())
    assert [] == of_kind(story.effects, WriteSpool)
    assert not story.spool.path.exists()


def test_what_is_unconfirmed_for_2_seconds_goes_to_disk() -> None:
    """A half-open connection would take messages with it when the power goes."""
    assert 2.0 == FLUSH_SECONDS
    story = Story()
    story.go_online()
    story.feed(AppJoined(1))
    measure(story, qos=1)
    assert story.seconds + FLUSH_SECONDS == next_deadline(story.state)
    assert [] == writes(wait(story, FLUSH_SECONDS - 0.1))
    [order] = writes(wait(story, 0.1))
    assert [1] == [row.number for row in order.rows]
    assert 1 == len(story.state.outbox.in_flight), "it is still on its way"


def test_offline_messages_are_written_in_groups() -> None:
    """One transaction a message writes twenty times as much."""
    story = offline()
    assert [GROUP_MESSAGES] == [len(order.rows) for order in writes(measure(story, GROUP_MESSAGES + 5))]
    assert [5] == [len(order.rows) for order in writes(wait(story, FLUSH_SECONDS))]
    assert () == story.state.outbox.waiting, "the memory is free again"
    assert [] == writes(wait(story, 5))


def test_large_messages_are_written_before_the_memory_is_full() -> None:
    """Fifty messages of 60 kB do not fit into the memory: some would be dropped beside an empty disk."""
    story = offline()
    measure(story, 40, size=60_000)
    assert 0 == story.state.spool.dropped.total
    assert story.state.outbox.waiting_bytes <= 256 * 1024


def test_an_outage_comes_back_page_by_page_and_with_qos_1() -> None:
    """It would fill the memory, or vanish in a half-open connection."""
    story = offline()
    measure(story, 300)
    wait(story, FLUSH_SECONDS)
    before = len(story.effects)
    come_back(story)
    sent = of_kind(story.effects[before:], Publish)
    telemetry = [each.message for each in sent if "telemetry" in each.message.topic]
    assert list(range(300)) == [json.loads(each.payload)["data"]["n"] for each in telemetry]
    assert {1} == {each.qos for each in telemetry}
    assert max(len(order.rows) for order in of_kind(story.effects, WriteSpool)) <= GROUP_MESSAGES
    assert len(of_kind(story.effects, ReadSpool)) >= 6
    wait(story, 1)
    assert 0 == status_line(story.state, story.now())["spool"]["messages"]


def test_new_messages_wait_for_the_old_ones() -> None:
    """A stream would arrive out of order after an outage."""
    story = offline()
    measure(story, 100)
    wait(story, 200)
    story.feed(FETCHED)
    story.feed(Connected(story.state.epoch, True), Subscribed(story.state.epoch))
    before = len(story.effects)
    for _ in range(3):
        story.feed(AppSaid(1, PublishTelemetry("load", {"n": 1_000}, 1)))
    story.confirm_all()
    order = [json.loads(payload)["data"]["n"] for topic, payload in published(story.effects[before:])]
    assert 1_000 == order[-1]
    assert sorted(order) == order


def test_a_disk_that_fails_costs_only_what_the_memory_cannot_hold() -> None:
    """A full card would end the agent, fill its memory, or the log."""
    story = offline()
    story.disk_error = FULL
    measure(story, 3 * MAX_MESSAGES)
    assert MAX_MESSAGES == len(story.state.outbox.waiting)
    assert 2 * MAX_MESSAGES == status_line(story.state, story.now())["dropped_messages"]
    assert FULL == status_line(story.state, story.now())["spool"]["error"]
    wait(story, 10)
    assert 1 == len([log for log in of_kind(story.effects, Log) if log.name == "spool.failed"])
    assert [] == writes(wait(story, 1))
    story.disk_error = ""
    assert MAX_MESSAGES == sum(len(order.rows) for order in writes(wait(story, RETRY_SECONDS)))
    assert "" == status_line(story.state, story.now())["spool"]["error"]
    assert "spool.works" in [log.name for log in of_kind(story.effects, Log)]


def test_a_spool_that_cannot_be_opened_does_not_keep_the_device_offline() -> None:
    """A broken card would take the connection with it, which does not need it."""
    story = Story()
    story.disk_error = "unable to open database file"
    story.go_online()
    story.feed(AppJoined(1))
    measure(story, 3, qos=1)
    assert 3 == len(story.state.outbox.in_flight)
    story.disk_error = ""
    assert [OpenSpool()] == [effect for effect in wait(story, RETRY_SECONDS) if isinstance(effect, OpenSpool)]
    assert 3 == len(writes(list(story.effects))[0].rows)


def test_the_oldest_telemetry_is_dropped_before_any_alarm() -> None:
    """What matters most would be pushed out by what comes every second."""
    story = offline(Bounds(max_bytes=20_000, max_alarm_bytes=10_000))
    story.feed(*[AppSaid(1, PublishEvent("door", {"n": number})) for number in range(20)])
    measure(story, 300)
    wait(story, FLUSH_SECONDS)
    assert story.state.spool.dropped.telemetry > 100
    assert 0 == story.state.spool.dropped.alarms
    assert story.state.spool.size_bytes <= 20_000
    come_back(story)
    sent = published(story.effects)
    assert list(range(20)) == [json.loads(payload)["data"]["n"] for topic, payload in sent if topic == "events/door"]
    kept = [json.loads(payload)["data"]["n"] for topic, payload in sent if topic == "telemetry/load"]
    assert list(range(300 - len(kept), 300)) == kept
    assert 300 - len(kept) == story.state.spool.dropped.telemetry


def test_a_flood_of_alarms_leaves_room_for_telemetry() -> None:
    """One door contact that bounces would cost a week of measurements."""
    story = offline(Bounds(max_bytes=40_000, max_alarm_bytes=10_000))
    measure(story, 50)
    story.feed(*[AppSaid(1, PublishEvent("door", number)) for number in range(300)])
    wait(story, FLUSH_SECONDS)
    assert 0 == story.state.spool.dropped.telemetry
    assert story.state.spool.dropped.alarms > 100
    assert story.state.spool.alarms.size_bytes <= 10_000


def test_what_is_too_old_is_dropped_by_a_clock_that_cannot_jump() -> None:
    """A week of measurements would be thrown away the moment a device without a clock learns what year it is."""
    story = offline(Bounds(max_telemetry_seconds=86_400))
    measure(story)
    wait(story, 3_000)
    assert 0 == story.state.spool.dropped.total
    for _ in range(30):
        wait(story, 3_600)
    assert 1 == story.state.spool.dropped.telemetry


def test_losses_are_told_to_the_fleet_the_log_and_the_status() -> None:
    """A gap in the measurements would look like a device that stood still."""
    story = offline(Bounds(max_bytes=5_000))
    measure(story, 100)
    come_back(story)
    lost = story.state.spool.dropped.telemetry
    [payload] = [payload for topic, payload in published(story.effects) if topic == "events/messages-dropped"]
    assert {"telemetry": lost, "alarms": 0} == json.loads(payload)["data"]
    assert lost == status_line(story.state, story.now())["dropped_messages"]
    logged = [log.fields for log in of_kind(story.effects, Log) if log.name == "messages.dropped"]
    assert ("telemetry", lost) in logged[-1]
    for _ in range(3):
        wait(story, REPORT_SECONDS)
        story.confirm_all()
    assert 1 == len([topic for topic, _ in published(story.effects) if topic == "events/messages-dropped"])


def test_a_damaged_spool_is_replaced_and_what_is_in_memory_is_written_anew() -> None:
    """What the agent still holds would be lost with the file."""
    story = offline()
    measure(story, 60)
    story.spool.close()
    story.spool.path.write_bytes(b"not a database at all" * 1_000)
    come_back(story)
    assert "spool.damaged" in [log.name for log in of_kind(story.effects, Log)]
    assert 50 == story.state.spool.dropped.telemetry
    measure(story, 2, qos=1)
    assert len([topic for topic, _ in published(story.effects) if topic == "telemetry/load"]) == 12
    problem = status_line(story.state, story.now())["spool"]["problem"]
    assert str(story.spool.damaged_path) in problem


def test_stop_writes_all_that_is_not_confirmed() -> None:
    """`systemctl restart` would lose what the firmware has just measured."""
    story = Story()
    story.go_online()
    story.feed(AppJoined(1))
    measure(story, WINDOW + 5, qos=1)
    effects = [*story.feed(StopRequested()), *wait(story, GOODBYE_SECONDS)]
    assert WINDOW + 5 == sum(len(order.rows) for order in writes(effects))


def test_a_confirmed_result_is_on_disk_within_a_second() -> None:
    """A restart would report every command of the last days once more."""
    story = Story()
    story.go_online()
    story.application("echo")
    story.command("c1")
    story.feed(AppSaid(1, ReportResult("c1", ResultState.DONE, None, "")))
    story.confirm_all()
    before = len(story.effects)
    wait(story, 1)
    [saved] = of_kind(story.effects[before:], SaveJournal)
    assert [True] == [entry.is_confirmed for entry in saved.journal.of(Phase.FINAL)]
    assert [] == of_kind(story.feed(Sent(1, 99)), SaveJournal)


def test_a_flood_does_not_wear_out_the_card() -> None:
    """One firmware in a loop would write gigabytes an hour while the broker is away."""
    story = offline()
    for _ in range(100):
        measure(story, 20, size=30_000)
        wait(story, 0.1)
    written = sum(row.message.disk_bytes for order in writes(story.effects) for row in order.rows)
    assert 8 << 20 <= written <= (8 << 20) + 10 * WRITTEN_BYTES_A_SECOND + (1 << 20)
    assert story.state.spool.dropped.telemetry > 1_000
    deadline = next_deadline(story.state)
    assert deadline is not None
    assert deadline > story.seconds, "it would spin"
    wait(story, 60)
    assert () == story.state.outbox.waiting
