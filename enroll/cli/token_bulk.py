"""Many tokens from a CSV file, a join file each: what `enroll token create --csv` does.

Tokens are committed a batch at a time, and then their files are written: whatever ends it in between, each file that is
there works, and the same command again makes what is missing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from enroll.cli.options import now, open_registry, token_bytes, user
from enroll.cli.output import say, time_or_none
from enroll.cli.progress import progress
from fleet.errors import FleetError, InvalidInput, reason_of
from fleet.identity import DeviceId
from fleet.join import JoinCode, JoinFile
from fleet.layout import AdminHome

if TYPE_CHECKING:
    from enroll.registry import Registry
    from enroll.service import Invitation
    from enroll.tokens import TokenOrder

_BATCH: Final = 200


@dataclass(frozen=True, slots=True)
class Bulk:
    """What to do: an order for each row of `csv` like `common`, join files in `folder` for `url` and `pin`."""

    csv: Path
    folder: Path
    common: TokenOrder
    url: str
    pin: bytes

    def file_of(self, device: DeviceId) -> Path:
        return self.folder / f"{device}.toml"


def create_all(home: AdminHome, bulk: Bulk, *, is_dry_run: bool, as_json: bool) -> None:
    """Make the tokens and files; on stdout each file's path. Raises: InvalidInput, FleetError."""
    orders = list(_orders(bulk))
    waiting = [order for order in orders if order.device and not bulk.file_of(order.device).exists()]
    with open_registry(home) as registry:
        _check(registry, waiting)
        if is_dry_run:
            say(f"would make {len(waiting)} tokens and join files in {bulk.folder}; {_left(orders, waiting)}")
            return
        _make_folder(bulk.folder)
        with progress("tokens", len(waiting)) as bar:
            for start in range(0, len(waiting), _BATCH):
                batch = waiting[start : start + _BATCH]
                made = _create(registry, bulk, batch)
                bar.hide()
                _print(made, as_json=as_json)
                bar.advance(len(batch))
    say(f"made {len(waiting)} tokens and join files in {bulk.folder}; {_left(orders, waiting)}")


def _left(orders: Sequence[TokenOrder], waiting: Sequence[TokenOrder]) -> str:
    return f"{len(orders) - len(waiting)} had a join file already"


def _orders(bulk: Bulk) -> Iterator[TokenOrder]:
    from enroll.csv_rows import check_rows, device_problem, read_rows

    try:
        with bulk.csv.open(encoding="utf-8", newline="") as file:
            rows = read_rows(file, required=("id",), optional=("groups", "profile"))
    except (OSError, UnicodeDecodeError) as error:
        hint = "it has a header: id,groups,profile"
        raise InvalidInput(f"{bulk.csv} cannot be read: {reason_of(error)}", hint=hint) from error
    check_rows(rows, ("id",), device_problem)
    for row in rows:
        groups = (*bulk.common.groups, *row.cells.get("groups", "").replace(";", " ").split())
        profile = row.cells.get("profile", bulk.common.profile)
        yield replace(bulk.common, device=DeviceId(row.cells["id"]), groups=groups, profile=profile)


def _check(registry: Registry, orders: Sequence[TokenOrder]) -> None:
    """Raises: InvalidInput if any of them could never be used: all of the file, or nothing of it."""
    from enroll.csv_rows import check_problems
    from enroll.service import check_orders

    problems = check_orders(registry, orders)
    check_problems([f"{order.device}: {problem}" for order, problem in zip(orders, problems, strict=True) if problem])


def _create(registry: Registry, bulk: Bulk, orders: Sequence[TokenOrder]) -> list[tuple[Invitation, Path]]:
    from enroll.service import invite_all

    invitations = invite_all(registry, orders, by=user(), now=now(), token_bytes=token_bytes)
    made = []
    for invitation in invitations:
        device = invitation.record.device
        assert device is not None
        path = bulk.file_of(device)
        _write_whole(path, JoinFile(JoinCode(bulk.url, bulk.pin, invitation.token), device).encode())
        made.append((invitation, path))
    return made


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise FleetError(f"{folder} cannot be made: {reason_of(error)}", hint="name another: --to DIR") from error


def _write_whole(path: Path, text: str) -> None:
    """The file whole or not at all, for its owner alone: it lets a device in."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.rename(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise FleetError(
            f"{path} cannot be written: {reason_of(error)}", hint="the same command again makes what is missing"
        ) from error


def _print(made: Sequence[tuple[Invitation, Path]], *, as_json: bool) -> None:
    """A line each, at once: a reader that goes away, or an error later, loses none of what was made."""
    for invitation, path in made:
        record = invitation.record
        shown = {"id": record.id, "device": record.device, "file": str(path)}
        print(json.dumps(shown | {"expires_at": time_or_none(record.expires_at)}) if as_json else path)
