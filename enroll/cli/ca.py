"""`enroll ca`: the certificate authority."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from enroll.cli.options import HomeOption, Output, OutputOption, Verbs, admin_home, now
from enroll.cli.output import Row, ahead, print_rows, say, time_or_none
from fleet.errors import FleetError
from fleet.layout import CaFiles

if TYPE_CHECKING:
    from datetime import datetime

    from cryptography import x509


def show(output: OutputOption = Output.TABLE, home: HomeOption = None) -> None:
    """Show the root and the issuing CAs. The root's pin is what a device checks before it sends a token."""
    from enroll.authority import read_certificate

    at, moment = admin_home(home), now()
    named: tuple[tuple[str, CaFiles], ...] = (
        ("root", at.root),
        ("devices", at.devices_ca),
        ("servers", at.servers_ca),
    )
    rows = [_row(name, read_certificate(files.certificate), moment) for name, files in named]
    print_rows(output, ("NAME", "SUBJECT", "EXPIRES", "PIN"), rows, nothing="")


def _row(name: str, certificate: x509.Certificate, moment: datetime) -> Row:
    from fleet import pki

    subject, pin = certificate.subject.rfc4514_string(), pki.pin_of(certificate).hex()
    not_after = certificate.not_valid_after_utc
    fields: dict[str, Any] = {
        "name": name,
        "subject": subject,
        "serial": str(pki.serial_of(certificate)),
        "not_before": time_or_none(certificate.not_valid_before_utc),
        "not_after": time_or_none(not_after),
        "pin": pin,
    }
    return Row(name, fields, (name, subject, ahead(not_after, moment), pin))


def export_root(
    to: Annotated[Path | None, typer.Option("--to", metavar="FILE", help="Write it here.", show_default="-")] = None,
    home: HomeOption = None,
) -> None:
    """Print the root certificate in PEM: what everyone who connects must trust."""
    from cryptography.hazmat.primitives.serialization import Encoding

    from enroll.authority import read_certificate

    pem = read_certificate(admin_home(home).root.certificate).public_bytes(Encoding.PEM).decode()
    if to is None:
        print(pem, end="")
        return
    try:
        to.write_text(pem)
    except OSError as error:
        raise FleetError(f"{to} cannot be written: {(error.strerror or '').lower()}") from error
    say(f"wrote {to}")


VERBS: Verbs = {"show": show, "export-root": export_root}
