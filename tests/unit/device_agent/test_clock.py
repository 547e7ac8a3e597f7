"""Which time a device goes by: when it believes its clock, and what it makes of who tells it another."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent.clock import TOLERANCE, Basis, Reading, Timeline, timeline
from device_agent.credentials import problem_with_dates
from fleet.clock import BUILT, Validity
from fleet.identity import DeviceId, Role, Serial
from fleet.layout import Credential

DAY, HOUR, SECOND = timedelta(days=1), timedelta(hours=1), timedelta(seconds=1)
NOON = datetime(2027, 3, 1, 12, tzinfo=UTC)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FAR = datetime(2040, 6, 1, tzinfo=UTC)
SERVER = Validity(NOON - 30 * DAY, NOON + 60 * DAY)


def _naive(year: int) -> datetime:
    """Hypothesis adds the time zone itself."""
    return datetime(year, 1, 1, tzinfo=UTC).replace(tzinfo=None)


TIMES = st.datetimes(_naive(1970), _naive(2100), timezones=st.just(UTC))
VALIDITIES = st.tuples(TIMES, st.timedeltas(HOUR, 400 * DAY)).map(lambda pair: Validity(pair[0], pair[0] + pair[1]))


def credential(begin: datetime = NOON - 10 * DAY) -> Credential:
    return Credential(DeviceId("pump-07"), Role.DEVICE, Serial("2a"), begin, begin + 90 * DAY, "https://gateway:8443")


class Device:
    """One process of a device: its clock, its stopwatch, and the time as it really is."""

    def __init__(self, system: datetime, seen: datetime | None = None, known: Timeline | None = None) -> None:
        self.error = system - NOON
        self.true, self.seconds = NOON, 50.0
        self.known = known or timeline(self.seconds, credential(), seen)

    @property
    def system(self) -> datetime:
        return self.true + self.error

    def wait(self, span: timedelta) -> None:
        self.true += span
        self.seconds += span.total_seconds()

    def set(self, system: datetime) -> None:
        """Somebody sets the clock."""
        self.error = system - self.true

    @property
    def reading(self) -> Reading:
        return self.known.reading(self.system, self.seconds)

    def verify(self, validity: Validity = SERVER) -> None:
        """A handshake that succeeds by what is known."""
        self.known = self.known.verified(validity, self.system, self.seconds)

    def be_told(self, date: datetime, validity: Validity = SERVER) -> bool:
        known = self.known.told(date, validity, self.system, self.seconds)
        self.known = known or self.known
        return known is not None

    def hear(self, date: datetime) -> None:
        self.known = self.known.heard(date, self.system, self.seconds)


def test_a_clock_is_believed_until_it_is_contradicted() -> None:
    """A device with a right clock would go by something else."""
    device = Device(NOON)
    assert (Basis.SYSTEM, NOON, False) == (device.reading.basis, device.reading.utc, device.reading.is_confirmed)
    device.verify()
    device.wait(DAY)
    assert (Basis.SYSTEM, NOON + DAY, True) == (device.reading.basis, device.reading.utc, device.reading.is_confirmed)
    assert ("", "ok") == (device.reading.words, device.reading.fields()["code"])


@pytest.mark.parametrize(
    ("made", "seen", "floor", "why"),
    [
        (NOON - 10 * DAY, None, NOON - 10 * DAY, "certificate"),
        (NOON - 10 * DAY, NOON - DAY, NOON - DAY, "seen"),
        (BUILT - DAY, None, BUILT, "build"),
    ],
)
def test_the_floor_is_the_latest_of_what_is_known(
    made: datetime, seen: datetime | None, floor: datetime, why: str
) -> None:
    """A Pi that wakes up in 1970 would judge every certificate by 1970."""
    device = Device(EPOCH, known=timeline(50.0, credential(made), seen))
    assert (Basis.FLOOR, floor, why) == (device.reading.basis, device.reading.utc, device.reading.floor)
    device.wait(HOUR)
    assert floor + HOUR == device.reading.utc
    assert "clock-wrong" == device.reading.fields()["code"]


@given(TIMES, TIMES, st.lists(st.tuples(TIMES, VALIDITIES, st.timedeltas(timedelta(0), 9 * DAY), TIMES), max_size=6))
def test_nothing_that_anybody_says_goes_below_the_floor(
    system: datetime, seen: datetime, said: list[tuple[datetime, Validity, timedelta, datetime]]
) -> None:
    """A hostile Date would make an expired certificate valid that the device has outlived."""
    device = Device(system, seen)
    least, began = max(BUILT, seen, NOON - 10 * DAY), device.true
    for date, validity, span, clock in said:
        device.be_told(date, validity)
        device.hear(date)
        if inferred := device.known.inferred(validity, device.system, device.seconds):
            device.known = inferred
        device.verify(validity)
        device.wait(span)
        device.set(clock)
        assert device.reading.utc >= least + (device.true - began)


@given(TIMES, TIMES, VALIDITIES)
def test_a_date_counts_within_the_chain_that_came_with_it(system: datetime, date: datetime, validity: Validity) -> None:
    """Whoever holds one certificate of ours would be believed any time at all."""
    device = Device(system)
    if device.be_told(date, validity):
        reading = device.reading
        assert reading.basis in (Basis.SYSTEM, Basis.SERVER)
        assert reading.basis is Basis.SYSTEM or validity.covers(reading.utc)


def test_a_date_within_an_expired_chain_is_refused_above_its_end() -> None:
    """The stolen key of a certificate that ended before the device was last seen online would pass again."""
    stolen = Validity(NOON - 120 * DAY, NOON - 30 * DAY)
    device = Device(stolen.not_before + DAY, seen=NOON - DAY)
    assert not device.be_told(stolen.not_before + DAY, stolen)
    assert Basis.FLOOR is device.reading.basis
    assert stolen.has_ended(device.reading.utc)


@pytest.mark.parametrize("clock", [EPOCH, FAR, NOON + 200 * DAY], ids=["1970", "2040", "200-days"])
def test_a_wrong_clock_is_replaced_by_what_the_service_says(clock: datetime) -> None:
    """A device with a wrong clock would stay offline for ever."""
    device = Device(clock)
    assert device.be_told(NOON)
    device.wait(DAY)
    assert (Basis.SERVER, NOON + DAY) == (device.reading.basis, device.reading.utc)
    assert "told by the enrollment service" in device.reading.words


@pytest.mark.parametrize("clock", [EPOCH, FAR])
def test_a_clock_that_somebody_sets_is_believed_again(clock: datetime) -> None:
    """NTP would arrive and change nothing; or a stolen key's Date would hold against it."""
    device = Device(clock)
    device.be_told(NOON)
    device.verify()
    device.wait(HOUR)
    device.set(device.true)
    assert (Basis.SYSTEM, device.true) == (device.reading.basis, device.reading.utc)


