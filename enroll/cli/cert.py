"""`enroll cert`: every certificate that was issued."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from enroll.cli.options import HomeOption, Output, OutputOption, Verbs, admin_home, now, open_registry
from enroll.cli.output import Row, ahead, minute, print_one, print_rows, time_or_none
from fleet.errors import NotFound
from fleet.identity import DeviceId, Serial

if TYPE_CHECKING:
    from enroll.registry.records import CertificateRecord

_SERVER = "(server)"


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
    serial: Annotated[str, typer.Argument(metavar="SERIAL", help="In hexadecimal, as cert list shows it.")],
    output: OutputOption = Output.TABLE,
    home: HomeOption = None,
) -> None:
    """Show one certificate."""
    from enroll.registry import identity

    wanted = Serial(serial.replace(":", "").lower().lstrip("0"))
    with open_registry(admin_home(home)) as registry, registry.read() as transaction:
        found = identity.find_certificate(transaction, wanted)
    if found is None:
        raise NotFound(f"there is no certificate {wanted}", hint="enroll cert list")
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
    ]
    row = Row(found.serial, _fields(found) | {"names": names, "pem": _pem(found)}, tuple(value for _, value in shown))
    print_one(output, row, [label for label, _ in shown])


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


VERBS: Verbs = {"list": list_, "show": show}
