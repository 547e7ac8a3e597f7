"""The command line `enroll`: a file a noun, and here the one place where errors become words and an exit status."""

from __future__ import annotations

import os
import sys

import typer

from enroll.cli.app import app
from fleet.errors import FleetError, reason_of, report, usage_report
from fleet.streams import escape_unencodable


def main() -> int:
    """Run the command line; its exit status (DESIGN section 9)."""
    if sys.stdout is None:
        print(
            report(FleetError("standard output is closed", hint="send it to a file or to /dev/null")), file=sys.stderr
        )
        return 1
    escape_unencodable(sys.stdout, sys.stderr)
    try:
        status = app(prog_name="enroll", standalone_mode=False)
        sys.stdout.flush()
    except FleetError as error:
        print(report(error), file=sys.stderr)
        return error.exit_code
    except typer.TyperException as error:
        return _report_usage(error)
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except (BrokenPipeError, SystemExit):  # the second is typer's for the first
        return _reader_gone()
    except OSError as error:  # of the output, as of a disk that is full: each command says itself what its files are
        print(report(FleetError(f"{error.filename or 'standard output'}: {reason_of(error)}")), file=sys.stderr)
        _reader_gone()
        return 1
    return status if isinstance(status, int) else 0


def _report_usage(error: typer.TyperException) -> int:
    context = getattr(error, "ctx", None)
    print(usage_report(error.format_message(), "" if context is None else context.command_path), file=sys.stderr)
    return 2


def _reader_gone() -> int:
    """As a program that SIGPIPE ended, and nothing more is said: the interpreter would complain at its own flush."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141
