"""`enroll fetch`: the last log lines of a device, or a file that it shares; the service keeps them for some days."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from enroll.cli.interrupted import going_on
from enroll.cli.options import (
    HomeOption,
    Output,
    OutputOption,
    Verbs,
    admin_home,
    now,
    open_registry,
    parse_duration,
    token_bytes,
    user,
)
from enroll.cli.output import Row, minute, print_rows, say, time_or_none
from enroll.cli.progress import progress
from enroll.cli.running import say_if_away
from enroll.cli.selected import batches, check_known
from fleet import messages
from fleet.errors import FleetError, InvalidInput, TimedOut, printable, reason_of
from fleet.identity import DeviceId
from fleet.uploads import (
    MAX_LINES,
    MAX_LISTING_BYTES,
    MAX_LOG_BYTES,
    FileWanted,
    ListingWanted,
    LogWanted,
    Order,
    check_file_name,
)

if TYPE_CHECKING:
    from enroll.registry.records import CommandRecord
    from enroll.registry.uploads import UploadRecord
    from enroll.uploads import Uploads
    from fleet.layout import AdminHome

_POLL_SECONDS: Final = 0.05
_LAST_WORDS: Final = timedelta(seconds=5)  # what a device says of it at the deadline
_STDOUT: Final = "-"
_GIVEN_UP: Final = {"failed": "refused", "expired": "missed"}  # by what became of the command
_KEPT: Final = "what is asked for is kept, and goes out"

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The device.")]
UploadArgument = Annotated[str, typer.Argument(metavar="UPLOAD", help="What `enroll fetch list` names.")]
TimeoutOption = Annotated[
    str, typer.Option("--timeout", metavar="TIME", help="Until when the device may send; it may be offline till then.")
]
NoWaitOption = Annotated[
    bool, typer.Option("--no-wait", help="Print the upload's id; `enroll fetch get` has the file later.")
]


def log(
    id: IdArgument,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, max=MAX_LINES, help="How many.")] = 200,
    out: Annotated[str, typer.Option("--out", metavar="FILE|-", help="Where to.")] = _STDOUT,
    timeout: TimeoutOption = "1m",
    no_wait: NoWaitOption = False,
    home: HomeOption = None,
) -> None:
    """The last lines that a device's agent logged since it was started."""
    at = admin_home(home)
    with _uploads(at) as uploads:
        order = Order(LogWanted(lines), min(MAX_LOG_BYTES, uploads.limits.max_bytes))
        _fetch(at, uploads, DeviceId(id), order, timeout, out, waits=not no_wait)


def file(
    id: IdArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its path on the device: `enroll fetch listing ID`.")],
    out: Annotated[
        str | None,
        typer.Option("--out", metavar="FILE|-", help="Where to.", show_default="its own name, here, if there is none"),
    ] = None,
    timeout: TimeoutOption = "10m",
    no_wait: NoWaitOption = False,
    home: HomeOption = None,
) -> None:
    """A file in a folder that the device shares (`device-agent run --share DIR`)."""
    at, wanted = admin_home(home), _named(id, name)
    with _uploads(at) as uploads:
        order = Order(wanted, uploads.limits.max_bytes)
        target = out if out is not None or no_wait else _free_name(name)
        _fetch(at, uploads, DeviceId(id), order, timeout, target or _STDOUT, waits=not no_wait)


def listing(
    id: IdArgument, timeout: TimeoutOption = "1m", output: OutputOption = Output.TABLE, home: HomeOption = None
) -> None:
    """The files that a device shares."""
    at = admin_home(home)
    with _uploads(at) as uploads:
        order = Order(ListingWanted(), min(MAX_LISTING_BYTES, uploads.limits.max_bytes))
        record = _ask(uploads, DeviceId(id), order, timeout)
        found = _wait(at, uploads, record)
        entries = list(_entries(uploads.store.path(found.id).read_bytes()))
        uploads.remove(found, now(), user())
    print_rows(output, ("NAME", "BYTES", "MODIFIED"), [_row_of_entry(entry) for entry in entries], nothing="no file")


def list_(
    id: Annotated[str | None, typer.Argument(metavar="[ID]", help="Of one device.", show_default="of all")] = None,
    output: OutputOption = Output.TABLE,
    home: HomeOption = None,
) -> None:
    """What was fetched and is kept, and what may still come."""
    device = None if id is None else DeviceId(id)
    with _uploads(admin_home(home)) as uploads:
        if device is not None:
            check_known(uploads.registry, device)
        rows = [_row(uploads, *each) for each in _with_commands(uploads, uploads.listed(device))]
    headers = ("UPLOAD", "DEVICE", "WHAT", "STATE", "BYTES", "ASKED", "NAME")
    nothing = f"nothing is kept{'' if id is None else f' of {id}'}; enroll fetch log {id or 'ID'} fetches a log"
    print_rows(output, headers, rows, nothing=nothing)


