"""`enroll token`: what lets a device in once."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, assert_never

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
    parse_duration,
    parse_reason,
    token_bytes,
    user,
)
from enroll.cli.output import Row, ahead, print_rows, say, time_or_none
from enroll.cli.revoking import open_to_revoke, print_revoked
from fleet.errors import FleetError, InvalidInput
from fleet.identity import DeviceId, Role, Server
from fleet.join import JoinCode, JoinFile, check_enroll_url
from fleet.layout import AdminHome, decode_run_file

if TYPE_CHECKING:
    from enroll.registry.records import Approval, TokenRecord
    from enroll.service import Invitation
    from enroll.tokens import TokenOrder


class Form(StrEnum):
    """What `token create` prints on stdout."""

    TEXT = "text"
    JSON = "json"
    CODE = "code"
    FILE = "file"
    QR = "qr"


def create(
    device: Annotated[str | None, typer.Option(metavar="ID", help="For this one id.")] = None,
    match: Annotated[str | None, typer.Option(metavar="PATTERN", help="For every id like this: 'pump-*'.")] = None,
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", help="One for each row: id, and if you like groups and profile.")
    ] = None,
    to: Annotated[Path | None, typer.Option(metavar="DIR", help="With --csv: where the join files go.")] = None,
    role: Annotated[str, typer.Option(metavar="ROLE", help="device, operator, service or broker.")] = Role.DEVICE.value,
    group: Annotated[list[str] | None, typer.Option(metavar="G", help="A group to be in; may be repeated.")] = None,
    profile: Annotated[str, typer.Option(metavar="NAME", help="client, or test: five minutes.")] = "client",
    source: Annotated[
        list[str] | None, typer.Option(metavar="NETWORK", help="Taken from there alone; may be repeated.")
    ] = None,
    uses: Annotated[int, typer.Option(metavar="N", help="How many devices it lets in.")] = 1,
    ttl: Annotated[
        str | None, typer.Option(metavar="TIME", help="How long it lives.", show_default="24h; 1h for other roles")
    ] = None,
    approval: Annotated[
        str, typer.Option(metavar="auto|manual", help="manual: an admin looks at each request first.")
    ] = "auto",
    replace: Annotated[bool, typer.Option("--replace", help="Give an id that is taken to a new key.")] = False,
    output: Annotated[
        Form,
        typer.Option("--output", "-o", metavar="text|json|code|file|qr", help="What to print.", show_default="text"),
    ] = Form.TEXT,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --csv: check the file, make nothing.")] = False,
    home: HomeOption = None,
) -> None:
    """Make a token, and print the command that uses it. It is shown this once."""
    from enroll.service import invite
    from enroll.tokens import TokenOrder

    order = TokenOrder(
        None if device is None else DeviceId(device),
        match,
        parse_role(role),
        tuple(group or ()),
        profile,
        uses=uses,
        ttl=None if ttl is None else parse_duration(ttl),
        replace=replace,
        sources=tuple(source or ()),
        approval=_approval(approval),
    )
    at = admin_home(home)
    url, pin = enroll_url(at), _root_pin(at)
    if csv is not None or to is not None or dry_run:
        _create_all(at, order, csv, to, output, url, pin, is_dry_run=dry_run)
        return
    with open_registry(at) as registry:
        invitation = invite(registry, order, by=user(), now=now(), token_bytes=token_bytes)
    _print(output, invitation, JoinCode(url, pin, invitation.token))


def _create_all(
    home: AdminHome,
    order: TokenOrder,
    csv: Path | None,
    to: Path | None,
    output: Form,
    url: str,
    pin: bytes,
    *,
    is_dry_run: bool,
) -> None:
    from enroll.cli.token_bulk import Bulk, create_all

    if csv is None or to is None or output not in (Form.TEXT, Form.JSON):
        raise InvalidInput("many tokens need a list and a place", hint="--csv FILE --to DIR, -o text or json")
    if order.device is not None or order.pattern is not None or order.role is not Role.DEVICE:
        raise InvalidInput("--csv names the devices", hint="leave --device, --match and --role out")
    create_all(home, Bulk(csv, to, order, url, pin), is_dry_run=is_dry_run, as_json=output is Form.JSON)


def _approval(text: str) -> Approval:
    from enroll.registry.records import Approval

    try:
        return Approval(text)
    except ValueError as error:
        raise InvalidInput(f"{text[:40]!r} is not a way to approve", hint="auto or manual") from error


def parse_role(text: str) -> Role:
    """Raises: InvalidInput."""
    try:
        return Role(text)
    except ValueError as error:
        raise InvalidInput(f"{text[:40]!r} is not a role", hint=f"one of {', '.join(Role)}") from error


def enroll_url(home: AdminHome) -> str:
    """Where devices reach the service: as it said at ready, else as fleet.toml has it. Raises: FleetError."""
    from enroll.home import read_config

    try:
        return check_enroll_url(decode_run_file(home.run_file(Server.ENROLL).read_bytes()).url)
    except FileNotFoundError:
        config = read_config(home)
    if config.enroll_listen.port == 0:
        raise FleetError("the service takes any free port, and does not run", hint="start it first: enroll serve")
    return check_enroll_url(advertised(config.hosts[0], config.enroll_listen.port))


def advertised(host: str, port: int) -> str:
    """The address under which others reach the service."""
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


def _root_pin(home: AdminHome) -> bytes:
    from enroll.authority import read_certificate
    from fleet import pki

    return pki.pin_of(read_certificate(home.root.certificate))


def _print(form: Form, invitation: Invitation, code: JoinCode) -> None:
    record = invitation.record
    command = _command(record, code)
    match form:
        case Form.TEXT:
            say(f"token {record.id} for {record.device or record.pattern}, {_uses(record)}, {ahead_of(record)}; run:")
            print(command)
        case Form.JSON:
            shown = {"id": record.id, "token": str(invitation.token), "code": str(code), "command": command}
            print(json.dumps(shown | {"expires_at": time_or_none(record.expires_at)}, indent=2))
        case Form.CODE:
            print(code)
        case Form.FILE:
            print(JoinFile(code, record.device).encode(), end="")
        case Form.QR:
            from enroll.cli.qr import qr_text

            print(qr_text(str(code), sys.stdout.encoding))
        case _:
            assert_never(form)


def _command(record: TokenRecord, code: JoinCode) -> str:
    if record.role is Role.BROKER:
        return f"broker join {code}"
    return f"device-agent join {code}" + (f" --id {record.device}" if record.device else "")


def _uses(record: TokenRecord) -> str:
    return "one use" if record.uses == 1 else f"{record.uses} uses"


def ahead_of(record: TokenRecord) -> str:
    """Until when, for people."""
    return f"until {record.expires_at:%Y-%m-%d %H:%M} UTC"


def list_(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, metavar="N", help="The newest N.")] = 1000,
    output: OutputOption = Output.TABLE,
    home: HomeOption = None,
) -> None:
    """List the newest tokens, oldest first. Their secrets are stored nowhere."""
    from enroll.service import tokens

    moment = now()
    with open_registry(admin_home(home)) as registry:
        rows = [
            Row(
                record.id,
                _fields(record),
                (
                    record.id,
                    record.device or record.pattern or "",
                    record.role.value,
                    " ".join(record.sources) or "any",
                    f"{record.uses_left}/{record.uses}",
                    ahead(record.expires_at, moment),
                    _state(record),
                ),
            )
            for record in tokens(registry, limit)
        ]
    print_rows(output, ("ID", "FOR", "ROLE", "FROM", "USES", "EXPIRES", "STATE"), rows, nothing="there are no tokens")


def _state(record: TokenRecord) -> str:
    if record.revoked_at is not None:
        return "revoked"
    return "needs approval" if record.approval.value == "manual" else ""


def _fields(record: TokenRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "device": record.device,
        "match": record.pattern,
        "role": record.role.value,
        "groups": list(record.groups),
        "profile": record.profile,
        "sources": list(record.sources),
        "approval": record.approval.value,
        "replace": record.replace,
        "uses": record.uses,
        "uses_left": record.uses_left,
        "created_at": time_or_none(record.created_at),
        "expires_at": time_or_none(record.expires_at),
        "revoked_at": time_or_none(record.revoked_at),
    }


def revoke(
    id: Annotated[str, typer.Argument(metavar="TOKEN", help="Its id, as token list shows it.")],
    devices: Annotated[bool, typer.Option("--devices", help="Revoke whomever it let in, too.")] = False,
    reason: ReasonOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --devices: list them, revoke nothing.")] = False,
    yes: YesOption = False,
    home: HomeOption = None,
) -> None:
    """End a token. Whoever it let in already stays, unless you say --devices."""
    from enroll.service import enrolled_by, revoke_enrolled, revoke_token

    why = parse_reason(reason)
    if why is not None and not devices:
        raise InvalidInput("a token ends without a reason", hint="--devices revokes whom it let in, for that reason")
    with open_to_revoke(admin_home(home)) as registry:
        found = enrolled_by(registry, id) if devices or dry_run else []
        if dry_run:
            print("\n".join(found), end="\n" if found else "")
            return
        if devices:
            confirm(f"revoke {_counted(len(found), 'device')} for good?", yes=yes)
        record = revoke_token(registry, id, by=user(), now=now())
        say(f"token {record.id} lets nobody in any more")
        if devices:
            ended = revoke_enrolled(registry, record.id, by=user(), now=now(), reason=why)
            say(f"{_counted(print_revoked(ended, len(found)), 'device')} revoked")


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


VERBS: Verbs = {"create": create, "list": list_, "revoke": revoke}
