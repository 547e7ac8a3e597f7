"""How a renewal ends at the service: confirmed by whoever uses it, the predecessor superseded after a grace."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from enroll.pacing import MAX_WAIT_SECONDS, Pacer
from enroll.registry import endings, feed, identity, log
from enroll.service.enrolment import RENEWALS_PER_WINDOW
from enroll.service.grace import GRACE
from enroll.service.succession import end_due
from fleet import est, pki
from fleet.est import EstRequest, EstResponse
from fleet.identity import DeviceId, Serial
from fleet.messages import parse_time
from tests.fleets import Office, certificate_in, csr, open_office

PUMP = DeviceId("pump-07")
SECOND = timedelta(seconds=1)


def confirm(office: Office, peer: x509.Certificate | None) -> EstResponse:
    der = None if peer is None else peer.public_bytes(Encoding.DER)
    return office.app.handle(EstRequest("POST", est.CONFIRM, peer=der, address="192.0.2.7"))


def renewed(office: Office, **order: str) -> tuple[x509.Certificate, x509.Certificate]:
    """A device's first certificate, and its successor, which is pending."""
    first = office.enrolled("pump-07", **order)
    return first, certificate_in(office.reenrol(first, csr("pump-07")))


def live(office: Office) -> list[str]:
    with office.registry.read() as transaction:
        found = identity.live_certificates_of(transaction, PUMP)
        return [f"{certificate.generation} {certificate.state}" for certificate in found]


def listed(office: Office) -> frozenset[Serial]:
    with office.registry.read() as transaction:
        entry = feed.entry_of(transaction, PUMP)
    assert entry is not None
    return entry.serials


def test_one_device_cannot_fill_the_registry_with_renewals(office: Office) -> None:
    """A stolen device adds a certificate, a log line and a line of the CRL, as fast as the service can sign."""
    first, other = office.enrolled("pump-07"), office.enrolled("pump-08")
    requests = [csr("pump-07") for _ in range(RENEWALS_PER_WINDOW)]
    latest = [certificate_in(office.reenrol(first, request)) for request in requests][-1]
    refused = office.reenrol(first, csr("pump-07"))
    assert (503, b"pump-07 has renewed 20 times of late\nhint: try again in 3600 s\n") == (
        refused.status,
        refused.body,
    )
    assert "3600" == refused.headers["Retry-After"], "what the agent goes by"
    assert latest == certificate_in(office.reenrol(first, requests[-1])), "an answer that was lost"
    assert 200 == office.reenrol(other, csr("pump-08")).status
    office.wait(timedelta(hours=1))
    assert 200 == office.reenrol(first, csr("pump-07")).status


def test_a_certificate_of_minutes_is_renewed_as_often_as_it_needs(office: Office) -> None:
    """Devices with short lives lose their identity, for one of hours is no more than a bound for a device."""
    first = office.enrolled("pump-07", profile="test")
    for _ in range(RENEWALS_PER_WINDOW):
        assert 200 == office.reenrol(first, csr("pump-07")).status
    assert 503 == office.reenrol(first, csr("pump-07")).status
    office.wait(pki.TEST_CLIENT.life)
    assert 200 == office.reenrol(first, csr("pump-07")).status


def test_both_connect_until_the_grace_after_the_confirmation_is_over(office: Office) -> None:
    """A device that falls back to its old certificate is locked out, or an old key is good for months."""
    first, second = renewed(office)
    office.wait(2 * GRACE)
    assert [] == end_due(office.registry, office.now)
    assert 200 == confirm(office, second).status
    assert ["1 confirmed", "2 confirmed"] == live(office)
    office.wait(GRACE - SECOND)
    assert [] == end_due(office.registry, office.now)
    office.wait(SECOND)
    assert [(PUMP, pki.serial_of(first))] == end_due(office.registry, office.now)
    assert ["2 confirmed"] == live(office)
    assert {pki.serial_of(second)} == listed(office)
    assert [] == end_due(office.registry, office.now)


def test_brokers_hear_of_the_end(office: Office) -> None:
    """The old certificate's session would go on until somebody restarts the broker."""
    _, second = renewed(office)
    confirm(office, second)
    office.wait(GRACE)
    with office.registry.read() as transaction:
        before = feed.head(transaction)
    end_due(office.registry, office.now)
    with office.registry.read() as transaction:
        assert before + 1 == feed.head(transaction)


