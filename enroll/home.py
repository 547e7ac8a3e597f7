"""A fleet's home as it must be before anything uses it: there, of this fleet, and closed to others."""

from __future__ import annotations

import stat
from datetime import datetime
from pathlib import Path

from fleet import clock, config
from fleet.config import FleetConfig
from fleet.errors import Denied, FleetError, InvalidInput, NotFound, reason_of
from fleet.layout import AdminHome


def open_home(path: Path) -> AdminHome:
    """The initialised home at `path`. Raises: NotFound, Denied (others can enter it, or we cannot)."""
    home = AdminHome(path)
    try:
        is_there = home.config.is_file()
    except OSError as error:
        raise Denied(f"{path} cannot be entered: {reason_of(error)}", hint="run this as its owner") from error
    if not is_there:
        raise NotFound(
            f"there is no fleet at {path}", hint=f"enroll init --home {path} makes one; --home DIR names another"
        )
    check_private(path)
    return home


def check_private(path: Path) -> None:
    """Raises: Denied unless only its owner can enter the home."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise Denied(f"{path} can be entered by others (mode {mode:04o})", hint=f"run: chmod 700 {path}")


def read_config(home: AdminHome) -> FleetConfig:
    """What `fleet.toml` says. Raises: InvalidInput that names every problem, FleetError."""
    try:
        return config.load(home.config.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise FleetError(
            f"{home.config} cannot be read: {reason_of(error)}", hint="restore it from a backup"
        ) from error


def read_seen(home: AdminHome) -> datetime | None:
    """The time that was known last in this home; None if it never was, or if the file is damaged."""
    try:
        return clock.decode_seen(home.clock.read_bytes())
    except (OSError, InvalidInput):
        return None


def make_private(folder: Path) -> None:
    """A folder, and those above it that are not there, for nobody else, whatever the umask says."""
    for each in (*reversed(folder.parents), folder):
        if not each.exists():
            each.mkdir(mode=0o700)