def test_a_service_that_agrees_leaves_the_clock_in_charge() -> None:
    """A device whose clock is right would be said to be wrong."""
    device = Device(NOON)
    assert device.be_told(NOON + TOLERANCE / 2)
    assert Basis.SYSTEM is device.reading.basis


def test_a_clock_that_jumps_to_where_no_server_is_valid_waits_for_a_handshake() -> None:
    """2026, 2040, 2026: a whole fleet would renew, and drop its commands as expired, because of one bad server."""
    device = Device(NOON)
    device.verify()
    device.set(FAR)
    device.wait(HOUR)
    assert (Basis.STEADY, NOON + HOUR) == (device.reading.basis, device.reading.utc)
    assert not device.reading.checks_dates_itself  # what a handshake goes by is the clock, and its failure asks
    device.set(device.true)
    assert (Basis.SYSTEM, NOON + HOUR) == (device.reading.basis, device.reading.utc)


def test_a_clock_that_was_set_to_what_was_told_is_trusted_as_one_that_was_verified() -> None:
    """1970, NTP, 2040: what had just come right would be believed anything."""
    device = Device(EPOCH)
    device.be_told(NOON)
    device.set(device.true)
    device.known = device.known.reconciled(device.system, device.seconds)
    assert Basis.SYSTEM is device.reading.basis
    device.set(FAR)
    assert (Basis.STEADY, NOON) == (device.reading.basis, device.reading.utc)


