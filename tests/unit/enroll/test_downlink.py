"""Dispatch's signature, and the key that it is made with."""

from __future__ import annotations

import secrets
import shutil
import ssl
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from device_agent.verdicts import Verdict
from device_agent.verifying import Verifier
from enroll import authority, downlink
from enroll.downlink import CannotSign, DownlinkSigner
from enroll.own_identities import Maker, number_in_use, signing_identity, use
from enroll.renewal import Renewal
from fleet import pki
from fleet import signers as told
from fleet.config import load
from fleet.downlink import split
from fleet.errors import FleetError
from fleet.messages import decode_object
from tests.fleets import NOW, Office, open_office

TOPIC, BODY = "devices/pump-07/down/control", b'{"v":1,"id":"pump-07"}'
UNTIL = NOW + timedelta(minutes=1, microseconds=1)


def signer(office: Office) -> DownlinkSigner:
    return DownlinkSigner(office.home.dispatch_signing)


def renewal(office: Office) -> Renewal:
    config = load(office.home.config.read_text())
    return Renewal(office.home, config, office.registry, office.authority, secrets.token_bytes)


def rotate(office: Office) -> None:
    """The next key, as a renewal makes it."""
    own = signing_identity(office.home)
    number = number_in_use(own) + 1
    with office.registry.write() as transaction:
        config = load(office.home.config.read_text())
        Maker(transaction, office.authority, config, "", office.now, secrets.token_bytes).make(own, number)
    use(own, number)


def judged(office: Office, payload: bytes) -> Verdict:
    """By a device that was told of the signers just now."""
    verifier = Verifier([office.authority.root], downlink.signers(office.home))
    return verifier.judge(TOPIC, payload, office.now)


def test_what_dispatch_signs_a_device_takes(office: Office) -> None:
    """The fleet could command nobody."""
    assert Verdict.GOOD is judged(office, signer(office).sign(TOPIC, BODY, UNTIL))


def test_openssl_verifies_it_too(office: Office, tmp_path: Path) -> None:
    """Only our own programs could tell what the fleet has said."""
    signed = split(signer(office).sign(TOPIC, BODY, UNTIL))
    assert signed is not None
    half = len(signed.signature) // 2
    r, s = int.from_bytes(signed.signature[:half]), int.from_bytes(signed.signature[half:])
    public = authority.read_certificate(office.home.dispatch_signing.certificate).public_key()
    (tmp_path / "key").write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    (tmp_path / "signature").write_bytes(encode_dss_signature(r, s))
    (tmp_path / "content").write_bytes(signed.protected + b"." + TOPIC.encode() + b"\0" + BODY)
    command = ["openssl", "dgst", "-sha256", "-verify", "key", "-signature", "signature", "content"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)


def test_it_is_good_no_shorter_than_was_asked(office: Office) -> None:
    """A command would be refused in the second before its deadline."""
    signed = split(signer(office).sign(TOPIC, BODY, UNTIL))
    assert signed is not None
    assert NOW + timedelta(minutes=1, seconds=1) == signed.until


def test_the_next_key_is_used_at_once_and_the_one_before_stays_good(office: Office) -> None:
    """What is on its way when the key is renewed would be refused, or dispatch would need a restart."""
    dispatch = signer(office)
    before = dispatch.sign(TOPIC, BODY, UNTIL)
    rotate(office)
    after = dispatch.sign(TOPIC, BODY, UNTIL)
    found, next_ = split(before), split(after)
    assert found is not None
    assert next_ is not None
    assert [next_.key_id, found.key_id] == [told.key_id_of(each) for each in downlink.signers(office.home)]
    assert [Verdict.GOOD, Verdict.GOOD] == [judged(office, before), judged(office, after)]
    rotate(office)
    assert Verdict.UNKNOWN_SIGNER is judged(office, before)


def test_without_a_key_nothing_is_sent(office: Office) -> None:
    """It would go out unsigned, which is what an attacker wants."""
    office.home.dispatch_signing.certificate.parent.unlink()
    assert () == downlink.signers(office.home)
    with pytest.raises(FleetError):
        signer(office).sign(TOPIC, BODY, UNTIL)


def test_a_damaged_key_is_not_the_same_as_none(office: Office) -> None:
    """A device that asks for the first time hears that nobody signs, and does what a broker has made up."""
    office.home.dispatch_signing.certificate.resolve().write_bytes(b"")
    with pytest.raises(FleetError):
        downlink.signers(office.home)


def test_a_damaged_key_from_before_takes_the_present_one_from_nobody(office: Office) -> None:
    """A file that nobody uses any more would keep the fleet from every command."""
    before = office.home.dispatch_signing.certificate.resolve()
    rotate(office)
    before.write_bytes(b"")
    (chain,) = downlink.signers(office.home)
    found = split(signer(office).sign(TOPIC, BODY, UNTIL))
    assert found is not None
    assert found.key_id == told.key_id_of(chain)


