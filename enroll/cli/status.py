"""`enroll status`: whether the parts of the fleet are there, and what they hold."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from enroll.cli.job_view import fields_of, status_rows
from enroll.cli.options import HomeOption, admin_home, clock, now, open_registry
from enroll.cli.output import table
from fleet.clock import NO_CHECK_TIME
from fleet.errors import FleetError, InvalidInput, Unreachable
from fleet.identity import Server, is_server
from fleet.layout import AdminHome, decode_run_file

_SECONDS = 5.0
_HALTED_LATELY = timedelta(days=7)
_UNWELL_SHOWN = 20


def status(
    output: Annotated[str, typer.Option("--output", "-o", metavar="table|json", help="What to print.")] = "table",
    home: HomeOption = None,
) -> None:
    """Show whether all is there; exit status 5 if not.

    Service and broker must complete a handshake as themselves; 1 if what goes to devices cannot be signed.
    """
    from enroll import downlink
    from enroll.home import read_config
    from enroll.registry import lineage, overview
    from enroll.registry.jobs import unsettled

    if output not in ("table", "json"):
        raise InvalidInput(f"{output[:40]!r} is not an output", hint="table or json")
    at = admin_home(home)
    with open_registry(at) as registry, registry.read() as transaction:
        devices, commands = overview.counts(transaction), overview.command_counts(transaction, now())
        alarms, unwell = lineage.count_alarmed(transaction), overview.unwell(transaction, _UNWELL_SHOWN)
        reserve = registry.reserve
        jobs = unsettled(transaction, now() - _HALTED_LATELY)
    servers = {server: _probe(at, server) for server in Server}
    unsigned = downlink.problem_of(at.dispatch_signing)
    fields: dict[str, Any] = {
        "trust_domain": read_config(at).trust_domain,
        "home": str(at.path),
        "service": servers[Server.ENROLL],
        "broker": servers[Server.BROKER],
        "clock": clock.fields(),
        "signing": {"problem": unsigned.message, "hint": unsigned.hint} if unsigned else None,
        "devices": devices,
        "commands": commands,
        "jobs": [fields_of(job) for job in jobs],
        "alarms": alarms,
        "unwell": unwell,
        "reserve": {"bytes": reserve.size_bytes, "is_whole": reserve.is_whole},
    }
    print(json.dumps(fields, indent=2) if output == "json" else _table(fields, status_rows(jobs)))
    away = [server.value for server, found in servers.items() if not found["answers"]]
    if away:
        hint = "; ".join(f"{'enroll' if name == 'enroll' else 'broker'} serve" for name in away)
        raise Unreachable(f"no answer from: {', '.join(away)}", hint=hint)
    if unsigned is not None:
        raise FleetError(f"nothing is sent to devices, for it cannot be signed: {unsigned}", hint=unsigned.hint)


def _table(fields: dict[str, Any], jobs: Sequence[tuple[str, str]]) -> str:
    def words(counts: dict[str, int]) -> str:
        return ", ".join(f"{number} {name}" for name, number in counts.items()) or "none"

    def server(found: dict[str, Any]) -> str:
        return f"{found['url'] or 'does not run'}" + (f" ({found['problem']})" if found["problem"] else "")

    return table(
        (),
        [
            ("fleet", fields["trust_domain"]),
            ("home", fields["home"]),
            ("service", server(fields["service"])),
            ("broker", server(fields["broker"])),
            *_clock_rows(fields["clock"]),
            *(
                [("signing", fields["signing"]["problem"]), ("", fields["signing"]["hint"])]
                if fields["signing"]
                else []
            ),
            ("devices", words(fields["devices"])),
            ("commands", words(fields["commands"])),
            *jobs,
            *([("alarms", f"{fields['alarms']}: enroll device list --alarms")] if fields["alarms"] else []),
            *_reserve_rows(fields["reserve"], is_made=fields["service"]["answers"]),
            *([("unwell", f"{', '.join(fields['unwell'])}: enroll device show ID")] if fields["unwell"] else []),
        ],
    )


def _reserve_rows(found: dict[str, Any], *, is_made: bool) -> list[tuple[str, str]]:
    """What is lacking; nothing of a fleet whose service has not run yet, which makes it."""
    size = found["bytes"]
    if found["is_whole"] or not (size or is_made):
        return []
    left = f"{size >> 10} KiB are left" if size else "nothing is left"
    return [("reserve", f"{left} of what revocations need on a full disk: free space on the registry's")]


def _clock_rows(found: dict[str, str]) -> list[tuple[str, str]]:
    """What is wrong with it, and what to do; nothing if nothing is."""
    return [("clock", f"{found['words']} [{found['code']}]"), ("", found["hint"])] if found["words"] else []


def _probe(home: AdminHome, server: Server) -> dict[str, Any]:
    """Whether a server that has said where it is completes a handshake as itself."""
    try:
        url = decode_run_file(home.run_file(server).read_bytes()).url
    except (OSError, FleetError):
        return {"url": None, "answers": False, "problem": ""}
    try:
        _shake_hands(home, server, url)
    except (OSError, ValueError) as error:
        return {"url": url, "answers": False, "problem": _reason(error)}
    return {"url": url, "answers": True, "problem": ""}


def _reason(error: Exception) -> str:
    said = getattr(error, "verify_message", None)  # of an SSLCertVerificationError
    return (f"not ours: {said}" if said else getattr(error, "strerror", None) or str(error)).lower()


def _shake_hands(home: AdminHome, server: Server, url: str) -> None:
    """TLS with the operator's identity, by loopback if that leads there: the run file is this host's."""
    import socket
    import ssl

    from enroll import dates

    parts = urlsplit(url)
    context = ssl.create_default_context(cafile=str(home.root.certificate))
    identity = home.operator.identity
    context.load_cert_chain(identity.certificate, identity.key)
    if clock.is_floored:
        context.verify_flags |= NO_CHECK_TIME
    try:
        connection = socket.create_connection(("127.0.0.1", parts.port or 0), _SECONDS)
    except OSError:
        connection = socket.create_connection((parts.hostname or "", parts.port or 0), _SECONDS)
    with connection, context.wrap_socket(connection, server_hostname=parts.hostname) as tls:
        if clock.is_floored:
            dates.check(tls, clock)
        if not is_server(tls.getpeercert(), server):
            raise OSError(f"not the certificate of {server}")
