"""What a CRL says, and when the next one is due."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st
from pkilint import loader, pkix
from pkilint.pkix import crl as pkix_crl
from pkilint.pkix import extension, name

from enroll.authority import Root
from enroll.crl import BACKDATE, EVERYTHING, LIFE, Issue, build, issue_of, next_issue
from enroll.issuer import Misissued
from enroll.keys import KeySigner, new_key
from enroll.registry.records import Reason, Revocation
from fleet.identity import Serial
from tests.crls import lines_of, reason_of
from tests.fleets import NOW, Office

SHARD_URL: Final = "http://gateway.local:8080/crl/1.crl"  # pkilint takes `localhost` for no host
LINTER: Final = pkix_crl.create_pkix_crl_validator_container(
    [
        pkix.create_attribute_decoder(name.ATTRIBUTE_TYPE_MAPPINGS),  # type: ignore[no-untyped-call]
        pkix.create_extension_decoder(extension.EXTENSION_MAPPINGS),  # type: ignore[no-untyped-call]
    ],
    [
        pkix_crl.create_issuer_validator_container([]),  # type: ignore[no-untyped-call]
        pkix_crl.create_validity_validator_container([]),  # type: ignore[no-untyped-call]
        pkix_crl.create_extensions_validator_container([]),  # type: ignore[no-untyped-call]
    ],
)
SECOND: Final = timedelta(seconds=1)
moments = st.integers(0, 2_490_000_000_000).map(lambda millis: EVERYTHING + timedelta(days=365, milliseconds=millis))


def some_lines() -> list[Revocation]:
    """One with each reason, and one without any."""
    reasons = [None, *Reason]
    return [Revocation(Serial(f"{number:x}"), NOW, reason) for number, reason in enumerate(reasons, start=10)]


def test_every_field_of_a_shard(office: Office) -> None:
    """A verifier takes the list for another's, or does not see what stands there."""
    issuer, issue = office.authority.devices, next_issue(None, NOW)
    made = build(issuer, issue, some_lines(), SHARD_URL)
    assert issuer.certificate.subject == made.issuer
    assert (NOW - BACKDATE, NOW + LIFE) == (made.last_update_utc, made.next_update_utc)
    assert {Serial(f"{number:x}"): reason for number, reason in enumerate([None, *Reason], start=10)} == lines_of(made)
    assert {NOW} == {line.revocation_date_utc for line in made}
    found = {type(each.value): (each.value, each.critical) for each in made.extensions}
    key = issuer.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    expected = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(key)
    assert (expected, False) == found[x509.AuthorityKeyIdentifier]
    assert (x509.CRLNumber(issue.number), False) == found[x509.CRLNumber]
    scope, is_critical = found[x509.IssuingDistributionPoint]
    assert isinstance(scope, x509.IssuingDistributionPoint)
    assert ([x509.UniformResourceIdentifier(SHARD_URL)], True) == (scope.full_name, is_critical)
    assert (True, False, False) == (scope.only_contains_user_certs, scope.only_contains_ca_certs, scope.indirect_crl)
    assert 3 == len(found)


def test_a_shard_is_called_as_its_certificates_call_it(office: Office) -> None:
    """No verifier finds that the list is about the certificate: the names are compared byte by byte."""
    leaf = office.enrolled("pump-07")
    (point,) = leaf.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    made = build(office.authority.devices, next_issue(None, NOW), (), office.authority.devices.crl_url(1))
    scope = made.extensions.get_extension_for_class(x509.IssuingDistributionPoint).value
    assert point.full_name == scope.full_name


def test_a_plain_list_speaks_for_the_whole_issuer(office: Office) -> None:
    """Mosquitto refuses every certificate: it follows no distribution point."""
    made = build(office.authority.devices, next_issue(None, NOW), some_lines())
    assert {x509.AuthorityKeyIdentifier, x509.CRLNumber} == {type(each.value) for each in made.extensions}


def test_a_reason_that_nobody_gave_is_left_out(office: Office) -> None:
    """RFC 5280, 5.3.1: it SHOULD be absent instead of unspecified."""
    (line,) = build(office.authority.devices, next_issue(None, NOW), [Revocation(Serial("a1"), NOW, None)])
    assert reason_of(line) is None
    assert [] == list(line.extensions)


