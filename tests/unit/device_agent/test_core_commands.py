"""What becomes of a command, as the core decides it."""

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from device_agent.clock import Basis, Moment, Reading
from device_agent.core.commands import LONG_OVER, on_online
from device_agent.core.connection import APPLICATION_GRACE_SECONDS
from device_agent.core.effects import Acknowledge, Effect, Publish, SaveJournal, Tell
from device_agent.core.events import AppLeft, AppSaid, Arrived, Disconnected, Sent, Started, Tick
from device_agent.failures import Cause, Failure
from device_agent.journal import MAX_UNFINISHED, REMEMBERED, Journal, decode_journal, lost
from device_agent.requests import Register, ReportResult
from fleet.messages import CommandMessage, ResultState
from fleet.topics import Command
from tests.unit.device_agent.story import PUMP, START, Story, of_kind, published

LOST = Failure(Cause.LOST)


def online(*commands: str, journal: Journal | None = None) -> Story:
    """A story that is connected, with an application for `commands`."""
    story = Story(journal=journal or Journal())
    if commands:
        story.application(*commands)
    story.go_online()
    return story


def results(effects: list[Effect], command_id: str) -> list[tuple[str, str]]:
    """State and error of each result published for a command."""
    return [
        (json.loads(payload)["state"], json.loads(payload)["error"])
        for topic, payload in published(effects)
        if topic == f"results/{command_id}"
    ]


def told(effects: list[Effect]) -> list[str]:
    """The ids of the commands that applications were told of."""
    return [str(e.line["command_id"]) for e in of_kind(effects, Tell) if e.line["type"] == "command"]


def answer(state: ResultState, command_id: str = "c1", output: object = None, error: str = "") -> AppSaid:
    return AppSaid(1, ReportResult(command_id, state, output, error))


def test_a_command_goes_to_the_application_and_its_answer_to_the_fleet() -> None:
    """Nothing an admin sends would be done, or nobody would learn that it was."""
    story = online("echo")
    effects = story.command("c1")
    [line] = [effect.line for effect in of_kind(effects, Tell)]
    assert ("c1", "echo", {"say": "hi"}) == (line["command_id"], line["name"], line["args"])
    effects += story.feed(answer(ResultState.RUNNING), answer(ResultState.DONE, output={"said": "hi"}))
    assert [("accepted", ""), ("running", ""), ("done", "")] == results(effects, "c1")
    assert {"said": "hi"} == json.loads(published(effects)[-1][1])["output"]


def test_a_command_is_on_disk_before_it_is_acknowledged_or_begun() -> None:
    """A power cut in between would make it begin a second time, or lose it."""
    effects = online("echo").command("c1", mid=9)
    order = [type(effect) for effect in effects if isinstance(effect, SaveJournal | Acknowledge | Tell | Publish)]
    assert [SaveJournal, Acknowledge, Tell, Publish] == order
    assert [Acknowledge(1, 9, 1)] == of_kind(effects, Acknowledge)


def test_a_command_that_comes_again_is_acknowledged_and_not_begun_again() -> None:
    """QoS 1 delivers at least once: a valve would open twice."""
    story = online("echo")
    story.command("c1")
    effects = story.command("c1", mid=8)
    assert [Acknowledge(1, 8, 1)] == effects


def test_a_command_that_comes_again_after_its_answer_is_answered_again() -> None:
    """The fleet would wait for ever for an answer that was lost behind the broker."""
    story = online("echo")
    story.command("c1")
    story.feed(answer(ResultState.DONE))
    story.confirm_all()
    effects = story.command("c1")
    assert [] == told(effects)
    assert [("done", "")] == results(effects, "c1")


def test_a_restart_neither_forgets_nor_repeats_a_command() -> None:
    """kill -9 while a pump runs: it would be started again at the next start."""
    story = online("echo")
    story.command("c1")
    again = online("echo", journal=decode_journal(story.state.journal.encode()))
    [(state, error)] = results(again.effects, "c1")
    assert ("failed", True) == (state, "restarted" in error)
    assert [] == told(again.command("c1"))


def test_where_the_list_was_lost_only_what_is_given_later_is_begun() -> None:
    """Commands that dispatch sends again would run a second time, or a device would never take one again."""
    story = online("echo", journal=lost())
    assert [] == told(story.command("c1"))
    story.seconds += 1
    story.feed(Tick())
    assert ["c2"] == told(story.command("c2"))
    again = decode_journal(of_kind(story.effects, SaveJournal)[-1].journal.encode())
    assert not again.is_lost
    assert again.may_have_forgotten(START, story.now().utc)


