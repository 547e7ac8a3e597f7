"""The connection to the fleet, as the core decides it."""

import json
from datetime import timedelta

import pytest

from device_agent.backoff import STABLE_SECONDS
from device_agent.core.connection import CONNECT_SECONDS, FETCH_SECONDS, GOODBYE_SECONDS
from device_agent.core.effects import AnnounceReady, Connect, Disconnect, Exit, FetchConfig, Publish, Subscribe
from device_agent.core.events import (
    AppSaid,
    Arrived,
    ConfigFailed,
    ConfigFetched,
    Connected,
    Disconnected,
    Sent,
    Started,
    StopRequested,
    Subscribed,
    Tick,
)
from device_agent.core.report import describe
from device_agent.core.state import Online, Stopping, Waiting
from device_agent.core.step import next_deadline
from device_agent.failures import Cause, Failure
from device_agent.requests import PublishTelemetry
from fleet.messages import ControlMessage
from tests.unit.device_agent.story import FETCHED, GATEWAY, PUMP, SETTINGS, SPARE, START, Story, of_kind, published

LOST = Failure(Cause.LOST, str(GATEWAY), "closed")
REFUSED = Failure(Cause.REFUSED, str(GATEWAY), "sslv3 alert certificate revoked")


def test_a_known_broker_is_connected_to_without_the_enrollment_service() -> None:
    """No device would come back after a power cut while the enrollment service is away."""
    effects = Story().feed(Started())
    assert [GATEWAY] == [effect.broker for effect in of_kind(effects, Connect)]
    assert [] == of_kind(effects, FetchConfig)


def test_without_a_known_broker_the_service_is_asked() -> None:
    """A device that has just enrolled would not know where to go."""
    story = Story(brokers=())
    assert [FetchConfig()] == of_kind(story.feed(Started()), FetchConfig)
    assert [GATEWAY] == [effect.broker for effect in of_kind(story.feed(FETCHED), Connect)]


def test_ready_means_connected_and_subscribed() -> None:
    """Whoever waits for the ready line would send a command that nobody listens to."""
    story = Story()
    story.feed(Started())
    assert [Subscribe(1, ("devices/pump-07/down/#",))] == story.feed(Connected(1, False))
    effects = story.feed(Subscribed(1))
    assert [AnnounceReady()] == of_kind(effects, AnnounceReady)
    assert ["status", "hello"] == [topic for topic, _ in published(effects)]


def test_the_ready_line_is_printed_once() -> None:
    """A script that reads one line would block, or read a line it does not expect."""
    story = Story()
    story.go_online()
    story.feed(Disconnected(1, LOST))
    story.seconds += 10
    story.feed(Tick())
    assert [] == of_kind(story.go_online(), AnnounceReady)
    assert story.state.is_online


def test_the_will_and_the_farewell_say_offline_and_are_retained() -> None:
    """A device that is gone would look online for ever."""
    story = Story()
    [order] = of_kind(story.feed(Started()), Connect)
    assert (order.will.topic, order.will.qos, order.will.retain) == ("devices/pump-07/up/status", 1, True)
    assert ("offline", "connection lost") == _status(order.will.payload)
    story.go_online()
    [farewell] = of_kind(story.feed(StopRequested()), Publish)
    assert farewell.message.retain
    assert ("offline", "stopped") == _status(farewell.message.payload)


def test_the_disconnect_waits_for_the_farewell() -> None:
    """DISCONNECT discards the will, so a farewell that is lost leaves the device online for ever."""
    story = Story()
    story.go_online()
    [farewell] = of_kind(story.feed(StopRequested()), Publish)
    assert isinstance(story.state.link, Stopping)
    assert [Disconnect(1), Exit()] == story.feed(Sent(1, farewell.message.handle))


def test_the_agent_ends_even_if_nobody_takes_the_farewell() -> None:
    """`systemctl stop` would hang on a dead network."""
    story = Story()
    story.go_online()
    story.feed(StopRequested())
    story.seconds += GOODBYE_SECONDS
    assert [Disconnect(1), Exit()] == story.feed(Tick())


@pytest.mark.parametrize("events", [[], [Started()], [Started(), Disconnected(1, LOST)]])
def test_stop_ends_the_agent_from_every_state(events: list[Started | Disconnected]) -> None:
    """SIGTERM would be ignored while the broker is away."""
    story = Story()
    story.feed(*events)
    assert [Exit()] == of_kind(story.feed(StopRequested()), Exit)


