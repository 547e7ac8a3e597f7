"""What admins do to principals."""

from __future__ import annotations

from enroll.registry import log
from fleet.identity import DeviceId
from tests.fleets import Office, certificate_in, csr, new_key

PUMP = DeviceId("pump-07")


def test_revoking_again_ends_a_token_that_was_made_to_replace(office: Office) -> None:
    """Who holds a token from before is let in after an admin has said no twice."""
    office.enrolled(PUMP)
    office.revoke(PUMP)
    token = office.invite(PUMP, replace=True)
    office.revoke(PUMP)
    response = office.enrol(token, csr(PUMP, new_key()))
    assert (401, True) == (response.status, b"the token was revoked" in response.body)
    with office.registry.read() as transaction:
        assert 2 == sum(entry.event == "principal.revoked" for entry in log.entries(transaction))


def test_revoking_again_changes_nothing_else(office: Office) -> None:
    """The log fills with what was not done, or a principal that was replaced since is cut off by a repeated command."""
    office.enrolled(PUMP)
    office.revoke(PUMP)
    office.revoke(PUMP)
    with office.registry.read() as transaction:
        assert 1 == sum(entry.event == "principal.revoked" for entry in log.entries(transaction))
    certificate_in(office.enrol(office.invite(PUMP, replace=True), csr(PUMP, new_key())))