def test_a_lost_list_is_not_dated_by_a_clock_that_is_behind() -> None:
    """A device without a battery would take all that was ever sent for new."""
    story, utc = Story(journal=lost()), START
    story.go_online()
    behind = Moment(0, utc, 0.5, Reading(utc, utc, Basis.FLOOR, "build", True))
    assert on_online(replace(story.state, journal=lost()), behind).journal.is_lost
    unconfirmed = Moment(0, utc, 0.5, Reading(utc, utc, Basis.SYSTEM, "build", False))
    assert on_online(replace(story.state, journal=lost()), unconfirmed).journal.is_lost


def test_what_is_long_over_is_answered_and_not_written() -> None:
    """A broker that repeats old commands would wear out the flash of a device, or fill its memory."""
    story = online("echo")
    first = story.command("c0", seconds_left=-LONG_OVER.total_seconds() - 1)
    assert [("expired", "it arrived after its deadline")] == results(first, "c0")
    again = story.command("c0", seconds_left=-LONG_OVER.total_seconds() - 1, mid=8)
    assert [Acknowledge(1, 8, 1)] == of_kind(again, Acknowledge)
    assert [] == results(again, "c0"), "the first is on its way"
    for number in range(1, REMEMBERED + 50):
        story.command(f"c{number}", seconds_left=-LONG_OVER.total_seconds() - 1)
    assert REMEMBERED == story.state.outbox.results
    story.confirm_all()
    assert 0 == story.state.outbox.results
    assert [] == of_kind(story.effects, SaveJournal)
    assert () == story.state.journal.entries


def test_what_is_good_until_the_end_of_time_is_refused_as_any_other() -> None:
    """The agent ends by it, and by its next copy again after each restart: it was not acknowledged."""
    story = online("echo", journal=lost())
    message = CommandMessage(PUMP, START, datetime.max.replace(tzinfo=UTC), {})
    story.feed(Arrived(story.state.epoch, 7, Command(PUMP, "echo", "c-1").format(), message.encode()))
    assert [ResultState.FAILED] == [entry.state for entry in story.state.journal.entries]


def test_what_is_over_by_a_little_is_remembered() -> None:
    """A clock that is set back a minute later would have the device do what it said that it did not."""
    story = online("echo")
    story.command("c1", seconds_left=-1)
    story.seconds -= 3
    assert [] == told(story.command("c1", seconds_left=60))


def test_an_answer_is_kept_until_the_broker_has_it() -> None:
    """An answer given a moment before the network broke would be lost."""
    story = online("echo")
    story.command("c1")
    story.feed(answer(ResultState.DONE), Disconnected(1, LOST))
    story.seconds += 200
    story.feed(Tick())
    assert ("done", "") in results(story.go_online(), "c1")


def test_an_answer_is_kept_over_a_restart_until_the_broker_has_it() -> None:
    """An answer given a moment before a power cut would be lost."""
    story = online("echo")
    story.command("c1")
    story.feed(answer(ResultState.DONE, output=5))
    again = Story(journal=decode_journal(story.state.journal.encode()))
    assert [("done", "")] == results(again.go_online(), "c1")
    assert again.state.journal.entries[0].is_confirmed


def test_after_its_deadline_a_command_has_expired() -> None:
    """A command from before a week of outage would move a machine that people now work on."""
    effects = online("echo").command("c1", seconds_left=-1)
    assert [] == told(effects)
    assert [("expired", "it arrived after its deadline")] == results(effects, "c1")


def test_a_command_waits_for_firmware_that_starts_beside_the_agent() -> None:
    """After each power cut the commands that waited at the broker would fail, for want of half a second."""
    story = Story()
    story.go_online()
    assert [] == told(story.command("c1"))
    assert ["c1"] == told(story.application("echo"))


def test_a_command_that_nobody_takes_fails_and_says_what_is_there() -> None:
    """A typing error in a command's name would look like a dead device."""
    story = online("identify")
    effects = story.command("c1", name="idenify")
    story.seconds += APPLICATION_GRACE_SECONDS
    effects += story.feed(Tick())
    assert [("failed", "no application on this device takes 'idenify', but: identify")] == results(effects, "c1")


def test_once_firmware_had_its_time_an_unknown_command_fails_at_once() -> None:
    """Every typing error would cost ten seconds."""
    story = online("identify")
    story.seconds += APPLICATION_GRACE_SECONDS + 1
    effects = story.command("c1", name="idenify")
    effects += story.feed(Tick())
    assert ["failed"] == [state for state, _ in results(effects, "c1")]