def test_pauses_grow_until_a_connection_has_lasted() -> None:
    """Two machines with one identity get a CONNACK each time: they would fight at full speed for ever."""
    story, pauses = Story(chance=0.999), []
    story.feed(Started())
    for _ in range(4):
        story.go_online()
        story.seconds += 1
        story.feed(Disconnected(story.state.epoch, LOST))
        pauses.append(_pause(story))
        story.seconds += pauses[-1]
        story.feed(Tick())
    assert [1, 2, 4, 8] == [round(pause) for pause in pauses]
    story.go_online()
    story.seconds += STABLE_SECONDS
    story.feed(Disconnected(story.state.epoch, LOST))
    assert 1 == round(_pause(story))


def test_a_fight_over_one_identity_is_called_by_its_name() -> None:
    """The owner of a cloned SD card would look for a network fault."""
    story = Story()
    story.feed(Started())
    for _ in range(3):
        story.go_online()
        story.feed(Disconnected(story.state.epoch, LOST))
        story.seconds += 200
        story.feed(Tick())
    assert story.state.failure is not None
    assert story.state.failure.cause is Cause.SHORT_LIVED
    assert "copy of this identity" in describe(story.state, story.now()).hint
    story.feed(FETCHED)
    story.go_online()
    assert "copy of this identity" in describe(story.state, story.now()).hint, "and while it has the connection, too"
    story.seconds += STABLE_SECONDS
    assert "" == describe(story.state, story.now()).hint


def test_after_all_brokers_have_failed_the_service_is_asked_again() -> None:
    """A fleet whose broker moved would never find it."""
    story = Story(brokers=(GATEWAY, SPARE))
    story.feed(Started())
    story.feed(Disconnected(1, LOST))
    story.seconds += 200
    assert [SPARE] == [effect.broker for effect in of_kind(story.feed(Tick()), Connect)]
    story.feed(Disconnected(2, LOST))
    story.seconds += 200
    assert [FetchConfig()] == story.feed(Tick())
    assert [SPARE] == [effect.broker for effect in of_kind(story.feed(ConfigFetched((SPARE,))), Connect)]


def test_with_the_service_away_too_the_known_brokers_are_tried_on() -> None:
    """A device would stay offline because of a service that it does not need."""
    story = Story()
    story.feed(Started(), Disconnected(1, LOST))
    story.seconds += 200
    story.feed(Tick())
    effects = story.feed(ConfigFailed(Failure(Cause.UNREACHABLE, "gateway.local:8443")))
    assert [GATEWAY] == [effect.broker for effect in of_kind(effects, Connect)]


def test_an_empty_list_of_brokers_is_a_failure_with_words() -> None:
    """The agent would divide by zero, or be silent."""
    story = Story(brokers=())
    story.feed(Started(), ConfigFetched(()))
    assert isinstance(story.state.link, Waiting)
    assert "names no broker" in describe(story.state, story.now()).message


@pytest.mark.parametrize(("events", "seconds"), [([], CONNECT_SECONDS), ([Connected(1, False)], CONNECT_SECONDS)])
def test_a_connection_that_hangs_is_given_up(events: list[Connected], seconds: float) -> None:
    """A thread stuck in the network would keep the device offline for ever."""
    story = Story()
    story.feed(Started(), *events)
    story.seconds += seconds
    assert [Disconnect(1)] == of_kind(story.feed(Tick()), Disconnect)
    assert isinstance(story.state.link, Waiting)


def test_a_request_for_the_configuration_that_hangs_is_given_up() -> None:
    """A service that accepts and is silent would keep the device offline for ever."""
    story = Story(brokers=())
    story.feed(Started())
    story.seconds += FETCH_SECONDS
    story.feed(Tick())
    assert isinstance(story.state.link, Waiting)


def test_what_an_earlier_connection_says_changes_nothing() -> None:
    """A late word of the last connection would end the new one, or confirm what it never sent."""
    story = Story()
    story.go_online()
    story.feed(Disconnected(1, LOST))
    story.seconds += 200
    story.feed(Tick())
    story.feed(Connected(2, True), Subscribed(2))
    before = story.state
    for stale in (Connected(1, True), Subscribed(1), Disconnected(1, LOST), Sent(1, before.outbox.in_flight[0].handle)):
        assert [] == story.feed(stale)
        assert before == story.state


