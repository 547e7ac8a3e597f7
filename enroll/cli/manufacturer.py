"""`enroll manufacturer`: devices that come with a certificate of their maker, and the id that each may have."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from enroll.cli.options import (
    HomeOption,
    Output,
    OutputOption,
    Verbs,
    YesOption,
    admin_home,
    confirm,
    now,
    open_registry,
    user,
)
from enroll.cli.output import Row, print_rows, say, time_or_none
from enroll.cli.progress import progress
from fleet.errors import InvalidInput, reason_of
from fleet.identity import DeviceId
from fleet.layout import AdminHome

if TYPE_CHECKING:
    from cryptography import x509

    from enroll.registry.records import ClaimRecord
    from enroll.service.manufacturers import Manufacturer

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="What you call the manufacturer.")]
SerialArgument = Annotated[str, typer.Argument(metavar="SERIAL", help="The hardware's, as its certificate has it.")]
_BATCH = 1000


def add(
    name: NameArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The CA that signs its devices' certificates, in PEM.")],
    home: HomeOption = None,
) -> None:
    """Trust a manufacturer's CA: its certificate lets in the hardware that you claim, and no other."""
    from enroll.service import add_manufacturer

    at = admin_home(home)
    with open_registry(at) as registry:
        add_manufacturer(registry, name, _certificates(file), _ours(at), by=user(), now=now())
    say(f"{name} is trusted for hardware that is claimed: enroll manufacturer claim {name} SERIAL ID")


def _certificates(file: Path) -> list[x509.Certificate]:
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificates(file.read_bytes())
    except OSError as error:
        raise InvalidInput(f"{file} cannot be read: {reason_of(error)}", hint="give certificates in PEM") from error
    except ValueError as error:
        raise InvalidInput(f"{file} holds no certificates in PEM", hint="`openssl x509 -in FILE` makes one") from error


def _ours(home: AdminHome) -> list[x509.Certificate]:
    from enroll.authority import read_certificate

    return [read_certificate(ca.certificate) for ca in (home.root, home.devices_ca, home.servers_ca)]


def list_(output: OutputOption = Output.TABLE, home: HomeOption = None) -> None:
    """List the manufacturers' CAs that are trusted."""
    from enroll.service import trusted_manufacturers

    with open_registry(admin_home(home)) as registry:
        rows = [_row(found) for found in trusted_manufacturers(registry)]
    headers = ("NAME", "SUBJECT", "EXPIRES", "CLAIMS", "SHA-256")
    print_rows(output, headers, rows, nothing="no manufacturer is trusted")


def _row(found: Manufacturer) -> Row:
    from cryptography import x509

    certificate, fingerprint = x509.load_der_x509_certificate(found.ca.der), found.ca.fingerprint.hex()
    fields: dict[str, Any] = {
        "name": found.ca.manufacturer,
        "subject": certificate.subject.rfc4514_string(),
        "not_after": time_or_none(certificate.not_valid_after_utc),
        "claims": found.claims,
        "sha256": fingerprint,
    }
    until = f"{certificate.not_valid_after_utc:%Y-%m-%d}"
    cells = (found.ca.manufacturer, fields["subject"], until, str(found.claims), fingerprint[:16])
    return Row(found.ca.manufacturer, fields, cells)


def remove(name: NameArgument, yes: YesOption = False, home: HomeOption = None) -> None:
    """Trust a manufacturer no more. Devices that it let in already stay, and so do the claims."""
    from enroll.service import remove_manufacturer

    at = admin_home(home)
    confirm(f"trust {name} no more?", yes=yes)
    with open_registry(at) as registry:
        remove_manufacturer(registry, name, by=user(), now=now())
    say(f"{name} is not trusted any more")