def test_a_home_that_was_made_before_signatures_gets_a_key(tmp_path: Path) -> None:
    """A fleet that is updated could command nobody."""
    with open_office(tmp_path / "fleet") as office:
        own = signing_identity(office.home)
        shutil.rmtree(own.folder(1))
        own.link.unlink()
        assert [] == renewal(office).renew_due(NOW)
        renewal(office).make_missing(NOW)
        assert Verdict.GOOD is judged(office, signer(office).sign(TOPIC, BODY, UNTIL))
        renewal(office).make_missing(NOW)
        assert 1 == number_in_use(own)


def test_its_certificate_is_of_its_profile_and_of_the_ca_of_servers(office: Office) -> None:
    """A CSR that a device sends could bring it the name of dispatch."""
    certificate = authority.read_certificate(office.home.dispatch_signing.certificate)
    assert [] == pki.violations(certificate, pki.DISPATCH_SIGNING)
    certificate.verify_directly_issued_by(office.authority.servers.certificate)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [x509.UniformResourceIdentifier("spiffe://acme.example/server/dispatch-signing")] == list(names)


def test_a_key_that_cannot_be_used_is_told_with_what_to_do(office: Office) -> None:
    """An admin learns that nothing reaches the devices from a device that did not do it."""
    files, dispatch = office.home.dispatch_signing, signer(office)
    assert None is downlink.problem_of(files)
    whole = files.key.read_bytes()
    files.key.write_bytes(b"")
    assert not dispatch.look(0.0)
    for problem in (dispatch.problem, downlink.problem_of(files)):
        assert problem is not None
        assert "key.pem is not a private key in PEM" in problem.message
        assert f"restore {files.key.parent} and " in problem.hint
    files.key.write_bytes(whole)
    files.key.chmod(0o644)
    problem = downlink.problem_of(files)
    assert problem is not None
    assert "chmod 600" in problem.hint


@pytest.mark.parametrize("damaged", ["key", "certificate", "both"])
def test_a_key_that_was_repaired_is_used_without_a_restart(office: Office, damaged: str) -> None:
    """The service has to be restarted after a backup was restored, and nobody knows."""
    files, dispatch = office.home.dispatch_signing, signer(office)
    broken = [
        path
        for path in (files.key, files.certificate)
        if damaged in ("both", "key" if path == files.key else "certificate")
    ]
    whole = [path.read_bytes() for path in broken]
    for path in broken:
        path.write_bytes(b"damaged")
    assert not dispatch.look(0.0)
    with pytest.raises(CannotSign):
        dispatch.sign(TOPIC, BODY, UNTIL)
    for path, data in zip(broken, whole, strict=True):
        path.write_bytes(data)
    assert not dispatch.look(0.5), "it is read at every turn"
    assert dispatch.look(1.0)
    assert None is dispatch.problem
    assert not dispatch.look(1.1)
    assert Verdict.GOOD is judged(office, dispatch.sign(TOPIC, BODY, UNTIL))


@pytest.mark.parametrize("profile", [pki.SERVER, pki.CLIENT])
def test_no_other_certificate_of_the_fleet_passes_for_it(office: Office, profile: pki.Profile) -> None:
    """A broker's or a device's key could sign commands."""
    home = office.home
    files = home.broker_server if profile is pki.SERVER else home.dispatch
    certificate = authority.read_certificate(files.certificate)
    assert [] == pki.violations(certificate, profile)
    assert pki.violations(certificate, pki.DISPATCH_SIGNING)
    assert pki.violations(authority.read_certificate(home.dispatch_signing.certificate), profile)


def test_a_device_is_told_who_signs(office: Office) -> None:
    """It would refuse all that the fleet says."""
    device = office.enrolled("pump-07")
    assert "signers" not in decode_object(office.get("/v1/config", device).body), "as a service that is older"
    office.app.signers = lambda: downlink.signers(office.home)
    answer = decode_object(office.get("/v1/config", device).body)
    assert downlink.signers(office.home) == told.from_json(answer["signers"])


@pytest.mark.parametrize("is_client", [True, False])
def test_tls_takes_it_for_nobody(office: Office, is_client: bool) -> None:
    """Whoever reads the signing key could connect with it, or be a server with it."""
    files, cas = office.home.dispatch_signing, office.authority
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if is_client else ssl.PROTOCOL_TLS_CLIENT)
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT if is_client else ssl.PROTOCOL_TLS_SERVER)
    for context in (ours, theirs):
        if context.protocol is ssl.PROTOCOL_TLS_CLIENT:
            context.check_hostname = False
        pem = b"".join(each.public_bytes(Encoding.PEM) for each in cas.certificates)
        context.load_verify_locations(cadata=pem.decode())
    ours.verify_mode = ssl.CERT_REQUIRED
    theirs.load_cert_chain(files.certificate, files.key)
    if is_client:
        server = office.home.enroll_server
        ours.load_cert_chain(server.certificate, server.key)
    with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
        _handshake(ours, theirs, is_client=is_client)


def _handshake(ours: ssl.SSLContext, theirs: ssl.SSLContext, *, is_client: bool) -> None:
    """In memory, until it is over or `ours` refuses."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    judge = ours.wrap_bio(up, down, server_side=is_client)
    other = theirs.wrap_bio(down, up, server_side=not is_client)
    for _ in range(6):
        for side in (other, judge):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