def get(
    upload: UploadArgument,
    out: Annotated[str, typer.Option("--out", metavar="FILE|-", help="Where to.")] = _STDOUT,
    home: HomeOption = None,
) -> None:
    """What was fetched before."""
    with _uploads(admin_home(home)) as uploads:
        _deliver(uploads, uploads.finished(upload), out)


def remove(upload: UploadArgument, home: HomeOption = None) -> None:
    """Remove what was fetched, or take nothing of it any more."""
    with _uploads(admin_home(home)) as uploads:
        record = uploads.find(upload)
        uploads.remove(record, now(), user())
    say(f"removed {record.what} {record.id} of {record.device}")


VERBS: Verbs = {"log": log, "file": file, "listing": listing, "list": list_, "get": get, "remove": remove}


@contextmanager
def _uploads(home: AdminHome) -> Iterator[Uploads]:
    from enroll.home import read_config
    from enroll.uploads import uploads_of

    with open_registry(home) as registry:
        yield uploads_of(home, registry, read_config(home).uploads)


def _named(id: str, name: str) -> FileWanted:
    """Raises: InvalidInput, with the command that knows the names."""
    try:
        return FileWanted(check_file_name(name))
    except InvalidInput as error:
        raise InvalidInput(error.message, hint=f"enroll fetch listing {id} names them") from error


def _fetch(
    home: AdminHome, uploads: Uploads, device: DeviceId, order: Order, timeout: str, out: str, *, waits: bool
) -> None:
    if waits:
        _check_place(order.what, out)
    record = _ask(uploads, device, order, timeout)
    if waits:
        _deliver(uploads, _wait(home, uploads, record), out)
    else:
        print(record.id)
        say_if_away(home, _KEPT)


def _ask(uploads: Uploads, device: DeviceId, order: Order, timeout: str) -> UploadRecord:
    from enroll.commands import Giver

    at = now()
    return uploads.ask(device, order, at + parse_duration(timeout), Giver(user(), at, token_bytes))


def _wait(home: AdminHome, uploads: Uploads, record: UploadRecord) -> UploadRecord:
    """The upload, once it is whole. Raises: FleetError, TimedOut."""
    waiting = _Waiting(uploads, record)
    with going_on(f"upload {record.id} comes all the same: enroll fetch list, then enroll fetch get {record.id}"):
        say(f"upload {record.id} of {record.device}, until {time_or_none(waiting.deadline)}")
        say_if_away(home, _KEPT)
        while not waiting.is_announced:
            waiting.look_again()
        with progress("fetched", waiting.record.total or 0) as bar:
            while not waiting.record.is_finished:
                bar.advance(waiting.came())
                waiting.look_again()
            bar.advance(waiting.came())
    return waiting.record


@dataclass(slots=True)
class _Waiting:
    """An upload that is waited for. `size`: how much of it was there when last looked."""

    uploads: Uploads
    record: UploadRecord
    size: int = 0

    @property
    def deadline(self) -> datetime:
        from enroll.uploads import GRACE

        return self.record.expires_at - GRACE

    @property
    def is_announced(self) -> bool:
        return self.record.total is not None or self.record.is_finished

    def came(self) -> int:
        """How much more is there since the last time."""
        before, self.size = self.size, max(self.size, self.uploads.store.size(self.record.id))
        return self.size - before

    def look_again(self) -> None:
        """In a moment. Raises: FleetError, TimedOut if it will not come."""
        time.sleep(_POLL_SECONDS)
        found, command = self.uploads.look(self.record.id)
        if found is None:
            raise FleetError(f"upload {self.record.id} was removed", hint="enroll fetch list")
        self.record = found
        if found.is_finished:
            return
        try:
            _check(command, found.what, is_over=now() >= self.deadline + _LAST_WORDS)
        except FleetError:
            self.uploads.remove(found, now(), user())  # it makes room for another attempt
            raise


def _check(command: CommandRecord, what: str, *, is_over: bool) -> None:
    """Raises: FleetError, TimedOut if nothing comes of it any more."""
    from enroll.registry.records import CommandState

    hint = f"enroll device show {command.device}"
    if command.state is CommandState.FAILED:
        said = command.error or "it does not say why"
        raise FleetError(f"{command.device} does not send it: {said}", hint=_after_no(command.device, what))
    if command.state is CommandState.EXPIRED:
        raise TimedOut(f"{command.device} did not take the command in time", hint=hint)
    if is_over:
        raise TimedOut(f"{command.device} has not sent it in time ({command.state})", hint=hint)


def _after_no(device: str, what: str) -> str:
    """What to type where a device did not send a file, a listing or its log."""
    match what:
        case "file":
            return f"enroll fetch listing {device} names the files that it shares"
        case "listing":
            return "its agent shares a folder that it is started with: device-agent run --share DIR"
        case _:
            return f"enroll device show {device}"


