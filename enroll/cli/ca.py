"""`enroll ca`: the certificate authority."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
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
from enroll.cli.output import Row, ahead, minute, print_rows, say, time_or_none
from enroll.cli.revoking import open_to_revoke, print_revoked
from fleet.errors import Denied, FleetError, NotFound
from fleet.layout import AdminHome, CaFiles

if TYPE_CHECKING:
    from datetime import datetime

    from cryptography import x509

    from enroll.crl_publisher import Published
    from enroll.registry import Registry
    from enroll.registry.records import Reason


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


def crl(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="devices, servers, root or the number of a shard.")
    ] = None,
    to: Annotated[Path | None, typer.Option("--to", metavar="FILE", help="Write it here.", show_default="-")] = None,
    der: Annotated[bool, typer.Option("--der", help="In DER, not PEM.")] = False,
    passphrase_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="For root: holds the passphrase; else FLEET_CA_PASSPHRASE.")
    ] = None,
    output: OutputOption = Output.TABLE,
    home: HomeOption = None,
) -> None:
    """List the CRLs that are published, or print one as of this moment.

    The root's is made here, because its key is kept away: it is good for a year, and published from now on.
    """
    at = admin_home(home)
    if name is None:
        _list_crls(at, output)
        return
    made = _new_root_crl(at, passphrase_file) if name == "root" else _crl(at, name)
    data = made.der if der else made.pem
    if to is None:
        sys.stdout.buffer.write(data)
        return
    try:
        to.write_bytes(data)
    except OSError as error:
        raise FleetError(f"{to} cannot be written: {(error.strerror or '').lower()}") from error
    say(f"wrote {to}: number {made.issue.number}, good until {minute(made.issue.next_update)}")


def _list_crls(home: AdminHome, output: Output) -> None:
    from enroll.crl_publisher import read

    moment, rows = now(), []
    for path in sorted(home.crl("*").parent.glob("*.crl"), key=lambda found: (not found.stem.isdigit(), found.stem)):
        if (found := read(home, path.stem)) is None:
            continue
        issue = found.issue
        fields: dict[str, Any] = {
            "name": path.stem,
            "number": issue.number,
            "lines": found.lines,
            "this_update": time_or_none(issue.this_update),
            "next_update": time_or_none(issue.next_update),
            "file": str(path),
        }
        cells = (path.stem, str(found.lines), str(issue.number), ahead(issue.next_update, moment))
        rows.append(Row(path.stem, fields, cells))
    print_rows(output, ("NAME", "LINES", "NUMBER", "EXPIRES"), rows, nothing="none yet: enroll serve publishes them")


def _crl(home: AdminHome, name: str) -> Published:
    """As of now, whether a service runs or not; what is published is left to the service."""
    from enroll.authority import load
    from enroll.crl_publisher import read, sources
    from enroll.home import read_config

    config = read_config(home)
    authority = load(home, config.trust_domain, config.crl_url)
    with open_registry(home) as registry:
        found = [each for each in sources(registry, authority) if each.name == name]
        if not found:
            raise NotFound(f"there is no CRL {name[:40]!r}", hint="one of devices, servers, root, 0, 1, 2 ...")
        previous = read(home, name)
        return found[0].make(registry, None if previous is None else previous.issue, now())


def _new_root_crl(home: AdminHome, passphrase_file: Path | None) -> Published:
    from enroll.authority import load_root
    from enroll.cli.init import passphrase
    from enroll.crl import ROOT_LIFE, build, next_issue
    from enroll.crl_publisher import ROOT, published, read, write

    root, previous = load_root(home, passphrase(passphrase_file, is_new=False)), read(home, ROOT)
    issue = next_issue(None if previous is None else previous.issue, now(), ROOT_LIFE)
    made = published(build(root, issue, ()))
    try:
        write(home, ROOT, made)
    except OSError as error:
        raise FleetError(f"{home.crl(ROOT)} cannot be written: {(error.strerror or '').lower()}") from error
    return made


def revoke(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The issuing CA: devices.")],
    reason: ReasonOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say how many, revoke nothing.")] = False,
    yes: YesOption = False,
    home: HomeOption = None,
) -> None:
    """End every certificate that a CA issued, but the brokers' and dispatch's.

    Those carry the news: without them nobody would hear of it. Devices come again by a token with --replace.
    """
    from enroll.authority import DEVICES, SERVERS
    from enroll.service import count_issued

    why, at = parse_reason(reason), admin_home(home)
    if name == SERVERS:
        raise Denied("the servers would go on showing what is revoked", hint="enroll cert revoke SERIAL ends one")
    if name != DEVICES:
        raise NotFound(f"there is no issuing CA {name[:40]!r}", hint="enroll ca show")
    with open_to_revoke(at) as registry:
        count = count_issued(registry, name)
        if dry_run:
            print(count)
            return
        confirm(f"revoke all {count} certificates that {name} issued, for good?", yes=yes)
        done = print_revoked(_revoke_issued(registry, name, why), count)
    ended = "1 certificate is" if done == 1 else f"{done} certificates are"
    say(f"{ended} revoked; enroll token create --replace gives a name to a new key")


def _revoke_issued(registry: Registry, name: str, why: Reason | None) -> Iterator[list[str]]:
    """Whose certificates these were, batch by batch. Raises: FleetError."""
    from enroll.service import revoke_some_issued

    last = 0
    while some := revoke_some_issued(registry, name, last, by=user(), now=now(), reason=why):
        last = some[-1].number
        yield [each.principal for each in some]


VERBS: Verbs = {"show": show, "crl": crl, "export-root": export_root, "revoke": revoke}
