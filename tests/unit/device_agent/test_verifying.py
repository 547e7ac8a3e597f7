"""Which messages are the fleet's own word."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from device_agent.verdicts import Verdict
from device_agent.verifying import Verifier
from enroll.downlink import DownlinkSigner
from fleet import pki
from fleet.downlink import encode_header, join
from fleet.identity import DeviceId
from fleet.layout import IdentityFiles
from fleet.messages import CommandMessage
from fleet.signers import key_id_of
from tests.unit.device_agent.authority import CLIENT_AUTH, DAY, SERVER_AUTH, Authority, Issued, issue, new_authority

NOW = datetime.now(UTC)
TOPIC = "devices/pump-07/down/commands/echo/c1"
BODY = CommandMessage(DeviceId("pump-07"), NOW, NOW + timedelta(minutes=1), {"say": "hi"}).encode()
ACME = new_authority()


def signer_of(fleet: Authority = ACME, **changes: Any) -> Issued:
    """A signing certificate as the service makes it, or with changes."""
    name = changes.pop("name", "spiffe://acme.example/server/dispatch-signing")
    fields: dict[str, Any] = {
        "issuer": fleet.servers,
        "common_name": "dispatch-signing",
        "names": [x509.UniformResourceIdentifier(name)],
        "usage": pki.DISPATCH_SIGNING_USAGE,
    }
    return issue(**fields | changes)


def chain_of(issued: Issued) -> tuple[bytes, ...]:
    return tuple(each.public_bytes(Encoding.DER) for each in (issued.certificate, *issued.issuers[:1]))


def signed_by(issued: Issued, folder: Path, topic: str = TOPIC, body: bytes = BODY) -> bytes:
    return DownlinkSigner(IdentityFiles(*issued.write(folder))).sign(topic, body, NOW + timedelta(minutes=1))


def judged(issued: Issued, payload: bytes, topic: str = TOPIC, now: datetime = NOW, fleet: Authority = ACME) -> Verdict:
    return Verifier([fleet.root.certificate], [chain_of(issued)]).judge(topic, payload, now)


@pytest.fixture(name="message", scope="module")
def _message(tmp_path_factory: pytest.TempPathFactory) -> tuple[Verifier, bytes]:
    issued = signer_of()
    verifier = Verifier([ACME.root.certificate], [chain_of(issued)])
    return verifier, signed_by(issued, tmp_path_factory.mktemp("signer"))


def test_what_the_fleet_signed_is_good(message: tuple[Verifier, bytes]) -> None:
    """No command would be taken."""
    verifier, payload = message
    assert Verdict.GOOD is verifier.judge(TOPIC, payload, NOW)


@given(data=st.data())
def test_with_any_byte_changed_it_is_refused(message: tuple[Verifier, bytes], data: st.DataObject) -> None:
    """A broker could make another command of one."""
    verifier, payload = message
    at = data.draw(st.integers(0, len(payload) - 1))
    other = bytes([payload[at] ^ data.draw(st.integers(1, 255))])
    assert Verdict.GOOD is not verifier.judge(TOPIC, payload[:at] + other + payload[at + 1 :], NOW)


@given(at=st.integers(0, len(BODY) + 300), more=st.binary(max_size=3))
def test_with_anything_cut_out_or_put_in_it_is_refused(message: tuple[Verifier, bytes], at: int, more: bytes) -> None:
    """A broker could lengthen or shorten a command."""
    verifier, payload = message
    if at < len(payload):
        assert Verdict.GOOD is not verifier.judge(TOPIC, payload[:at] + more + payload[at + len(more) + 1 :], NOW)
    if more:
        assert Verdict.GOOD is not verifier.judge(TOPIC, payload[:at] + more + payload[at:], NOW)


@pytest.mark.parametrize(
    "topic",
    [
        "devices/pump-08/down/commands/echo/c1",
        "devices/pump-07/down/commands/echo/c2",
        "devices/pump-07/down/commands/open/c1",
        "devices/pump-07/down/control",
        "devices/pump-07/down/state",
        "",
    ],
)
def test_on_any_other_topic_it_is_refused(message: tuple[Verifier, bytes], topic: str) -> None:
    """A broker could give one device's command to another, or run it again under another id."""
    verifier, payload = message
    assert Verdict.BAD_SIGNATURE is verifier.judge(topic, payload, NOW)


