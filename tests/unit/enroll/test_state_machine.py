"""One device and the registry over a broker that loses, repeats and reorders: at the end both have the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from device_agent.shadow import Shadow, decode_shadow
from enroll.registry.state import StateRecord
from enroll.states import Change, due_part, hear
from fleet.identity import DeviceId
from fleet.messages import Envelope
from fleet.state import (
    DesiredMessage,
    ReportedMessage,
    decode_desired,
    decode_reported,
    diff,
    read_marks,
)
from tests.fleets import NOW

PUMP = DeviceId("pump-07")
NAMES = st.sampled_from("ab")
VALUES = st.recursive(
    st.none() | st.integers(0, 2) | st.booleans(), lambda inner: st.dictionaries(NAMES, inner), max_leaves=4
)
PATCHES = st.dictionaries(NAMES, VALUES, max_size=2)
LARGE = {"z": "a text that stays"}
MAX_ROUNDS = 12


class Fleet(RuleBasedStateMachine):
    """`up` and `down` hold what the broker has; each may be delivered at any time, often, or never."""

    def __init__(self) -> None:
        super().__init__()
        self.record = StateRecord(PUMP, 1)
        self.backup = self.record
        self.shadow = Shadow()
        self.disk = self.shadow.encode(PUMP)
        self.up: list[bytes] = []
        self.down: list[bytes] = []
        self.versions: dict[tuple[str, int, str], Any] = {}

    @initialize()
    def both_know_each_other(self) -> None:
        """So large that what changes is sent as a difference: else few walks would meet one."""
        self.record = replace(self.record, desired=self.record.desired.changed(LARGE))
        self.shadow = self.shadow.report(LARGE)
        self.the_device_is_back_for_good()
        self.disk, self.backup = self.shadow.encode(PUMP), self.record

    # The registry's side

    @rule(value=PATCHES, replaces=st.booleans())
    def an_admin_sets(self, value: dict[str, Any], replaces: bool) -> None:
        after = Change(value, replaces).applied(self.record.desired.value)
        if diff(self.record.desired.value, after) or not self.record.desired.version:
            self.record = replace(self.record, desired=self.record.desired.changed(after))
        self.down.append(self.told(due_part(self.record)))

    @rule()
    def a_backup_is_made(self) -> None:
        self.backup = self.record

    @rule()
    def the_backup_is_restored(self) -> None:
        self.record = self.backup

    def told(self, part: Any) -> bytes:
        return DesiredMessage(PUMP, NOW, part, self.record.reported.mark).encode()

    def registry_hears(self, payload: bytes) -> list[bytes]:
        message = decode_reported(payload, PUMP)
        self.record, part = hear(self.record, message.desired, message.reported, NOW)
        return [self.told(part)]

    # The device's side

    @rule(patch=PATCHES)
    def the_firmware_reports(self, patch: dict[str, Any]) -> None:
        self.shadow = self.shadow.report(patch)

    @rule()
    def the_disk_is_written(self) -> None:
        self.disk = self.shadow.encode(PUMP)

    @rule()
    def the_power_goes(self) -> None:
        self.shadow = decode_shadow(self.disk, PUMP)

    @rule()
    def the_card_dies(self) -> None:
        self.shadow = Shadow()

    @rule()
    def the_device_speaks(self) -> None:
        self.up.append(self.said())

    def said(self) -> bytes:
        self.shadow, part = self.shadow.says()
        return ReportedMessage(Envelope(PUMP, NOW, "boot", 1), self.shadow.desired.mark, part).encode()

    def device_hears(self, payload: bytes) -> list[bytes]:
        before = self.shadow
        self.shadow, must_answer = self.shadow.heard(decode_desired(payload, PUMP))
        assert self.shadow.desired.version >= before.desired.version, "what was newer gave way to what was older"
        return [self.said()] if must_answer else []

    # The broker

    @precondition(lambda self: self.up)
    @rule(at=st.integers(0, 9), keeps=st.booleans())
    def something_goes_up(self, at: int, keeps: bool) -> None:
        self.down += self.pass_on(self.up, at, keeps, self.registry_hears)

    @precondition(lambda self: self.down)
    @rule(at=st.integers(0, 9), keeps=st.booleans())
    def something_goes_down(self, at: int, keeps: bool) -> None:
        self.up += self.pass_on(self.down, at, keeps, self.device_hears)

    def pass_on(self, queue: list[bytes], at: int, keeps: bool, hears: Callable[[bytes], list[bytes]]) -> list[bytes]:
        at %= len(queue)
        return hears(queue[at] if keeps else queue.pop(at))

    @precondition(lambda self: self.up or self.down)
    @rule()
    def the_broker_loses_everything(self) -> None:
        self.up, self.down = [], []

    # What must hold

    def hello(self) -> list[bytes]:
        """What the registry answers to a hello with these marks."""
        marks = read_marks(self.shadow.marks.fields())
        self.record, part = hear(self.record, marks.desired, marks.reported, NOW)
        is_agreed = marks.desired == self.record.desired.mark and marks.reported == self.record.reported.mark
        return [] if is_agreed else [self.told(part)]

    @rule()
    def the_device_is_back_for_good(self) -> None:
        """Once it says hello over a connection that holds, both have the same after a few messages; old ones or not."""
        value, own = self.record.desired.value, self.shadow.reported.value
        down, up = self.down + self.hello(), list(self.up)
        self.up, self.down = [], []
        if not self.shadow.is_told:  # what the agent does some seconds after a hello without an answer
            up.append(self.said())
        for _ in range(MAX_ROUNDS):
            up += [answer for payload in down for answer in self.device_hears(payload)]
            down = [answer for payload in up for answer in self.registry_hears(payload)]
            up = []
        assert not down, "they never stop talking"
        assert self.record.desired == self.shadow.desired
        assert self.shadow.reported == self.record.reported
        assert (value, own) == (self.record.desired.value, self.shadow.reported.value), "the owner's word was changed"
        assert self.shadow.is_told
        assert self.record.known == (self.record.desired if self.record.desired.version else None)
        assert self.hello() == [], "what is agreed is talked about again"

    @invariant()
    def a_mark_names_one_document(self) -> None:
        """Whoever has a mark has what its owner made, and nothing that a lost message left half done."""
        for name, document in (("d", self.shadow.desired), ("d", self.record.desired), ("r", self.record.reported)):
            key = (name, document.version, document.mark.tag)
            assert not diff(self.versions.setdefault(key, document.value), document.value)


TestFleet = Fleet.TestCase
TestFleet.settings = settings(stateful_step_count=30, max_examples=150)