def test_a_jump_that_a_handshake_confirms_was_right() -> None:
    """A machine that slept for a year would never come to the present."""
    device = Device(NOON)
    device.verify()
    device.set(NOON + 300 * DAY)
    device.verify(Validity(NOON + 290 * DAY, NOON + 380 * DAY))
    assert (Basis.SYSTEM, device.system) == (device.reading.basis, device.reading.utc)


def test_a_jump_within_what_servers_show_is_believed() -> None:
    """A clock that was a day behind would stay behind after it was set."""
    device = Device(NOON - DAY)
    device.verify()
    device.set(NOON)
    assert (Basis.SYSTEM, NOON) == (device.reading.basis, device.reading.utc)


def test_a_time_is_remembered_only_if_clock_and_service_agree_on_it() -> None:
    """A clock a day ahead, or a service that lies, would be a floor for ever."""
    ahead, behind, fooled = Device(NOON + DAY), Device(NOON - DAY), Device(NOON)
    for device in (ahead, behind, fooled):
        device.verify()
    ahead.hear(NOON)
    behind.hear(NOON)
    fooled.hear(FAR)
    assert [NOON, NOON - DAY, NOON] == [each.known.floor.time for each in (ahead, behind, fooled)]


def test_a_time_that_was_only_told_is_never_remembered() -> None:
    """DESIGN section 8: what a handshake without dates was told must not outlive the process."""
    device = Device(FAR)
    before = device.known.floor
    device.be_told(NOON)
    device.verify()
    device.hear(NOON)
    assert before == device.known.floor


def test_a_brokers_chain_tells_how_late_it_is_at_least() -> None:
    """With the service away a Pi in 1970 would refuse a broker whose certificate is younger than its own."""
    device, younger = Device(EPOCH), Validity(NOON - 2 * DAY, NOON + 60 * DAY)
    found = device.known.inferred(younger, device.system, device.seconds)
    assert found is not None
    device.known = found
    assert (Basis.ISSUED, younger.not_before) == (device.reading.basis, device.reading.utc)
    device.verify(younger)
    device.hear(NOON)  # a verified service knows better than that
    assert (Basis.SERVER, NOON) == (device.reading.basis, device.reading.utc)


@pytest.mark.parametrize("clock", [NOON, FAR])
def test_a_chain_tells_nothing_to_a_clock_above_the_floor(clock: datetime) -> None:
    """A certificate that is not valid yet, or no more, would make itself valid."""
    device = Device(clock)
    for validity in (Validity(clock + DAY, clock + 9 * DAY), Validity(NOON - 9 * DAY, NOON - DAY)):
        assert device.known.inferred(validity, device.system, device.seconds) is None


def test_an_expired_chain_tells_nothing_at_all() -> None:
    """What has ended by the floor has ended."""
    device = Device(EPOCH, seen=NOON)
    ended = Validity(NOON - 90 * DAY, NOON - SECOND * 2)
    assert device.known.inferred(ended, device.system, device.seconds) is None
    assert not device.be_told(NOON - DAY, ended)


@pytest.mark.parametrize(
    ("clock", "begin", "problem"),
    [
        (NOON, NOON - DAY, ""),
        (NOON, NOON + 30 * DAY, "begins at"),
        (NOON, NOON - 91 * DAY, "has expired"),
        (EPOCH, NOON + 30 * DAY, ""),
        (EPOCH, NOON - 101 * DAY, "has expired"),
    ],
)
def test_a_certificate_from_the_future_is_not_taken(clock: datetime, begin: datetime, problem: str) -> None:
    """A gateway in 2040 would date it so, and its beginning be a floor that locks the device out for ever."""
    found = problem_with_dates(credential(begin), Device(clock).reading)
    assert problem in found
    assert bool(problem) is bool(found)
