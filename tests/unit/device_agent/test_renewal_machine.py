"""A device through its renewals with everything failing at any moment: it is never lost.

The core and the files are the real ones. The service and the broker are a set of serials that they take, kept as
`enroll/service` keeps it: one confirmed, one pending, the predecessor until its grace is over, each until it expires.
Then the last confirmed one is good for one successor, as `enroll/service/recovery.py` has it.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import mkdtemp

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from device_agent.core.effects import Confirm, Effect, ForgetPredecessor, Renew, UsePredecessor, UseSuccessor
from device_agent.core.events import (
    ConfigFetched,
    ConfirmationFailed,
    Confirmed,
    Connected,
    Disconnected,
    Event,
    IdentityChanged,
    RenewalFailed,
    RenewalPutOff,
    Started,
    Subscribed,
    SuccessorReady,
    Tick,
)
from device_agent.core.state import Connecting, Fetching, Stage, Waiting, initial
from device_agent.failures import Cause, Failure
from device_agent.renewal import Problem, life_of
from device_agent.store import Pending, PosixDisk, Store
from device_agent.succession import Succession
from fleet.errors import FleetError
from fleet.identity import Role, Serial
from fleet.layout import AgentHome, Credential
from tests.unit.device_agent.story import GATEWAY, SETTINGS, START, Story

URL = "https://gateway.local:8443"
LIFE = timedelta(days=90)
FAILED = Problem("unreachable", "nothing answers", "wait")
WAITS = Problem("waiting-for-approval", "request abcd", "enroll request approve abcd")
SAYS_EXPIRED = Failure(Cause.REFUSED, str(GATEWAY), "sslv3 alert certificate expired")
_DAY = 86_400.0


class Device(RuleBasedStateMachine):
    """One device, its home, and what the fleet takes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(mkdtemp())
        self.home = AgentHome(self.folder / "home")
        self.store = Store(self.home, PosixDisk())
        self.succession = Succession(self.home, PosixDisk())
        self.story = Story()
        self.confirmed: Serial | None = None
        self.pending: Serial | None = None
        self.old: Serial | None = None
        self.revoked: set[Serial] = set()
        self.used: set[Serial] = set()  # was confirmed once
        self.issued = 0
        self.ends: dict[Serial, datetime] = {}
        self.given: dict[str, Serial] = {}  # to the key in which folder
        self.is_approved = False
        self.is_preparing = self.is_confirming = self.is_disk_full = False

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @initialize()
    def enrol(self) -> None:
        self.store.prepare()
        pending = self.store.begin(SETTINGS.device, URL, b"key 0")
        self.store.complete(pending, b"certificate", b"roots", self._certified())
        self._is_used()
        self.start()

    def _certified(self) -> Credential:
        """The service gives a certificate: pending, whatever was so before."""
        self.issued += 1
        now = self.story.now().utc
        self.pending = Serial(f"{self.issued * 7_919:x}")
        self.ends[self.pending] = now + LIFE
        return Credential(SETTINGS.device, Role.DEVICE, self.pending, now, now + LIFE, URL)

    def _is_used(self) -> None:
        """The pending one is the confirmed one from now on."""
        assert self.pending is not None
        self.used.add(self.pending)
        self.confirmed, self.pending = self.pending, None

    def _key(self) -> Pending:
        """The one that waits for a certificate, or a new one."""
        found = self.store.pending(SETTINGS.device, URL)
        if found is None:
            found = self.store.begin(SETTINGS.device, URL, b"key")
            self.given.pop(found.folder.name, None)  # that was another key's
        return found

    @property
    def admitted(self) -> set[Serial]:
        return {each for each in (self.confirmed, self.pending, self.old) if each is not None and self.is_good(each)}

    def is_good(self, serial: Serial) -> bool:
        return self.story.now().utc < self.ends[serial]

    @property
    def in_use(self) -> Serial:
        return self.store.credential().serial

    def start(self) -> None:
        """A process starts: all it knows is on the disk."""
        self.is_preparing = self.is_confirming = False
        seconds, life = self.story.seconds, life_of(self.store.credential())
        present = replace(SETTINGS, serial=life.serial, not_before=life.not_before, not_after=life.not_after)
        self.story.spool.close()
        self.story = Story(seconds=seconds, settings=present)
        has_predecessor = self.succession.previous() is not None
        self.story.state = initial(present, (GATEWAY,), self.story.journal, has_predecessor=has_predecessor)
        self.feed(Started())

    def feed(self, *events: Event) -> None:
        for event in events:
            for effect in self.story.feed(event):
                self.perform(effect)

    def perform(self, effect: Effect) -> None:
        """As `renewal_client` does it."""
        match effect:
            case Renew():
                assert not self.is_preparing, "two renewals at once"
                self.is_preparing = True
                self.is_fresh = effect.is_fresh
            case Confirm():
                self.is_confirming = True
            case UseSuccessor():
                self.change(self.succession.promote_candidate)
            case UsePredecessor():
                self.change(self.succession.fall_back)
            case ForgetPredecessor():
                self.succession.forget_previous()

    def change(self, step: object) -> None:
        assert callable(step)
        life = life_of(self.store.credential())
        if self.is_disk_full:
            return self.feed(IdentityChanged(life, "No space left on device"))
        try:
            return self.feed(IdentityChanged(life_of(step())))
        except FleetError as error:
            return self.feed(IdentityChanged(life, error.message))

    # What becomes of a renewal, step by step as `renewing` takes them.

    @precondition(lambda self: self.is_preparing)
    @rule(lost=st.sampled_from(["", "", "", "request", "answer", "proof"]))
    def the_service_is_asked(self, lost: str) -> None:
        self.is_preparing = False
        if lost != "request" and not self.is_good(self.in_use):
            return self.recover(lost)
        if lost == "request" or self.in_use not in self.admitted:
            spare = self.succession.candidate()
            if spare is not None and spare.credential.serial in self.admitted and not lost:
                return self.feed(SuccessorReady(life_of(spare.credential)))
            return self.feed(RenewalFailed(FAILED))
        if self.is_fresh:
            self.succession.discard_successors()
        candidate = self.succession.candidate()
        if candidate is None:
            pending = self._key()
            if self.in_use == self.pending:  # who asks with it uses it
                self._is_used()
                self.old = None
            self.old = None if self.in_use == self.confirmed else self.old
            credential = self._certified()
            self.given[pending.folder.name] = credential.serial
            if lost == "answer":
                return self.feed(RenewalFailed(FAILED))
            self.store.write_answer(pending, b"certificate", credential)
        elif candidate.credential.serial not in self.admitted:
            self.succession.discard_successors()
            return self.feed(RenewalFailed(FAILED))
        found = self.succession.candidate()
        assert found is not None
        return self.feed(RenewalFailed(FAILED) if lost else SuccessorReady(life_of(found.credential)))

    def recover(self, lost: str) -> None:
        """As `renewing` goes on where the one in use has expired."""
        spare = self.succession.candidate()
        if spare is not None and spare.credential.serial in self.admitted:
            return self.feed(RenewalFailed(FAILED) if lost else SuccessorReady(life_of(spare.credential)))
        pending = self._key()
        given = self.given.get(pending.folder.name)
        if not self._is_signer_found() or (given is not None and given not in self.admitted):
            self.store.remove(pending.folder)  # 403, and the key is spent
            return self.feed(RenewalFailed(FAILED))
        if given is None and self.pending in self.admitted and not self.is_approved:
            self.is_approved = True  # by the time it asks again
            return self.feed(RenewalFailed(WAITS))
        self.is_approved = False
        now = self.story.now().utc
        if given is None:
            credential = self._certified()
            self.given[pending.folder.name] = credential.serial
        else:
            credential = Credential(SETTINGS.device, Role.DEVICE, given, self.ends[given] - LIFE, self.ends[given], URL)
        assert credential.not_after > now
        if lost == "answer":
            return self.feed(RenewalFailed(FAILED))
        self.store.write_answer(pending, b"certificate", credential)
        if spare is not None:
            self.store.remove(spare.folder)
        return self.feed(RenewalFailed(FAILED) if lost else SuccessorReady(life_of(credential)))

    def _is_signer_found(self) -> bool:
        """From the newest key on: one that was never confirmed is passed over, any other one decides."""
        for each, is_newer in self.succession.newest_first():
            if each.credential.serial == self.confirmed:
                return True
            is_ended = each.credential.serial in self.used | self.revoked
            if is_ended and not is_newer:
                return False
        return False

    @rule()
    def it_sleeps_for_long(self) -> None:
        """Off, in a drawer, until every certificate has expired."""
        self.story.seconds += 100 * _DAY
        self.start()

    @precondition(lambda self: self.is_preparing)
    @rule(seconds=st.floats(0, 1e6))
    def the_service_puts_it_off(self, seconds: float) -> None:
        self.is_preparing = False
        self.feed(RenewalPutOff(seconds))

    @precondition(lambda self: self.is_confirming)
    @rule(is_heard=st.booleans(), is_lost=st.booleans())
    def a_confirmation_arrives(self, is_heard: bool, is_lost: bool) -> None:
        self.is_confirming = False
        is_heard = is_heard and self.is_good(self.in_use)
        if is_heard and self.in_use == self.pending:
            self.old = self.confirmed
            self._is_used()
        self.feed(Confirmed() if is_heard and not is_lost else ConfirmationFailed(FAILED))

    @precondition(lambda self: self.old is not None)
    @rule()
    def the_grace_is_over(self) -> None:
        self.old = None

    @precondition(lambda self: self.pending is not None)
    @rule()
    def an_admin_revokes_the_pending_one(self) -> None:
        assert self.pending is not None
        self.revoked.add(self.pending)
        self.pending = None

    # The connection, which the broker decides by the serial.

    @rule()
    def the_broker_answers(self) -> None:
        """It lets in whom it takes."""
        if isinstance(self.story.state.link, Fetching):
            self.feed(ConfigFetched((GATEWAY,)))
        if isinstance(self.story.state.link, Connecting):
            epoch = self.story.state.epoch
            if self.in_use in self.admitted:
                self.feed(Connected(epoch, True), Subscribed(epoch))
                self.story.confirm_all()
            else:
                refused = Failure(Cause.REFUSED, str(GATEWAY), "not authorized")
                self.feed(Disconnected(epoch, refused if self.is_good(self.in_use) else SAYS_EXPIRED))

    @rule(cause=st.sampled_from([Cause.LOST, Cause.CLOSED, Cause.TIMED_OUT, Cause.UNREACHABLE]))
    def the_network_fails(self, cause: Cause) -> None:
        self.feed(Disconnected(self.story.state.epoch, Failure(cause, str(GATEWAY), "")))

    @rule(seconds=st.sampled_from([0.5, 150.0, 4_000.0, _DAY, 10 * _DAY]))
    def time_passes(self, seconds: float) -> None:
        self.story.seconds += seconds
        self.feed(Tick())

    @precondition(lambda self: not self.is_preparing)
    @rule()
    def it_is_due(self) -> None:
        """Without this few walks would come as far as a renewal."""
        until = (self.story.state.settings.life.due - START).total_seconds()
        self.story.seconds = max(self.story.seconds, until) + 3_600
        self.feed(Tick())

    @rule(is_full=st.booleans())
    def the_disk_changes(self, is_full: bool) -> None:
        self.is_disk_full = is_full

    @rule()
    def the_power_goes(self) -> None:
        self.start()

    @invariant()
    def the_core_knows_which_certificate_is_in_use(self) -> None:
        """It would report, and time, another's."""
        if self.confirmed is not None:
            assert self.story.state.settings.serial == self.in_use

    @invariant()
    def the_device_is_not_lost(self) -> None:
        """Something in its home is taken, or recovers, and it gets there when all goes well for a while."""
        if self.confirmed is None:
            return
        if not self.is_good(self.confirmed):
            is_found = self._is_signer_found() or self._will_fall_back() or self._is_meant()
            assert is_found, "the key that the service waits for is gone"
            return
        whole = {self.in_use}
        for each in (self.succession.previous(), self.succession.candidate()):
            whole |= {each.credential.serial} if each else set()
        assert whole & self.admitted, "nothing that it has is taken"

    def _will_fall_back(self) -> bool:
        """The one in use is refused by the broker, and not for its age: the one before it is in its place then."""
        previous = self.succession.previous()
        has_key = previous is not None and previous.credential.serial == self.confirmed
        return has_key and self.is_good(self.in_use) and self.in_use not in self.admitted

    def _is_meant(self) -> bool:
        """What it uses was revoked, and all else has expired since: an admin may want this device out."""
        return self.in_use in self.revoked

    @precondition(lambda self: self.confirmed is not None and self.in_use not in self.revoked)
    @rule()
    def all_goes_well_for_a_while(self) -> None:
        """In the end it is online with a certificate that is taken, and confirmed."""
        self.is_disk_full = False
        for _ in range(16):
            self.story.seconds += 7_300
            self.feed(Tick())
            if isinstance(self.story.state.link, Waiting):
                self.story.seconds += 200
                self.feed(Tick())
            self.the_broker_answers()
            if self.is_preparing:
                self.the_service_is_asked("")
            if self.is_confirming:
                self.a_confirmation_arrives(True, False)
        assert self.story.state.is_online
        assert self.in_use in self.admitted
        assert Stage.TRYING is not self.story.state.renewal.stage


TestDevice = Device.TestCase
TestDevice.settings = settings(stateful_step_count=30, max_examples=20)
