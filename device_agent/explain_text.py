"""The words of `device-agent explain`: every function gives the lines of one step, at most 100 columns wide."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from device_agent.failures import Failure
from device_agent.handshake import Kind, Trace
from fleet import pki
from fleet.address import Address
from fleet.errors import printable
from fleet.identity import DeviceId, Principal
from fleet.layout import Credential
from fleet.policy import DEFAULT_POLICY

WIDTH: Final = 100
_LABEL: Final = 13
_EKU_NAMES: Final = {ExtendedKeyUsageOID.SERVER_AUTH: "serverAuth", ExtendedKeyUsageOID.CLIENT_AUTH: "clientAuth"}
_PREFIXES: Final[dict[type[x509.GeneralName], str]] = {x509.DNSName: "DNS:", x509.IPAddress: "IP:"}
_CONNACK_CODES: Final = {
    0: "connection accepted",
    1: "refused: protocol version",
    2: "refused: client id",
    3: "refused: server unavailable",
    4: "refused: user name or password",
    5: "refused: not authorised",
}


def title(credential: Credential, now: datetime) -> Iterator[str]:
    yield f"How {credential.device} ({credential.role.value}) speaks with its fleet, {now:%Y-%m-%d %H:%M:%S} UTC"


def where(brokers: Sequence[Address], source: str) -> Iterator[str]:
    yield from _heading(1, "Where to: name, address, TCP")
    yield row("broker", f"mqtts://{brokers[0]}, because {source}")
    if len(brokers) > 1:
        yield row("", f"and if that fails: {', '.join(map(str, brokers[1:]))}")


def hello(trace: Trace, version: str, cipher: str, host: str) -> Iterator[str]:
    yield from _heading(2, "Hello: what both can do, and a fresh key from each")
    yield _message(trace, Kind.CLIENT_HELLO, True, f"I speak TLS 1.3 and 1.2; I want {host}")
    yield _message(trace, Kind.SERVER_HELLO, False, f"then {version} with {cipher}")
    group = trace.key_group or "a group unknown here"
    yield from _prose(
        f"Each side made a key for this one connection ({group}, ephemeral) and sent its public half. Both now compute "
        "the same secret, and nobody who listened can. Stealing a certificate's key later does not open it."
    )


def server(trace: Trace, chain: Sequence[x509.Certificate], now: datetime, trust: Path) -> Iterator[str]:
    yield from _heading(3, "The broker shows who it is")
    sent = len(trace.certificates(ours=False))
    yield _message(trace, Kind.CERTIFICATE_REQUEST, False, "and who are you?")
    yield _message(trace, Kind.CERTIFICATE, False, f"{sent} certificates: its own, and what issued that")
    yield from _certificate("leaf", chain[0], now)
    for issuer in chain[1:-1]:
        yield from _issuer("issued by", issuer)
    yield from _issuer("root", chain[-1])
    yield row("", f"not sent: it is ours, from {trust}")
    yield row("", f"pin {pki.pin_of(chain[-1]).hex()}")
    yield _proof(trace, ours=False)
    yield _message(trace, Kind.FINISHED, False, "and this is a checksum of all we said")


def checks(leaf: x509.Certificate, host: str) -> Iterator[str]:
    yield "    verified here, before a byte of MQTT was sent:"
    for done in (
        "the chain of signatures ends in our own root, and in nothing that the system trusts",
        "every certificate in it is valid now",
        f"it is for {host}",
        f"it may be used by servers ({', '.join(_usages(leaf))})",
        f"it is the broker of this fleet, not another of its servers ({_spiffe(leaf)})",
    ):
        yield from _wrapped(f"      yes  {done}", 11)


def client(trace: Trace, own: Sequence[x509.Certificate], now: datetime, key: Path) -> Iterator[str]:
    yield from _heading(4, "This device shows who it is")
    yield _message(trace, Kind.CERTIFICATE, True, f"{len(own)} certificates: mine, and what issued that")
    yield from _certificate("leaf", own[0], now)
    for issuer in own[1:]:
        yield from _issuer("issued by", issuer)
    yield _proof(trace, ours=True)
    yield row("", f"made with {key}, which has never left this device")
    yield _message(trace, Kind.FINISHED, True, "and this is my checksum of all we said")


def traffic(cipher: str, group: str | None) -> Iterator[str]:
    yield from _heading(5, "From here on")
    yield row("cipher", cipher)
    yield from _prose(
        "One symmetric key for each direction, derived from the secret of step 2"
        f"{f' ({group})' if group else ''} and from all messages above. Every byte is encrypted and authenticated with "
        "them; the keys of the certificates have done their work."
    )


def connect(credential: Credential, keepalive_seconds: int) -> Iterator[str]:
    yield from _heading(6, "MQTT, inside")
    yield _arrow(True, "CONNECT", None, f"client id {credential.device}, just as the CN above; keep the session")
    yield row("", f"no user name, no password; keep-alive {keepalive_seconds} s")


def connack(code: int, session_present: bool) -> Iterator[str]:
    session = ", with the session of last time" if session_present else ""
    yield _arrow(False, "CONNACK", None, f"{code}: {_CONNACK_CODES.get(code, 'unknown')}{session}")


def agent_is_connected(credential: Credential, said: str) -> Iterator[str]:
    yield from _heading(6, "MQTT, inside")
    yield from _prose(
        f"Here {credential.device} would send CONNECT with its CN as client id. The agent that runs on this home has "
        f"done so already and is {said}. A second CONNECT would take its place, so none is sent."
    )


def policy(credential: Credential) -> Iterator[str]:
    grants = DEFAULT_POLICY.grants(Principal(credential.role, DeviceId(credential.device)))
    yield from _prose("What it may do follows from the CN alone (unless fleet.toml adds to it):")
    yield row("publish", ", ".join(allowed for allowed, _ in grants.publish) or "nothing")
    yield row("subscribe", ", ".join(allowed for allowed, _ in grants.subscribe) or "nothing")
    yield row("else", "no")


def broken(trace: Trace, failure: Failure, now: datetime) -> Iterator[str]:
    """What was seen of a conversation that did not come to its end."""
    yield from _heading(7 if trace.find(Kind.FINISHED, ours=True) else 3, "It ends here")
    for message in trace.messages:
        yield _arrow(message.is_ours, message.kind.title, len(message.data), "")
    for is_ours, alert in trace.alerts:
        yield _arrow(is_ours, "Alert", None, alert)
    for at, der in enumerate(trace.certificates(ours=False)):
        try:
            certificate = x509.load_der_x509_certificate(der)
        except ValueError:
            continue
        yield from _certificate("leaf", certificate, now) if at == 0 else _issuer("issued by", certificate)
        if at == 0:
            yield row("  issuer", _name(certificate.issuer))
    yield row("so", f"{failure.cause.value}: {failure.detail}")
    if not trace.find(Kind.FINISHED, ours=True):
        yield from _prose("Nothing of MQTT was sent, and the key of this device was not used.")


def row(label: str, value: str) -> str:
    """A label and its value; long values go on under themselves."""
    return "\n".join(_wrapped(f"    {label:<{_LABEL}}{printable(value)}", 4 + _LABEL))


def _heading(number: int, words: str) -> Iterator[str]:
    yield ""
    yield f" {number}. {words}"


def _prose(words: str) -> Iterator[str]:
    yield from textwrap.wrap(words, WIDTH, initial_indent="    ", subsequent_indent="    ")


def _wrapped(line: str, indent: int) -> list[str]:
    return (
        textwrap.wrap(line, WIDTH, subsequent_indent=" " * indent, drop_whitespace=True, break_on_hyphens=False)
        if len(line) > WIDTH
        else [line.rstrip()]
    )


def _arrow(is_ours: bool, name: str, size: int | None, words: str) -> str:
    number = f"{size:>5} B" if size is not None else " " * 7
    line = f"    {'-->' if is_ours else '<--'} {name:<19}{number}   {printable(words)}"
    return "\n".join(_wrapped(line, 37))


def _message(trace: Trace, kind: Kind, is_ours: bool, words: str) -> str:
    message = trace.find(kind, ours=is_ours)
    return _arrow(is_ours, kind.title, None if message is None else len(message.data), words)


def _proof(trace: Trace, *, ours: bool) -> str:
    """The proof of possession: in TLS 1.2 the server's is the signature in its key exchange."""
    kind = Kind.CERTIFICATE_VERIFY
    if not ours and trace.find(kind, ours=False) is None:
        kind = Kind.SERVER_KEY_EXCHANGE
    algorithm = trace.signature(ours=ours) or "a signature"
    who = "I hold my" if ours else "it holds its"
    return _message(trace, kind, ours, f"{algorithm} over all of this: {who} key")


