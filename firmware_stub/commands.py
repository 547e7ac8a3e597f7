"""The three commands of the stub. Each takes the arguments of the command and answers its output."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass

Json = object

MIN_INTERVAL_SECONDS = 0.05
MAX_INTERVAL_SECONDS = 3600.0


class Refused(Exception):
    """A command that cannot be done as asked; the text says why."""


@dataclass(slots=True)
class Settings:
    """What commands can change."""

    interval_seconds: float


def identify(_args: dict[str, Json], _settings: Settings) -> Json:
    """What this machine is. A product would blink its light."""
    return {"machine": platform.machine(), "system": platform.system(), "python": platform.python_version()}


def set_interval(args: dict[str, Json], settings: Settings) -> Json:
    """Measure every `seconds` from now on. Raises: Refused."""
    match args.get("seconds"):
        case bool():
            pass  # which is an int to Python
        case int() | float() as seconds if MIN_INTERVAL_SECONDS <= seconds <= MAX_INTERVAL_SECONDS:
            settings.interval_seconds = float(seconds)
            return {"seconds": settings.interval_seconds}
    raise Refused(f"seconds is not a number from {MIN_INTERVAL_SECONDS} to {MAX_INTERVAL_SECONDS}")


def echo(args: dict[str, Json], _settings: Settings) -> Json:
    """The arguments, unchanged."""
    return args


COMMANDS: dict[str, Callable[[dict[str, Json], Settings], Json]] = {
    "identify": identify,
    "set-interval": set_interval,
    "echo": echo,
}


def answer(line: dict[str, Json], settings: Settings) -> dict[str, Json]:
    """The `result` line for a `command` line; a command that is unknown or refused has failed."""
    result: dict[str, Json] = {"type": "result", "command_id": line.get("command_id")}
    args = line.get("args")
    command = COMMANDS.get(str(line.get("name")))
    try:
        if command is None or not isinstance(args, dict):
            raise Refused(f"unknown command {str(line.get('name'))[:64]!r}" if command is None else "args is no object")
        return result | {"state": "done", "output": command(args, settings)}
    except Refused as error:
        return result | {"state": "failed", "error": str(error)}