def test_a_confirmation_is_answered_with_the_end_and_may_come_again(office: Office) -> None:
    """An agent whose answer was lost would try for ever, or put the end off each time."""
    _, second = renewed(office)
    said = json.loads(confirm(office, second).body)
    assert office.now + GRACE == parse_time(said["predecessor_ends_at"])
    assert str(pki.serial_of(second)) == said["serial"]
    office.wait(SECOND)
    assert said == json.loads(confirm(office, second).body)
    with office.registry.read() as transaction:
        assert 1 == [entry.event for entry in log.entries(transaction)].count("certificate.confirmed")


def test_the_first_certificate_needs_no_confirmation(office: Office) -> None:
    """An agent that confirms once too often would be told that it is unknown."""
    first = office.enrolled("pump-07")
    answer = confirm(office, first)
    assert (200, None) == (answer.status, json.loads(answer.body)["predecessor_ends_at"])


def test_the_predecessor_cannot_confirm_its_own_successor(office: Office) -> None:
    """The successor would be the only one left without ever having been used."""
    first, _ = renewed(office)
    assert 200 == confirm(office, first).status
    assert ["1 confirmed", "2 pending"] == live(office)


def test_nobody_confirms_without_a_certificate_of_the_fleet(office: Office) -> None:
    """A stranger could end the certificates of devices."""
    _, second = renewed(office)
    assert 401 == confirm(office, None).status
    office.revoke("pump-07")
    assert 403 == confirm(office, second).status


def test_a_short_life_has_a_short_grace(office: Office) -> None:
    """A certificate of a minute would outlive its successor's."""
    first, second = renewed(office, profile="test")
    confirm(office, second)
    office.wait((first.not_valid_after_utc - first.not_valid_before_utc) / 10)
    assert [(PUMP, pki.serial_of(first))] == end_due(office.registry, office.now)


def test_a_life_that_the_fleet_chose_is_kept_by_the_successor(tmp_path: Path) -> None:
    """A fleet with short lives would have long ones from the first renewal on."""
    with open_office(tmp_path / "fleet") as office:
        office.app.enrolment = replace(office.app.enrolment, lives={"test": timedelta(seconds=60)})
        for certificate in renewed(office, profile="test"):
            assert office.now + timedelta(seconds=60) == certificate.not_valid_after_utc


def test_what_was_ended_otherwise_meanwhile_is_left_alone(office: Office) -> None:
    """A revoked certificate would be listed as superseded in CRLs and on the admin's screen."""
    _, second = renewed(office)
    confirm(office, second)
    office.revoke("pump-07")
    office.wait(GRACE)
    assert [] == end_due(office.registry, office.now)
    with office.registry.read() as transaction:
        assert ["revoked", "revoked"] == [str(each.state) for each in identity.certificates_of(transaction, PUMP)]
        assert endings.first(transaction) is None


def test_renewal_info_spreads_those_who_ask_at_once(office: Office) -> None:
    """Devices that were made in one minute would all come back in one minute, for years."""
    asked = [office.get(est.RENEWAL_INFO, office.enrolled(f"pump-{number}")) for number in range(3)]
    waits = [json.loads(answer.body)["wait_seconds"] for answer in asked]
    assert [0.0, 0.05, 0.1] == waits
    assert 401 == office.get(est.RENEWAL_INFO).status


serials = st.integers(1, 40).map(lambda number: Serial(f"{number:x}"))


@given(st.lists(st.tuples(serials, st.floats(0, 5)), min_size=1, max_size=200))
def test_places_are_never_closer_than_the_rate(asked: list[tuple[Serial, float]]) -> None:
    """A storm would come through, or somebody who asks often would take the places of others."""
    pacer, now, places = Pacer(per_second=10), 0.0, dict[tuple[Serial, float], None]()
    for serial, step in asked:
        now += step
        wait = pacer.wait_seconds(serial, now)
        assert 0 <= wait <= MAX_WAIT_SECONDS
        places[serial, round(now + wait, 6)] = None
    times = sorted(at for _, at in places)
    assert all(later - earlier >= 0.1 - 1e-5 for earlier, later in itertools.pairwise(times))


def test_a_wait_never_grows_past_the_hour() -> None:
    """The hundred-thousandth device would be told to come back when its certificate is long over."""
    pacer = Pacer(per_second=1)
    waits = [pacer.wait_seconds(Serial(f"{number:x}"), 0.0) for number in range(1, 5_000)]
    assert MAX_WAIT_SECONDS == max(waits)
