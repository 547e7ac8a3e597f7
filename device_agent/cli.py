"""The command line of a device, and the one place in the agent that reads clock, environment and entropy.

Nothing is imported before it is needed: `run` never loads `cryptography`, which costs a Pi 10 MB of memory.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from fleet.errors import FleetError, report

_SYSTEM_HOME: Final = Path("/var/lib/device-agent")
_DESCRIPTION: Final = "Gives this device an identity of its own and keeps it connected to its fleet."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status. Bad input ends in an `error:` and a `hint:` line, never in a traceback."""
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
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND", required=True)
    for name, text, add in (
        ("join", "make a key and have it certified: once for a device", _add_join),
        ("run", "stay connected, and serve the applications on this device", None),
        ("status", "say who this device is and whether it is connected, and why not", _add_status),
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
    parser.add_argument("--url", metavar="URL", help="the enrollment service, with --root-pin and --token")
    parser.add_argument("--root-pin", metavar="HEX", help="SHA-256 of the root's public key: `enroll ca show`")
    parser.add_argument("--token", metavar="TOKEN", help="the one-time token; - reads it")
    parser.add_argument("--id", metavar="ID", help="the device id; else the join file's, else the host name")


def _add_status(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table", help="how to print it")


def _home(options: argparse.Namespace) -> Path:
    """--home, else DEVICE_AGENT_HOME, else the system's place if it can be written, else the user's."""
    named = options.home or os.environ.get("DEVICE_AGENT_HOME")
    if named:
        return Path(named).expanduser().absolute()
    if os.access(_SYSTEM_HOME if _SYSTEM_HOME.exists() else _SYSTEM_HOME.parent, os.W_OK):
        return _SYSTEM_HOME
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "device-agent"


def _dispatch(options: argparse.Namespace) -> int:
    raise FleetError(f"{options.verb} on {_home(options)}: not in this build")


if __name__ == "__main__":
    sys.exit(main())
