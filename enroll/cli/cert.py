"""`enroll cert`: every certificate that was issued."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from enroll.cli.options import (
    HomeOption,
    Output,
    OutputOption,
    ReasonOption,
    Verbs,
    YesOption,
    admin_home,
    confirm,
    now,
    open_registry,
    parse_reason,
    user,
)
from enroll.cli.output import Row, ahead, minute, print_one, print_rows, say, time_or_none
from enroll.cli.revoking import open_to_revoke
from fleet.errors import NotFound
from fleet.identity import DeviceId, Serial

if TYPE_CHECKING:
    from enroll.registry.records import CertificateRecord, Revocation

_SERVER = "(server)"

SerialArgument = Annotated[str, typer.Argument(metavar="SERIAL", help="In hexadecimal, as cert list shows it.")]


def list_(
    device: Annotated[str | None, typer.Option(metavar="ID", help="Only of this id.", show_default="all")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, metavar="N", help="The newest N of all.")] = 1000,
    output: OutputOption = Output.TABLE,
    home: HomeOption = None,
) -> None:
    """List the newest certificates, oldest first."""
    from enroll.registry import identity, overview

    owner, moment = None if device is None else DeviceId(device), now()
    with open_registry(admin_home(home)) as registry, registry.read() as transaction:
        if owner is None:
            found = overview.newest_certificates(transaction, limit)
        elif identity.find_principal(transaction, owner) is None:
            raise NotFound(f"there is no {owner}", hint="enroll device list")
        else:
            found = identity.certificates_of(transaction, owner)
    rows = [
        Row(c.serial, _fields(c), (c.serial, c.principal or _SERVER, c.state.value, ahead(c.not_after, moment)))
        for c in found
    ]
    print_rows(output, ("SERIAL", "ID", "STATE", "EXPIRES"), rows, nothing="there are no certificates")


def show(
    serial: SerialArgument,
    output: OutputOption = Output.TABLE,
    home: HomeOption = None,
) -> None:
    """Show one certificate."""
    from enroll.service import find_certificate

    with open_registry(admin_home(home)) as registry:
        found, ended = find_certificate(registry, _parse_serial(serial))
    names = _names(found)
    shown = [
        ("serial", found.serial),
        ("id", found.principal or _SERVER),
        ("state", found.state.value),
        ("names", ", ".join(names)),
        ("profile", found.profile),
        ("enrolment", str(found.epoch)),
        ("generation", str(found.generation)),
        ("renews", found.parent or "-"),
        ("valid from", minute(found.not_before)),
        ("valid until", minute(found.not_after)),
        ("key sha-256", found.key.hex()),
        *_ended(ended),
    ]
    why = {
        "ended_at": time_or_none(None if ended is None else ended.at),
        "reason": None if ended is None or ended.reason is None else ended.reason.value,
    }
    fields = _fields(found) | why | {"names": names, "pem": _pem(found)}
    row = Row(found.serial, fields, tuple(value for _, value in shown))
    print_one(output, row, [label for label, _ in shown])


def _ended(ended: Revocation | None) -> Iterator[tuple[str, str]]:
    """What a CRL says of it."""
    if ended is not None:
        yield "not good since", minute(ended.at)
        yield "reason", "unspecified" if ended.reason is None else ended.reason.value


def revoke(
    serial: SerialArgument, reason: ReasonOption = None, yes: YesOption = False, home: HomeOption = None
) -> None:
    """End one certificate for good, and the connection that shows it.

    Whoever holds it stays what it is: with another certificate, or a new one, it comes in.
    """
    from enroll.service import find_certificate, revoke_certificate

    wanted, why = _parse_serial(serial), parse_reason(reason)
    with open_to_revoke(admin_home(home)) as registry:
        holder = find_certificate(registry, wanted)[0].principal
        confirm(f"revoke certificate {wanted} of {holder or 'a server'} for good?", yes=yes)
        ended = revoke_certificate(registry, wanted, by=user(), now=now(), reason=why)
    say(f"{wanted} is revoked" + (" already" if ended.is_repeated else ""))
    if holder is not None and ended.left:
        say(f"{holder} may still connect with {', '.join(ended.left)}; enroll device revoke {holder} keeps it out")
    elif holder is not None:
        say(f"{holder} cannot connect; enroll token create --device {holder} --replace gives its name to a new key")


def _parse_serial(text: str) -> Serial:
    return Serial(text.replace(":", "").lower().lstrip("0"))


def _fields(record: CertificateRecord) -> dict[str, Any]:
    return {
        "serial": record.serial,
        "id": record.principal,
        "state": record.state.value,
        "profile": record.profile,
        "epoch": record.epoch,
        "generation": record.generation,
        "parent": record.parent,
        "not_before": time_or_none(record.not_before),
        "not_after": time_or_none(record.not_after),
        "key_sha256": record.key.hex(),
    }


def _names(record: CertificateRecord) -> list[str]:
    from cryptography import x509

    names = x509.load_der_x509_certificate(record.der).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return [str(name.value) for name in names.value]


def _pem(record: CertificateRecord) -> str:
    import ssl

    return ssl.DER_cert_to_PEM_cert(record.der)


VERBS: Verbs = {"list": list_, "show": show, "revoke": revoke}