def _certificate(label: str, certificate: x509.Certificate, now: datetime) -> Iterator[str]:
    yield row(label, f"{_name(certificate.subject)}, {_key(certificate)}")
    names = _alternative_names(certificate)
    if names:
        yield row("  names", ", ".join(names))
    yield row("  use", ", ".join(_usages(certificate)) or "any")
    yield row("  serial", f"{certificate.serial_number:x}")
    yield row("  valid", _validity(certificate, now))


def _issuer(label: str, certificate: x509.Certificate) -> Iterator[str]:
    usages = _usages(certificate)
    limits = f", may issue {' and '.join(usages)} only" if usages else ""
    yield row(label, f"{_name(certificate.subject)}, {_key(certificate)}{limits}")


def _name(name: x509.Name) -> str:
    return name.rfc4514_string() or "(empty)"


def _key(certificate: x509.Certificate) -> str:
    match certificate.public_key():
        case ec.EllipticCurvePublicKey() as key:
            return f"EC {key.curve.name}"
        case ed25519.Ed25519PublicKey():
            return "Ed25519"
        case rsa.RSAPublicKey() as key:
            return f"RSA {key.key_size}"
        case other:
            return type(other).__name__


def _alternative_names(certificate: x509.Certificate) -> list[str]:
    found = pki.extension(certificate, x509.SubjectAlternativeName)
    return [_PREFIXES.get(type(name), "") + str(name.value) for name in found.value] if found else []


def _spiffe(certificate: x509.Certificate) -> str:
    return next((name for name in _alternative_names(certificate) if name.startswith("spiffe://")), "nameless")


def _usages(certificate: x509.Certificate) -> list[str]:
    found = pki.extension(certificate, x509.ExtendedKeyUsage)
    return [_EKU_NAMES.get(oid, oid.dotted_string) for oid in found.value] if found else []


def _validity(certificate: x509.Certificate, now: datetime) -> str:
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > end:
        state = f"expired {(now - end).days} days ago"
    elif now < start:
        state = "not yet: by this device's clock"
    else:
        days = (end - now).days
        state = f"{days} days left" if days >= 2 else f"{(end - now).total_seconds() / 60:.0f} minutes left"
    return f"{start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC ({state})"
