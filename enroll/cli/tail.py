"""`enroll tail`: what devices say, as it is said; with the operator's own identity, as any client would.

A terminal that does not keep up is waited for: nothing is read from the broker meanwhile, which keeps what it may.
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Final

import typer

from enroll.cli.options import HomeOption, admin_home, clock, now, open_registry, token_bytes
from enroll.cli.output import say
from enroll.cli.selected import Members, WhereOption, check_known, nobody
from fleet import messages
from fleet.errors import FleetError, InvalidInput, NotFound, Unreachable, printable
from fleet.identity import DeviceId, Role, Server, State
from fleet.layout import AdminHome, decode_credential, decode_run_file

if TYPE_CHECKING:
    from enroll.mqtt_client import Connection, Incoming

_TURN_SECONDS = 0.5
_LONGEST_DELAY = 10.0


def tail(
    id: Annotated[str | None, typer.Argument(metavar="[ID]", help="Only of this one.", show_default="all")] = None,
    group: Annotated[str | None, typer.Option(metavar="G", help="Only of those in the group.")] = None,
    where: WhereOption = None,
    channel: Annotated[
        list[str] | None,
        typer.Option(
            "--channel",
            metavar="NAME",
            help="Only telemetry, events, results ..., or telemetry/STREAM.",
            show_default="all",
        ),
    ] = None,
    count: Annotated[
        int | None, typer.Option("--count", "-n", min=1, metavar="N", help="End after N messages.")
    ] = None,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="text|json", help="What to print.", show_default=True)
    ] = "text",
    home: HomeOption = None,
) -> None:
    """Print messages as they arrive, until Ctrl-C.

    Who joins a group, or begins to fit, is heard from then on.
    """
    from enroll.listening import topic_filters

    if output not in ("text", "json"):
        raise InvalidInput(f"{output[:40]!r} is not an output", hint="text or json")
    if id is not None and (group is not None or where is not None):
        raise InvalidInput("an ID stands alone", hint="enroll tail ID, or --group, or --where")
    device = None if id is None else DeviceId(id)
    filters, at = topic_filters(device, channel or ()), admin_home(home)
    if device is not None:
        _check_known(at, device)
    with _chosen(at, group, where) as is_wanted:
        _Tail(at, filters, is_wanted, output == "json", count).run()


def _check_known(home: AdminHome, device: DeviceId) -> None:
    """Raises: NotFound, InvalidInput for who says nothing, and would be waited for for ever; RegistryUnavailable."""
    with open_registry(home) as registry:
        found = check_known(registry, device)
    if found.principal.role is not Role.DEVICE:
        raise InvalidInput(f"{device} is of role {found.principal.role}", hint="tail shows what devices say")
    if found.state is not State.ACTIVE:
        say(f"{device} is {found.state}, and does not connect: enroll device show {device}")


@contextlib.contextmanager
def _chosen(home: AdminHome, group: str | None, where: str | None) -> Iterator[Callable[[str], bool]]:
    """Whether a topic's device is meant. Raises: NotFound for a group of nobody, which is mistyped more often."""
    from enroll.registry.overview import Filter
    from enroll.selection import parse

    if group is None and where is None:
        yield lambda _topic: True
        return
    wanted = Filter(group=group, where=None if where is None else parse(where))
    with open_registry(home) as registry, contextlib.closing(Members(registry, wanted)) as members:
        if not members.is_anybody():
            if where is None:
                raise nobody(registry, group)
            say("nobody fits yet")
        yield lambda topic: members.has(DeviceId(topic.split("/")[1]))


class _Tail:
    def __init__(
        self,
        home: AdminHome,
        filters: Sequence[str],
        is_wanted: Callable[[str], bool],
        as_json: bool,
        count: int | None,
    ) -> None:
        self._home = home
        self._filters = filters
        self._is_wanted = is_wanted
        self._as_json = as_json
        self._left = count
        self._client_id = f"{_operator(home)}:tail-{token_bytes(4).hex()}"

    def run(self) -> None:
        """Print until enough was printed; a connection that was there and ended is made again."""
        connection, failures = self._connect(), 0
        while True:
            try:
                with contextlib.closing(connection):
                    self._print_all(connection)
                return
            except Unreachable as error:
                say(f"{error.message}; connecting again")
            while (again := self._try_again()) is None:
                failures += 1
                time.sleep(random.uniform(0, min(_LONGEST_DELAY, 0.5 * 2.0 ** min(failures, 5))))  # noqa: S311 - jitter
            connection, failures = again, 0

    def _connect(self) -> Connection:
        from enroll.mqtt_client import Connection, Login, endpoints

        try:
            url = decode_run_file(self._home.run_file(Server.BROKER).read_bytes()).url
        except OSError as error:
            raise Unreachable("no broker runs here", hint="broker serve") from error
        operator = self._home.operator
        login = Login(str(operator.trust), operator.identity, self._client_id, clock=clock)
        connection = Connection.open(login, endpoints(url), time.monotonic)
        try:
            connection.subscribe(self._filters, time.monotonic)
        except BaseException:
            connection.close()
            raise
        say(f"listening to {', '.join(self._filters)}")
        return connection

    def _try_again(self) -> Connection | None:
        try:
            return self._connect()
        except Unreachable:
            return None

    def _print_all(self, connection: Connection) -> None:
        while self._left != 0:
            messages_ = connection.turn(_TURN_SECONDS)
            self._print(messages_)
            for message in messages_:
                connection.ack(message)

    def _print(self, arrived: Iterable[Incoming]) -> None:
        for message in arrived:
            if self._left == 0:
                break
            if not self._is_wanted(message.topic):
                continue
            print(_json_line(message) if self._as_json else _text_line(message))
            self._left = None if self._left is None else self._left - 1
        sys.stdout.flush()


def _operator(home: AdminHome) -> DeviceId:
    try:
        return decode_credential(home.operator.meta.read_bytes()).device
    except OSError as error:
        raise NotFound(
            f"there is no operator's identity in {home.operator.path}",
            hint="enroll token create --role operator --device ID, and device-agent join into that directory",
        ) from error


def _json_line(message: Incoming) -> str:
    shown = {
        "at": messages.format_time(now()),
        "topic": message.topic,
        "qos": message.qos,
        "retained": message.retain,
        **_payload(message.payload),
    }
    return json.dumps(shown)


def _payload(data: bytes) -> dict[str, object]:
    """The payload as JSON if it is some, as text if it is UTF-8, in hexadecimal otherwise."""
    with contextlib.suppress(FleetError):
        return {"payload": messages.decode_object(data, max_bytes=messages.MAX_TELEMETRY_BYTES)}
    with contextlib.suppress(UnicodeDecodeError):
        return {"text": data.decode()}
    return {"hex": data.hex()}


_ENVELOPE: Final = frozenset({"v", "id", "ts", "boot", "seq"})


def _said(payload: dict[str, object]) -> object:
    """What a person reads of a message: not its envelope, which `-o json` shows, nor what was left empty."""
    said = {key: value for key, value in payload.items() if key not in _ENVELOPE and value not in ("", None)}
    return said["data"] if said.keys() == {"data"} else said


def _text_line(message: Incoming) -> str:
    shown = next(iter(_payload(message.payload).values()))
    text = json.dumps(_said(shown), ensure_ascii=False) if isinstance(shown, dict) else str(shown)
    mark = " (retained)" if message.retain else ""
    _, device, _, *channel = message.topic.split("/")
    return f"{now():%H:%M:%S} {printable(device)} {printable('/'.join(channel))}{mark} {printable(text)}"
