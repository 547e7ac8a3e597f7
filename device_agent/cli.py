"""The command line of a device, and the one place in the agent that reads clock, environment and entropy.

Nothing is imported before it is needed: `run` never loads `cryptography`, which costs a Pi 10 MB of memory.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import device_agent
from device_agent import timekeeping
from device_agent.clock import Moment
from device_agent.core.events import StopRequested
from device_agent.core.shelf import Bounds
from device_agent.core.state import Settings
from device_agent.hardware import read_hardware
from device_agent.store import PosixDisk, Store, check_private, credential_or_none, only_one
from device_agent.timekeeping import Timekeeper
from fleet.errors import Denied, FleetError, InvalidInput, printable, reason_of, report
from fleet.identity import DeviceId, Role
from fleet.layout import AgentHome, Credential
from fleet.messages import parse_time
from fleet.streams import escape_unencodable

if TYPE_CHECKING:
    from device_agent.joining import Invitation
    from device_agent.waiting import Patience

_SYSTEM_HOME: Final = Path("/var/lib/device-agent")
_RANDOM: Final = random.SystemRandom()
_DESCRIPTION: Final = "Gives this device an identity of its own and keeps it connected to its fleet."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status. Bad input ends in an `error:` and a `hint:` line, never in a traceback."""
    escape_unencodable(sys.stdout, sys.stderr)
    options = _parser().parse_args(argv)
    try:
        return _dispatch(options)
    except FleetError as error:
        print(report(error), file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at its exit
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="device-agent", description=_DESCRIPTION)
    _add_home(parser, default=None)
    parser.add_argument(
        "--version", action="version", version=f"device-agent {device_agent.__version__}", help="say which this is"
    )
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND", required=True)
    for name, text, add in (
        ("join", "make a key and have it certified: once for a device", _add_join),
        ("run", "stay connected, and serve the applications on this device", _add_run),
        ("status", "say who this device is and whether it is connected, and why not", _add_status),
        ("renew", "get a new certificate now, whenever it is due", None),
        ("doctor", "look at all that may keep this device offline, and say what to do", _add_doctor),
        ("explain", "connect, and print the mutual TLS conversation step by step", None),
    ):
        verb = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        _add_home(verb, default=argparse.SUPPRESS)
        if add is not None:
            add(verb)
    return parser


def _add_home(parser: argparse.ArgumentParser, default: str | None) -> None:
    parser.add_argument(
        "--home", metavar="DIR", type=Path, default=default, help="where the identity is kept (or DEVICE_AGENT_HOME)"
    )


def _add_join(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("code", nargs="?", metavar="CODE", help="the join code of `enroll token create`; - reads it")
    parser.add_argument("--file", type=Path, metavar="PATH", help="a join file; removed after success")
    parser.add_argument("--url", metavar="URL", help="the enrollment service, with --root-pin, and --token if any")
    parser.add_argument("--root-pin", metavar="HEX", help="SHA-256 of the root's public key: `enroll ca show`")
    parser.add_argument("--token", metavar="TOKEN", help="the one-time token; - reads it; none: be paired")
    parser.add_argument("--id", metavar="ID", help="the device id; else the join file's, else the host name")

    parser.add_argument("--no-wait", action="store_true", help="where an admin has to approve: do not wait for it")


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--keepalive",
        type=_between(2, 3_600),
        default=60,
        metavar="SECONDS",
        help="a connection that is silent for twice as long is given up (default: %(default)s)",
    )
    parser.add_argument(
        "--spool",
        type=_between(1, 65_536),
        default=256,
        metavar="MIB",
        help="how much waits on disk while the broker is away (default: %(default)s)",
    )
    parser.add_argument(
        "--share",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="the fleet may fetch the files in this folder; may be given again (default: none)",
    )


def _between(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least} to {most}")
        return int(text)

    return parse


