"""Whether service and broker run: a command that leaves something for them has to say if it will lie there."""

from __future__ import annotations

import fcntl
import socket
from typing import Final
from urllib.parse import urlsplit

from enroll.cli.output import say
from fleet.errors import FleetError
from fleet.identity import Server
from fleet.layout import AdminHome, decode_run_file

_SECONDS: Final = 1.0
_CALLED: Final = {Server.ENROLL: "service", Server.BROKER: "broker"}
START: Final = {Server.ENROLL: "enroll serve", Server.BROKER: "broker serve"}


def say_if_away(home: AdminHome, what: str) -> None:
    """Say that `what` happens later, and what to start, unless both run."""
    away = [server for server in Server if not does_run(home, server)]
    if not away:
        return
    who, when = f"the {_CALLED[away[0]]} does not run", "it does"
    if len(away) > 1:
        who, when = f"neither {_CALLED[away[0]]} nor {_CALLED[away[1]]} runs", "both do"
    say(f"{who}; {what} when {when}")
    say(f"hint: {'; '.join(START[server] for server in away)}")


def does_run(home: AdminHome, server: Server) -> bool:
    """Whether it does: on this host it holds its run file locked, on another it listens where that file says.

    Nobody is asked who need not be: a connection that ends at once is noted as an attempt that was refused.
    """
    try:
        with home.run_file(server).open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            url = decode_run_file(file.read()).url
    except (OSError, FleetError):
        return False
    return _listens(url)


def _listens(url: str) -> bool:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or 0
    except ValueError:
        return False
    for each in dict.fromkeys(("127.0.0.1", "::1", host)):
        try:
            socket.create_connection((each, port), _SECONDS).close()
        except OSError:
            continue
        return True
    return False