def test_telemetry_of_an_outage_is_sent_afterwards() -> None:
    """Measurements would be lost whenever the network is."""
    story = Story()
    story.application()
    story.feed(AppSaid(1, PublishTelemetry("load", {"l1": 1}, 0)))
    effects = story.go_online()
    assert ["status", "hello", "commands", "telemetry/load"] == [topic for topic, _ in published(effects)]
    assert {"l1": 1} == json.loads(published(effects)[3][1])["data"]


def test_a_refusal_by_an_expired_certificate_is_called_by_its_name() -> None:
    """An admin would look for a revocation that never was."""
    story = Story(seconds=timedelta(days=91).total_seconds())
    story.feed(Started(), Disconnected(1, REFUSED))
    assert "has expired" in describe(story.state, story.now()).message


def test_a_refused_device_says_what_may_be_the_matter_and_tries_on() -> None:
    """The owner of a revoked device would not know whom to ask; a suspended one would never come back."""
    story = Story()
    story.feed(Started(), Disconnected(1, REFUSED))
    said = describe(story.state, story.now())
    assert "revoked, suspended or unknown" in said.message
    assert f"enroll device show {PUMP}" in said.hint
    assert next_deadline(story.state) is not None


def test_every_message_has_a_number_of_its_own() -> None:
    """Receivers de-duplicate on (id, boot, seq): a second message with the same number would be thrown away."""
    story = Story()
    story.application()
    story.feed(Started(), *[AppSaid(1, PublishTelemetry("load", n, 1)) for n in range(5)])
    story.go_online()
    story.feed(Disconnected(1, LOST))
    story.seconds += 200
    story.feed(Tick())
    story.go_online()
    wills = [json.loads(effect.will.payload) for effect in of_kind(story.effects, Connect)]
    sent = {json.loads(payload)["seq"]: payload for _, payload in published(story.effects)}
    numbers = [will["seq"] for will in wills] + list(sent)
    assert len(numbers) == len(set(numbers)) == 2 + 5 + 2 * 3
    assert {SETTINGS.boot} == {json.loads(payload)["boot"] for payload in sent.values()}


def _status(payload: bytes) -> tuple[str, str]:
    fields = json.loads(payload)
    return fields["status"], fields["reason"]


def _pause(story: Story) -> float:
    link = story.state.link
    assert isinstance(link, Waiting)
    return link.until - story.seconds


def test_the_state_names_the_broker_it_is_connected_to() -> None:
    """Somebody who asks for the status would not learn where the device is connected."""
    story = Story()
    story.go_online()
    assert isinstance(story.state.link, Online)
    assert "connected to gateway.local:8883" in describe(story.state, story.now()).message


def test_the_fleet_can_spread_its_return() -> None:
    """Ten thousand devices would come back within the second in which a broker restarts."""
    story = Story(chance=0.5)
    story.go_online()
    story.feed(_control(300))
    story.feed(Disconnected(1, LOST))
    assert 150 == _pause(story)
    story.seconds += 150
    story.feed(Tick(), FETCHED)
    story.feed(Disconnected(2, LOST))
    assert 1 == _pause(story), "who failed once is spread already"


@pytest.mark.parametrize("seconds", [1e9, 3_601])
def test_no_word_of_the_fleet_keeps_a_device_away_for_more_than_an_hour(seconds: float) -> None:
    """One mistyped number would take every device offline for years."""
    story = Story(chance=0.999)
    story.go_online()
    story.feed(_control(seconds))
    story.feed(Disconnected(1, LOST))
    assert _pause(story) < 3_600


@pytest.mark.parametrize("payload", [b"{}", b"x", b'{"v":1,"id":"pump-08","ts":"2026-11-21T08:00:00Z"}'])
def test_a_control_that_is_none_is_set_aside(payload: bytes) -> None:
    """It would come again for ever, or end the agent."""
    story = Story()
    story.go_online()
    story.feed(Arrived(1, 9, "devices/pump-07/down/control", payload))
    assert (1, 0.0) == (story.state.set_aside, story.state.spread_seconds)


def _control(seconds: float) -> Arrived:
    return Arrived(1, 9, "devices/pump-07/down/control", ControlMessage(PUMP, START, seconds).encode())