def _free_name(name: str) -> str:
    """The file's own name, in this folder. Raises: InvalidInput if there is such a file."""
    own = PurePosixPath(name).name
    if Path(own).exists() or Path(own).is_symlink():
        raise InvalidInput(f"{own} is here already", hint="name another place: --out FILE")
    return own


def _check_place(what: str, out: str) -> None:
    """Raises: InvalidInput where `what` cannot be put there, or should not: what a device sent may drive a terminal."""
    target = Path(out)
    if out == _STDOUT:
        if what == "file" and sys.stdout.isatty():
            raise InvalidInput("a device's file is not shown on a terminal", hint="--out FILE, or | less")
    elif target.is_dir() or not target.name:
        raise InvalidInput(f"{out} is a folder", hint="name a file in it: --out FILE")
    elif not target.parent.is_dir():
        raise InvalidInput(f"{target.parent} is no folder", hint="make it first, or name another place: --out FILE")


def _deliver(uploads: Uploads, record: UploadRecord, out: str) -> None:
    """To standard output, where what comes from a device drives no terminal, or into a file, whole."""
    _check_place(record.what, out)
    source = uploads.store.path(record.id)
    try:
        _check_digest(source, record)
        if out != _STDOUT:
            _copy(source, Path(out))
            say(f"{out}: {record.total} bytes, sha256 {(record.digest or b'').hex()}")
        elif record.what == "file":
            with source.open("rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)
        else:
            for line in source.read_text("utf-8", "replace").splitlines():
                print(printable(line))
    except BrokenPipeError:
        raise
    except OSError as error:
        raise FleetError(f"{out if out != _STDOUT else source}: {reason_of(error)}") from error


def _check_digest(source: Path, record: UploadRecord) -> None:
    with source.open("rb") as file:
        if hashlib.file_digest(file, "sha256").digest() != record.digest:
            raise FleetError(f"{source} is no longer what the device sent", hint="fetch it again")


def _copy(source: Path, target: Path) -> None:
    """The whole file or the one before it, for nobody else to read; a pipe is written to. Raises: OSError."""
    if target.exists() and not target.is_file():
        with source.open("rb") as file, target.open("wb") as copy:
            shutil.copyfileobj(file, copy)
        return
    target = target.resolve()
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with source.open("rb") as file, os.fdopen(os.open(aside, flags, 0o600), "wb") as copy:
            shutil.copyfileobj(file, copy)
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)


def _with_commands(
    uploads: Uploads, records: Sequence[UploadRecord]
) -> Iterator[tuple[UploadRecord, CommandRecord | None]]:
    """Each with the command that asked for it."""
    from enroll import commands

    for batch in batches(records):
        found = {each.id: each for each in commands.find_all(uploads.registry, [record.id for record in batch])}
        for record in batch:
            yield record, found.get(record.id)


def _state(record: UploadRecord, command: CommandRecord | None) -> str:
    if record.is_finished:
        return "whole"
    if command is not None and command.state.value in _GIVEN_UP:
        return _GIVEN_UP[command.state.value]
    return "asked" if record.total is None else "coming"


def _row(uploads: Uploads, record: UploadRecord, command: CommandRecord | None) -> Row:
    state = _state(record, command)
    size = record.total if record.is_finished else uploads.store.size(record.id)
    fields = {
        "upload": record.id,
        "device": record.device,
        "what": record.what,
        "name": record.name,
        "state": state,
        "error": "" if command is None else command.error,
        "bytes": size,
        "total": record.total,
        "sha256": None if record.digest is None else record.digest.hex(),
        "asked_at": time_or_none(record.created_at),
        "finished_at": time_or_none(record.finished_at),
        "path": str(uploads.store.path(record.id)) if record.is_finished else None,
    }
    cells = (record.id, record.device, record.what, state, str(size), minute(record.created_at), record.name or "-")
    return Row(record.id, fields, cells)


def _entries(data: bytes) -> Iterator[dict[str, Any]]:
    """The files in a listing; a line that is none is left out, and said."""
    for line in data.splitlines():
        try:
            entry = messages.decode_object(line)
            if entry.get("is_cut") is True:
                say("there are more files than fit into the listing")
            else:
                modified = datetime.fromtimestamp(int(entry["modified"]), UTC)
                yield {"name": str(entry["name"]), "bytes": int(entry["bytes"]), "modified": modified}
        except (InvalidInput, KeyError, TypeError, ValueError, OverflowError, OSError):
            say("a line of the listing cannot be read")


def _row_of_entry(entry: dict[str, Any]) -> Row:
    fields = entry | {"modified": time_or_none(entry["modified"])}
    return Row(entry["name"], fields, (entry["name"], str(entry["bytes"]), minute(entry["modified"])))