def _add_status(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table", help="how to print it")


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table", help="how to print it")
    parser.add_argument("--bundle", type=Path, metavar="FILE", help="a tarball for whoever helps; no secret is in it")


def _home(options: argparse.Namespace) -> Path:
    """--home, else DEVICE_AGENT_HOME, else the system's place if it can be written, else the user's."""
    named = options.home or os.environ.get("DEVICE_AGENT_HOME")
    if named:
        return Path(named).expanduser().absolute()
    if os.access(_SYSTEM_HOME if _SYSTEM_HOME.exists() else _SYSTEM_HOME.parent, os.W_OK):
        return _SYSTEM_HOME
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "device-agent"


def _dispatch(options: argparse.Namespace) -> int:
    verbs = {"join": _join, "run": _run, "status": _status, "doctor": _doctor, "explain": _explain, "renew": _renew}
    home = AgentHome(_home(options))
    _check_may_enter(home)
    return verbs[options.verb](options, home)


def _check_may_enter(home: AgentHome) -> None:
    """Raises: Denied for the home of another user."""
    try:
        home.meta.exists()
    except OSError as error:
        raise Denied(f"{home.path} cannot be entered: {reason_of(error)}", hint="run this as its owner") from error


def _join(options: argparse.Namespace, home: AgentHome) -> int:
    from device_agent import joining

    invitation, device = _invitation(options)
    device = device or _host_name()
    store = Store(home, PosixDisk())
    store.prepare()
    with only_one(home):
        if options.file is not None and store.is_enrolled_as(device, invitation.url):
            credential = store.credential()  # the power went between success and the removal of the file
        else:
            clock = _timekeeper(home, url=invitation.url)
            patience = _patience(clock, waits=not options.no_wait)
            credential = joining.Joining(home, store, invitation, device, read_hardware(), clock, patience).join()
    if options.file is not None:
        _remove_join_file(options.file)
    print(f"enrolled {credential.device} ({credential.role.value}) at {printable(credential.enroll_url)}")
    print(f"certificate {credential.serial}, valid until {credential.not_after:%Y-%m-%d %H:%M} UTC")
    for line in _next_steps(credential, home, f" --home {home.path}" if options.home else ""):
        print(line)
    return 0


def _next_steps(credential: Credential, home: AgentHome, named: str) -> Iterator[str]:
    """What to do with what was joined: the agent runs for devices, all others connect by programs of their own."""
    if credential.role is Role.DEVICE:
        yield f"next: device-agent run{named}"
        return
    yield f"identity {home.identity.certificate} and {home.identity.key.name}, to be believed: {home.trust}"
    takes = f", as enroll export --identity {home.path} does" if credential.role is Role.SERVICE else ""
    yield f"next: have its program connect to the broker with them, as client {credential.device}{takes}"
    yield f"once a month, before it ends: device-agent renew{named}"


def _invitation(options: argparse.Namespace) -> tuple[Invitation, DeviceId | None]:
    """What the command line names, in one of its three ways, and the id if it names one."""
    from device_agent.joining import Invitation, invitation_of
    from fleet import join

    given_id = DeviceId(options.id) if options.id is not None else None
    parts = (options.url, options.root_pin, options.token)
    match options.code is not None, options.file is not None, any(part is not None for part in parts):
        case True, False, False:
            return invitation_of(join.parse_join_code(_or_stdin(options.code))), given_id
        case False, True, False:
            found = join.parse_join_file(_read_join_file(options.file))
            return invitation_of(found.code), given_id or found.device
        case False, False, True if options.url is not None and options.root_pin is not None:
            pin = join.parse_root_pin(options.root_pin)
            token = None if options.token is None else join.parse_token(_or_stdin(options.token))
            return Invitation(join.check_enroll_url(options.url), pin, token), given_id
    raise InvalidInput(
        "name one invitation", hint="device-agent join CODE | --file PATH | --url URL --root-pin HEX [--token TOKEN]"
    )


def _patience(clock: Timekeeper, *, waits: bool) -> Patience:
    from device_agent.waiting import Patience

    return Patience(time.sleep, _RANDOM.random, clock.now, _tell, waits)


def _tell(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def _or_stdin(value: str) -> str:
    """A secret on the command line is seen by every user of the machine: - reads it from standard input."""
    return sys.stdin.readline(4096).strip() if value == "-" else value


def _read_join_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(65_536).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(
            f"{path} cannot be read: {reason_of(error)}", hint="enroll token create -o file makes one"
        ) from error


def _remove_join_file(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
        PosixDisk().sync_folder(path.parent)
    except OSError as error:
        raise FleetError(
            f"enrolled, but {path} cannot be removed: {error.strerror or error}", hint=f"remove it: rm {path}"
        ) from error


def _host_name() -> DeviceId:
    name = socket.gethostname().partition(".")[0].lower()
    try:
        return DeviceId(name)
    except InvalidInput as error:
        raise InvalidInput(f"the host name {name!r} is not a device id", hint="name one: --id ID") from error


def _run(options: argparse.Namespace, home: AgentHome) -> int:
    from device_agent.last_lines import LastLines
    from device_agent.runner import EventQueue, Runner, World, configure_logging
    from device_agent.sharing import Shares, check_shares
    from device_agent.upload_client import Sources

    sources = Sources(LastLines(), Shares(check_shares(options.share, home.path), home.path))
    configure_logging(lines=sources.lines)
    store = Store(home, PosixDisk())
    _promote_first(store, home)
    credential = store.credential()
    check_private(home.path)
    settings = Settings(
        credential.device,
        credential.serial,
        credential.not_before,
        credential.not_after,
        os.urandom(8).hex(),
        device_agent.__version__,
        options.keepalive,
        Bounds(options.spool << 20, options.spool << 18),
        read_hardware().serial,
    )
    events = EventQueue()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: events.post_now(StopRequested()))
    with only_one(home):
        clock = _timekeeper(home, credential)
        world = World(lambda: _moment(clock), clock, PosixDisk())
        Runner(home, settings, credential, world, events, sources).run()
    return 0


def _promote_first(store: Store, home: AgentHome) -> None:
    try:
        store.recover()
    except OSError as error:
        raise FleetError(
            f"{home.path} cannot be written: {reason_of(error)}", hint="see what befell the disk: dmesg, df -h"
        ) from error


def _timekeeper(home: AgentHome, credential: Credential | None = None, url: str = "") -> Timekeeper:
    return timekeeping.timekeeper(
        lambda: datetime.now(UTC), time.monotonic, home=home, disk=PosixDisk(), credential=credential, url=url
    )


def _moment(clock: Timekeeper) -> Moment:
    reading = clock.reading()
    return Moment(clock.monotonic(), reading.utc, _RANDOM.random(), reading)


def _status(options: argparse.Namespace, home: AgentHome) -> int:
    from device_agent import status, waiting

    store = Store(home, PosixDisk())
    note = None if home.meta.exists() else waiting.read_note(home)
    if note is not None:
        print(json.dumps(note.fields(), indent=2) if options.output == "json" else note.words)
        return 0
    clock = _timekeeper(home, store.credential())
    fields = status.read_status(home, store, clock.reading())
    role = store.credential().role.value
    now = parse_time(fields["clock"]["used"])
    print(status.as_json(fields) if options.output == "json" else status.as_table(fields, role, now))
    return 0


def _renew(options: argparse.Namespace, home: AgentHome) -> int:
    from device_agent.renew_command import RenewCommand

    clock = _timekeeper(home, Store(home, PosixDisk()).credential())
    renewed = RenewCommand(home, PosixDisk(), clock, read_hardware()).run()
    print(f"renewed: certificate {renewed.serial}, valid until {renewed.not_after:%Y-%m-%d %H:%M} UTC")
    if renewed.warning:
        print(renewed.warning, file=sys.stderr)
    return 0


def _doctor(options: argparse.Namespace, home: AgentHome) -> int:
    from device_agent import bundle, doctor, status

    store = Store(home, PosixDisk())
    clock = _timekeeper(home, credential_or_none(store))
    findings = doctor.Doctor(home, store, clock).examine()
    listed = [finding.fields() for finding in findings]
    print(json.dumps(listed, indent=2) if options.output == "json" else "\n".join(doctor.as_lines(findings)))
    if options.bundle is not None:
        now = clock.now()
        facts = {"doctor": listed, "status": status.whatever_is_known(home, store, clock.reading())}
        bundle.write_bundle(options.bundle, home, doctor.public_files(home), facts, device_agent.__version__, now)
        print(f"written: {options.bundle}", file=sys.stderr)
    return 0 if doctor.is_well(findings) else 1


def _explain(options: argparse.Namespace, home: AgentHome) -> int:
    from device_agent.explain import Explanation

    credential = Store(home, PosixDisk()).credential()
    clock = _timekeeper(home, credential)
    Explanation(home, credential, _say, clock, clock.now).tell()
    return 0


def _say(line: str = "", /) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