@pytest.mark.parametrize("url", [None, SHARD_URL])
def test_pkilint_finds_nothing(office: Office, url: str | None) -> None:
    """The list is none by RFC 5280."""
    made = build(office.authority.devices, next_issue(None, NOW), some_lines(), url)
    assert set() == findings(made)


def test_the_linter_would_see_a_fault(office: Office) -> None:
    """The test above passes because the linter looks at nothing."""
    subject = office.authority.devices.certificate.subject
    builder = x509.CertificateRevocationListBuilder().issuer_name(subject).last_update(NOW).next_update(NOW + LIFE)
    assert findings(office.authority.devices.sign_crl(builder))


def findings(made: x509.CertificateRevocationList) -> set[str]:
    """What pkilint has to say, from notice upwards."""
    document = loader.load_crl(made.public_bytes(Encoding.PEM).decode(), "made")
    return {
        f"{found.finding.severity.name} {found.finding.code}"
        for result in LINTER.validate(document.root)
        for found in result.finding_descriptions
        if found.finding.severity.name not in ("INFO", "DEBUG")
    }


def test_what_does_not_verify_is_not_published(office: Office) -> None:
    """A key that is not the CA's signs lists that nobody believes, and nobody notices."""
    wrong = Root(office.authority.devices.certificate, KeySigner(new_key()))
    with pytest.raises(Misissued):
        build(wrong, next_issue(None, NOW), ())


def test_ten_thousand_lines_are_made_in_time(office: Office) -> None:
    """A full shard holds up all others: the builder's own way to add lines copies them all each time."""
    lines = [Revocation(Serial(f"{number:x}"), NOW, Reason.SUPERSEDED) for number in range(1, 10_001)]
    assert 10_000 == len(build(office.authority.devices, next_issue(None, NOW), lines, SHARD_URL))


def test_a_list_is_due_at_half_of_its_life() -> None:
    """It ends before anybody makes the next one, and everybody is locked out."""
    issue = next_issue(None, NOW)
    assert not issue.is_due(NOW)
    assert not issue.is_due(NOW + LIFE / 2 - BACKDATE - SECOND)
    assert issue.is_due(NOW + LIFE / 2)
    assert issue.is_due(NOW + 2 * LIFE)


@given(first=moments, then=moments)
def test_no_clock_makes_a_list_that_is_not_good_now_and_renewed(first: datetime, then: datetime) -> None:
    """A clock that was, or is, wrong locks everybody out, or one list is good for decades and never replaced."""
    before = next_issue(None, first)
    after = next_issue(before, then)
    for issue, made_at in ((before, first), (after, then)):
        assert issue.this_update <= made_at < issue.next_update
        assert not issue.is_due(made_at)
        assert issue.is_due(made_at + LIFE / 2)
    assert before.number < after.number
    if then < first:  # whichever of the clocks was right, the list is good by it
        assert after.this_update <= first < after.next_update
    third = next_issue(after, then + LIFE / 2)
    assert third.next_update - third.this_update <= LIFE + BACKDATE


@given(first=moments, then=moments)
def test_what_ended_stays_for_one_issue_and_nothing_that_is_good_leaves(first: datetime, then: datetime) -> None:
    """RFC 5280, 3.3; and a clock that was in 2040 for a moment takes everybody off the list."""
    kept = next_issue(None, first).keeps(then)
    assert kept <= then
    assert kept <= first


def test_a_list_is_read_back(office: Office) -> None:
    """After a restart numbers go back, or the list is taken for due."""
    issue = next_issue(Issue(7, NOW, NOW + LIFE), NOW)
    assert issue == issue_of(build(office.authority.devices, issue, ()))


def test_another_programs_list_is_none_of_ours(office: Office) -> None:
    """A file that somebody put there stops the service."""
    builder = x509.CertificateRevocationListBuilder().issuer_name(office.authority.devices.certificate.subject)
    foreign = office.authority.devices.sign_crl(builder.last_update(NOW).next_update(NOW + LIFE))
    with pytest.raises(ValueError, match="without a number"):
        issue_of(foreign)