def test_a_command_that_waits_for_firmware_expires_at_its_deadline() -> None:
    """A command would begin after its deadline."""
    story = Story()
    story.go_online()
    effects = story.command("c1", seconds_left=2)
    story.seconds += 2.5
    effects += story.application("echo")
    assert [] == told(effects)
    assert ["expired"] == [state for state, _ in results(effects, "c1")]


def test_the_commands_of_an_application_that_went_away_have_failed() -> None:
    """The fleet would wait for the answer of a firmware that crashed."""
    story = online("echo")
    effects = story.command("c1") + story.feed(AppLeft(1))
    assert ("failed", "the application went away before it answered") == results(effects, "c1")[-1]


def test_the_last_application_to_register_a_name_gets_the_command() -> None:
    """A firmware that restarted before its old connection was noticed would get nothing."""
    story = online("echo")
    story.application("echo", number=2)
    [tell] = of_kind(story.command("c1"), Tell)
    assert 2 == tell.app
    story.feed(AppSaid(1, Register("control", ("echo",))))
    [tell] = of_kind(story.command("c2"), Tell)
    assert 1 == tell.app


@pytest.mark.parametrize("command_id", ["c1", "unknown"])
def test_only_the_application_that_has_a_command_answers_it(command_id: str) -> None:
    """One application would answer for another, or for a command that never was."""
    story = online("echo")
    story.application("other", number=2)
    story.command("c1")
    [tell] = story.feed(AppSaid(2, ReportResult(command_id, ResultState.DONE, None, "")))
    assert isinstance(tell, Tell)
    assert (2, "error") == (tell.app, tell.line["type"])


def test_a_command_is_answered_once() -> None:
    """Two final results would contradict each other."""
    story = online("echo")
    story.command("c1")
    story.feed(answer(ResultState.DONE))
    effects = story.feed(answer(ResultState.FAILED))
    assert [] == of_kind(effects, Publish)
    assert ["error"] == [effect.line["type"] for effect in of_kind(effects, Tell)]


def test_on_a_full_disk_a_command_fails_and_is_not_begun() -> None:
    """It could not be remembered, and would begin again after a restart."""
    story = online("echo")
    story.disk_error = "No space left on device"
    effects = story.command("c1")
    assert [] == told(effects)
    [(state, error)] = results(effects, "c1")
    assert ("failed", True) == (state, "No space left" in error)


def test_too_many_unfinished_commands_are_refused() -> None:
    """A firmware that never answers would fill the memory of the device."""
    story = online("echo")
    effects: list[Effect] = []
    for number in range(MAX_UNFINISHED + 1):
        effects += story.command(f"c{number}")
        story.confirm_all()
    assert MAX_UNFINISHED == len(told(effects))
    assert ["failed"] == [state for state, _ in results(effects, f"c{MAX_UNFINISHED}")]


@pytest.mark.parametrize(
    ("topic", "payload"),
    [
        (Command(PUMP, "echo", "c1").format(), b"not json"),
        (Command(PUMP, "echo", "c1").format(), b'{"v":1,"id":"pump-08","ts":"2026-11-21T08:00:00Z"}'),
        ("devices/pump-08/down/commands/echo/c1", b"{}"),
        ("devices/pump-07/down/state", b"{}"),
        ("devices/pump-07/down/nonsense", b"{}"),
        ("fleet/notices/hello", b"{}"),
        ("anything/else", b""),
    ],
)
def test_what_cannot_be_handled_is_acknowledged_set_aside_and_counted(topic: str, payload: bytes) -> None:
    """The broker would send it again for ever, or it would end the agent."""
    story = online("echo")
    effects = story.feed(Arrived(1, 5, topic, payload))
    assert [Acknowledge(1, 5, 1)] == of_kind(effects, Acknowledge)
    assert [] == told(effects)
    assert 1 == story.state.set_aside


def test_an_output_that_no_message_can_carry_fails_in_words() -> None:
    """The fleet would never get an answer, or the agent would die of a large one."""
    story = online("echo")
    story.command("c1")
    effects = story.feed(answer(ResultState.DONE, output="x" * 65_500))
    fields = json.loads(published(effects)[-1][1])
    assert ("done", None) == (fields["state"], fields["output"])
    assert "cannot be sent" in fields["error"]


def test_a_command_of_a_connection_that_is_over_is_not_acknowledged_on_the_next() -> None:
    """Packet ids begin anew with each connection: the acknowledgement would hit another message."""
    story = Story()
    story.feed(Started())
    assert [] == story.command("c1")
    story.go_online()
    story.feed(Disconnected(1, LOST), Sent(1, 0))
    assert [] == story.command("c2")