def test_without_a_signature_or_by_an_unknown_key_it_is_refused(tmp_path: Path) -> None:
    """A broker could invent commands."""
    assert Verdict.UNSIGNED is judged(signer_of(), BODY)
    assert Verdict.UNKNOWN_SIGNER is judged(signer_of(), signed_by(signer_of(), tmp_path))


def test_another_key_that_claims_the_name_of_ours_is_refused(tmp_path: Path) -> None:
    """Who knows the id of a key, which every message tells, could sign for it."""
    ours = signer_of()
    forged = DownlinkSigner(IdentityFiles(*signer_of().write(tmp_path)))
    key = forged._current()
    forged._key = replace(key, key_id=key_id_of(chain_of(ours)))
    assert Verdict.BAD_SIGNATURE is judged(ours, forged.sign(TOPIC, BODY, NOW))


@pytest.mark.parametrize(
    "changes",
    [
        {"usage": SERVER_AUTH},
        {"usage": CLIENT_AUTH},
        {"usage": None},
        {"name": "spiffe://acme.example/server/broker"},
        {"name": "spiffe://acme.example/server/enroll"},
        {"name": "spiffe://acme.example/device/dispatch-signing"},
        {"name": "https://acme.example/server/dispatch-signing"},
        {"issuer": ACME.devices},
        {"issuer": ACME.root},
        {"issuer": None},
        {"is_ca": True},
        {"key": ec.generate_private_key(ec.SECP384R1())},
        {"fleet": new_authority("other")},
    ],
    ids=(
        *("for-servers", "for-clients", "for-nothing", "broker", "enroll", "a-device", "no-spiffe"),
        *("by-devices-ca", "by-root", "by-itself", "a-ca", "another-curve", "another-fleet"),
    ),
)
def test_a_key_that_our_root_has_not_certified_for_this_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    """The key of a broker, of a server or of a device would be as good as dispatch's."""
    issued = signer_of(**changes)
    payload = _by_hand(issued) if "key" in changes else signed_by(issued, tmp_path)
    assert Verdict.SIGNER_NOT_OURS is judged(issued, payload)


def _by_hand(issued: Issued) -> bytes:
    """Named right, and signed by nobody: it is the key that must not be taken."""
    return join(BODY, encode_header(key_id_of(chain_of(issued)), NOW), bytes(64))


def test_a_chain_with_another_issuer_in_it_is_refused() -> None:
    """A genuine CA of ours would vouch for what it has not signed."""
    other = new_authority("other")
    issued = replace(signer_of(other), issuers=(ACME.servers.certificate,))
    assert Verdict.SIGNER_NOT_OURS is judged(issued, _by_hand(issued))


@pytest.mark.parametrize("days", [-2, 31])
def test_a_key_out_of_its_time_is_refused(days: int, tmp_path: Path) -> None:
    """A key that was stolen would be good for ever."""
    issued = signer_of()
    payload = signed_by(issued, tmp_path)
    assert Verdict.SIGNER_OUT_OF_DATE is judged(issued, payload, now=NOW + days * DAY)


def test_one_bad_chain_spoils_no_other(tmp_path: Path) -> None:
    """Whoever could add a chain would silence the fleet."""
    ours = signer_of()
    verifier = Verifier([ACME.root.certificate], [(b"x",), (b"x", b"y"), chain_of(ours)])
    assert Verdict.GOOD is verifier.judge(TOPIC, signed_by(ours, tmp_path), NOW)