def claim(
    name: NameArgument,
    serial: SerialArgument,
    device: Annotated[str | None, typer.Argument(metavar="[ID]", help="The id that it may have.")] = None,
    group: Annotated[list[str] | None, typer.Option(metavar="G", help="A group to be in; may be repeated.")] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="It may come once more; also for an id that is taken.")
    ] = False,
    home: HomeOption = None,
) -> None:
    """Let one piece of hardware have one id."""
    from enroll.service import add_claims, allow_once_more, check_known, new_claim

    if device is None and not replace:
        raise InvalidInput("a claim is for an id", hint="enroll manufacturer claim NAME SERIAL ID")
    with open_registry(admin_home(home)) as registry:
        check_known(registry, name)
        is_new = False
        if device is not None:
            wanted = new_claim(name, serial, DeviceId(device), now(), groups=tuple(group or ()), replace=replace)
            is_new = add_claims(registry, [wanted], by=user(), now=now()) == 1
        if device is None or (replace and not is_new):
            device = allow_once_more(registry, name, serial, by=user(), now=now()).device
    say(f"{serial} of {name} may become {device}")


def import_(
    name: NameArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="CSV: serial, id, and if you like groups and profile.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the file, change nothing.")] = False,
    home: HomeOption = None,
) -> None:
    """Claim many, from a list: all that is in it, or nothing."""
    from enroll.csv_rows import check_problems
    from enroll.service import add_claims, check_claims, check_known

    wanted, count = list(_claims_in(name, file, now())), 0
    with open_registry(admin_home(home)) as registry:
        check_known(registry, name)
        check_problems(check_claims(registry, wanted))
        if dry_run:
            say(f"{len(wanted)} rows are right")
            return
        with progress("claims", len(wanted)) as bar:
            for start in range(0, len(wanted), _BATCH):
                batch = wanted[start : start + _BATCH]
                count += add_claims(registry, batch, by=user(), now=now())
                bar.advance(len(batch))
    say(f"claimed {count}; {len(wanted) - count} were claimed already")


def _claims_in(name: str, file: Path, moment: datetime) -> Iterator[ClaimRecord]:
    from enroll.csv_rows import check_rows, device_problem, read_rows
    from enroll.service import new_claim

    try:
        with file.open(encoding="utf-8", newline="") as lines:
            rows = read_rows(lines, required=("serial", "id"), optional=("groups", "profile"))
    except (OSError, UnicodeDecodeError) as error:
        hint = "it has a header: serial,id,groups,profile"
        raise InvalidInput(f"{file} cannot be read: {reason_of(error)}", hint=hint) from error
    check_rows(rows, ("serial", "id"), device_problem)
    for row in rows:
        groups = tuple(row.cells.get("groups", "").replace(";", " ").split())
        profile = row.cells.get("profile", "client")
        yield new_claim(name, row.cells["serial"], DeviceId(row.cells["id"]), moment, groups=groups, profile=profile)


def claims(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, metavar="N", help="The first N.")] = 1000,
    output: OutputOption = Output.TABLE,
    home: HomeOption = None,
) -> None:
    """List which hardware may have which id."""
    from enroll.service import claims as all_claims

    with open_registry(admin_home(home)) as registry:
        rows = [_claim_row(found) for found in islice(all_claims(registry), limit + 1)]
    headers = ("SERIAL", "MANUFACTURER", "ID", "GROUPS", "STATE")
    print_rows(output, headers, rows[:limit], nothing="nothing is claimed")
    if len(rows) > limit:
        say(f"there are more: --limit {10 * limit}")


def _claim_row(found: ClaimRecord) -> Row:
    fields = {
        "manufacturer": found.manufacturer,
        "serial": found.hardware_serial,
        "device": found.device,
        "groups": list(found.groups),
        "profile": found.profile,
        "replace": found.replace,
        "used": found.certificate is not None,
    }
    state = "may come once more" if found.replace else "used" if found.certificate is not None else "open"
    cells = (found.hardware_serial, found.manufacturer, found.device, " ".join(found.groups) or "-", state)
    return Row(found.hardware_serial, fields, cells)


def unclaim(name: NameArgument, serial: SerialArgument, home: HomeOption = None) -> None:
    """Let hardware have its id no more. A device that has its identity already keeps it."""
    from enroll.service import remove_claim

    with open_registry(admin_home(home)) as registry:
        found = remove_claim(registry, name, serial, by=user(), now=now())
    say(f"{serial} of {name} may not become {found.device} any more")


VERBS: Verbs = {
    "add": add,
    "list": list_,
    "remove": remove,
    "claim": claim,
    "import": import_,
    "claims": claims,
    "unclaim": unclaim,
}
