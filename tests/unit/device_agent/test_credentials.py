"""What must be true of the service's answer before it becomes this device's identity."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from device_agent import credentials
from device_agent.credentials import UntrustedAnswer, pinned_root, verify_answer
from fleet import pki
from fleet.identity import DeviceId, Role
from tests.unit.device_agent.authority import CLIENT_AUTH, Issued, issue, new_authority

OURS = new_authority()
FOREIGN = new_authority("foreign")
ROOT = OURS.root.certificate
PUMP = DeviceId("pump-07")
KEY_PEM = credentials.new_key_pem()
KEY = credentials.load_key(KEY_PEM)
URL = "https://gateway.local:8443"


def test_the_pin_alone_finds_the_root() -> None:
    """A root that an attacker adds to the answer would be trusted."""
    mixed = [FOREIGN.root.certificate, OURS.servers.certificate, ROOT, FOREIGN.servers.certificate]
    assert ROOT == pinned_root(mixed, pki.pin_of(ROOT))


def test_without_the_pinned_root_nothing_is_trusted() -> None:
    """The service of another fleet, or a captive portal, would get the token."""
    with pytest.raises(UntrustedAnswer):
        pinned_root([FOREIGN.root.certificate], pki.pin_of(ROOT))


def test_an_issuing_certificate_with_the_pin_is_not_a_root() -> None:
    """Whoever holds a pin of an intermediate would have everything below another's root accepted."""
    with pytest.raises(UntrustedAnswer):
        pinned_root([OURS.servers.certificate, ROOT], pki.pin_of(OURS.servers.certificate))


def test_a_good_answer_becomes_leaf_and_issuer_without_the_root() -> None:
    """The agent would send its root along, or not send what others need to verify it."""
    answer = OURS.client(PUMP, KEY)
    verified = verify_answer([*answer.issuers, answer.certificate, ROOT], KEY_PEM, PUMP, ROOT, URL)
    assert (answer.certificate, OURS.devices.certificate) == verified.chain
    assert (PUMP, Role.DEVICE, URL) == (
        verified.credential.device,
        verified.credential.role,
        verified.credential.enroll_url,
    )
    assert answer.pem == verified.pem


def _for_another_key() -> Issued:
    return OURS.client(PUMP)


def _for_another_id() -> Issued:
    return OURS.client("pump-08", KEY)


def _of_another_root() -> Issued:
    return FOREIGN.client(PUMP, KEY)


def _for_servers() -> Issued:
    return issue(
        OURS.servers, PUMP, key=KEY, names=[x509.UniformResourceIdentifier("spiffe://acme.example/server/enroll")]
    )


def _a_ca() -> Issued:
    return issue(OURS.root, PUMP, key=KEY, is_ca=True, usage=CLIENT_AUTH)


def _without_a_role() -> Issued:
    return OURS.client(PUMP, KEY, role="emperor")


@pytest.mark.parametrize(
    "make", [_for_another_key, _for_another_id, _of_another_root, _for_servers, _a_ca, _without_a_role]
)
def test_any_other_answer_is_refused(make: Callable[[], Issued]) -> None:
    """A device would carry an identity that is not its own, or one that no broker takes."""
    answer = make()
    with pytest.raises(UntrustedAnswer):
        verify_answer([answer.certificate, *answer.issuers], KEY_PEM, PUMP, ROOT, URL)


def test_a_key_is_made_on_p256_and_reads_back() -> None:
    """A key of another kind would be refused by the service, or lost."""
    assert isinstance(KEY.curve, ec.SECP256R1)
    assert KEY_PEM != credentials.new_key_pem()
