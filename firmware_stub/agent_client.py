"""A firmware's side of the application socket, in one file of the standard library: copy it into your project.

    agent = Agent("pump-control", {"echo": lambda args: args})
    while True:
        agent.telemetry("load", {"l1": 0.5})
        agent.poll(5.0)  # obeys commands for five seconds, and finds an agent that went away

Everything happens in `poll`, on your thread. What cannot be sent waits here, the newest `MAX_UNSENT` lines of it, and
is sent once the agent is there: twice if it went away in the middle, for the socket has no acknowledgement.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

MAX_LINE_BYTES = 65_536
MAX_UNSENT = 1_000
RETRY_SECONDS = 1.0
SEND_SECONDS = 10.0

Json = object
Handler = Callable[[dict[str, Json]], Json]
OnDesired = Callable[[dict[str, Json]], "dict[str, Json] | None"]


class Refused(Exception):
    """Raised by a handler: the command cannot be done as asked, and the text says why."""


def default_path() -> Path:
    """Where an agent with the usual home listens."""
    return Path(os.environ.get("DEVICE_AGENT_HOME", "/var/lib/device-agent")) / "run" / "app.sock"


def spare_path(path: Path) -> Path | None:
    """Where an agent listens that could not make `path`, if it does: its home takes no writing, as on a worn card.

    Anybody may make a file there; only what belongs to the owner of the home is the agent's.
    """
    home = path.absolute().parent.parent
    spare = Path("/dev/shm") / f"device-agent{str(home).replace('/', '-')}.sock"  # noqa: S108 - see above
    try:
        return spare if spare.lstat().st_uid == home.stat().st_uid else None
    except OSError:
        return None


def _greeted(path: Path, hello: bytes) -> socket.socket:
    """A connection on which `hello` was said. Raises: OSError."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(SEND_SECONDS)
        connection.connect(str(path))
        connection.sendall(hello)
    except OSError:
        connection.close()
        raise
    return connection


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Agent:
    """The connection to the agent, made again whenever it is lost. `report` is told what an author wants to see.

    A handler takes a command's arguments and gives its output; an exception of any kind makes the command fail.
    `is_online` says whether the agent has a connection to the fleet. `schemas` says by name what arguments a command
    takes (docs/application-socket.md): with others no handler is called.

    `on_desired` is given all of the state that the fleet wants, after each connect and each change of it, and gives
    what to report; it takes what it knows and leaves what it does not. `desired` is the last of it.
    """

    def __init__(
        self,
        app: str,
        commands: Mapping[str, Handler] | None = None,
        path: Path | None = None,
        report: Callable[[str], None] = _to_stderr,
        schemas: Mapping[str, Json] | None = None,
        on_desired: OnDesired | None = None,
    ) -> None:
        self.is_online = False
        self.desired: dict[str, Json] = {}
        self._on_desired = on_desired
        self._app = app
        self._commands = dict(commands or {})
        self._schemas = dict(schemas or {})
        self._path = path or default_path()
        self._report = report
        self._socket: socket.socket | None = None
        self._unsent: deque[bytes] = deque(maxlen=MAX_UNSENT)
        self._received = b""
        self._told = ""

    @property
    def is_connected(self) -> bool:
        return self._socket is not None

    def telemetry(self, stream: str, data: Json, qos: int = 0) -> None:
        """Publish a measurement; with `qos` 1 the broker confirms it to the agent. Raises: ValueError if too long."""
        self._send({"type": "telemetry", "stream": stream, "data": data, "qos": qos})

    def event(self, kind: str, data: Json) -> None:
        """Publish that something happened. Raises: ValueError if it is too long for a line."""
        self._send({"type": "event", "event": kind, "data": data})

    def reported(self, patch: dict[str, Json]) -> None:
        """Say what has changed of what is (None: is no more); the agent keeps it, and tells the fleet until it knows.

        Raises: ValueError if it is too long for a line.
        """
        self._send({"type": "reported", "patch": patch})

    def poll(self, seconds: float) -> None:
        """Send what waits, and obey, for that long; handlers run in here."""
        deadline = time.monotonic() + seconds
        while True:
            left = deadline - time.monotonic()
            if self._connect():
                self._flush()
                self._receive(max(0.0, left))
            elif left > 0:
                time.sleep(min(left, RETRY_SECONDS))
            if left <= 0:
                return

    def close(self) -> None:
        """Let go of the agent; the next `poll` connects again."""
        if self._socket is not None:
            self._socket.close()
        self._socket, self._received, self.is_online = None, b"", False

    def _send(self, line: dict[str, Json]) -> None:
        data = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        if len(data) > MAX_LINE_BYTES:
            raise ValueError(f"a line has {len(data)} bytes, the agent takes {MAX_LINE_BYTES}")
        self._unsent.append(data)
        if self._socket is not None:
            self._flush()

    def _connect(self) -> bool:
        if self._socket is not None:
            return True
        register = {"type": "register", "app": self._app, "commands": list(self._commands), "schemas": self._schemas}
        hello = json.dumps(register).encode() + b"\n"
        problem = ""
        for path in filter(None, (self._path, spare_path(self._path))):
            try:
                self._socket = _greeted(path, hello)
            except OSError as error:
                problem = problem or f"{path}: {error.strerror or error}"
            else:
                self._tell(f"ready {path}")
                return True
        self._tell(f"waiting for the agent: {problem}")
        return False

    def _flush(self) -> None:
        while self._unsent and self._socket is not None:
            try:
                self._socket.settimeout(SEND_SECONDS)
                self._socket.sendall(self._unsent[0])
            except OSError as error:
                self._lose(error.strerror or str(error))
                return
            self._unsent.popleft()

    def _receive(self, seconds: float) -> None:
        if self._socket is None:
            return
        self._socket.settimeout(seconds or 0.000_001)  # 0 would mean: do not wait, and raise something else
        try:
            data = self._socket.recv(MAX_LINE_BYTES)
        except TimeoutError:
            return
        except OSError as error:
            self._lose(error.strerror or str(error))
            return
        if not data:
            self._lose("the agent closed the socket")
            return
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            self._hear(json.loads(line))

    def _hear(self, line: dict[str, Json]) -> None:
        match line.get("type"):
            case "command":
                self._send(answer(line, self._commands))
            case "welcome" | "online":
                self.is_online = line.get("online") is True
            case "state":
                self._obey(line.get("desired"))
            case "error":
                self._report(f"the agent refused a line: {line.get('message')}")

    def _obey(self, desired: Json) -> None:
        """An exception of the firmware's is said, and the state is asked for again at the next connect."""
        if not isinstance(desired, dict):
            return
        self.desired = desired
        try:
            patch = None if self._on_desired is None else self._on_desired(desired)
            if patch:
                self.reported(patch)
        except Exception as error:
            self._report(f"the desired state was not taken: {type(error).__name__}: {error}")

    def _lose(self, reason: str) -> None:
        self.close()
        self._tell(f"waiting for the agent: {reason}")

    def _tell(self, text: str) -> None:
        """The same only once."""
        if text != self._told:
            self._told = text
            with contextlib.suppress(BrokenPipeError):
                self._report(text)


def answer(line: dict[str, Json], commands: Mapping[str, Handler]) -> dict[str, Json]:
    """The `result` line for a `command` line; a command that is unknown or refused, or that raises, has failed."""
    result: dict[str, Json] = {"type": "result", "command_id": line.get("command_id")}
    args, handler = line.get("args"), commands.get(str(line.get("name")))
    try:
        if handler is None or not isinstance(args, dict):
            raise Refused(f"unknown command {str(line.get('name'))[:64]!r}" if handler is None else "args is no object")
        done = result | {"state": "done", "output": handler(args)}
        if len(json.dumps(done)) >= MAX_LINE_BYTES:
            raise Refused("the output is too long")
        return done
    except Refused as error:
        return result | {"state": "failed", "error": str(error)[:1024]}
    except Exception as error:
        return result | {"state": "failed", "error": f"{type(error).__name__}: {error}"[:1024]}
