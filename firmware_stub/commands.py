"""What the stub obeys: a desired state, and three commands; each takes its arguments and answers its output."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass

from firmware_stub.agent_client import Handler, Json, Refused

MIN_INTERVAL_SECONDS = 0.05
MAX_INTERVAL_SECONDS = 3600.0


@dataclass(slots=True)
class Settings:
    """What commands and the desired state can change."""

    interval_seconds: float


def identify(_args: dict[str, Json], _settings: Settings) -> Json:
    """What this machine is. A product would blink its light."""
    return {"machine": platform.machine(), "system": platform.system(), "python": platform.python_version()}


def set_interval(args: dict[str, Json], settings: Settings) -> Json:
    """Measure every `seconds` from now on. Raises: Refused."""
    if not _take_interval(args.get("seconds"), settings):
        raise Refused(f"seconds is not a number from {MIN_INTERVAL_SECONDS} to {MAX_INTERVAL_SECONDS}")
    return {"seconds": settings.interval_seconds}


def take_desired(desired: dict[str, Json], settings: Settings) -> dict[str, Json]:
    """Take what can be taken of the desired state; the state that there is then.

    An interval that cannot be leaves the one that is: `enroll state diff` shows it to whoever wanted it.
    """
    if "interval" in desired:
        _take_interval(desired["interval"], settings)
    return reported(settings)


def reported(settings: Settings) -> dict[str, Json]:
    """The state of the stub."""
    whole = int(settings.interval_seconds)
    return {"interval": whole if whole == settings.interval_seconds else settings.interval_seconds}


def _take_interval(seconds: Json, settings: Settings) -> bool:
    match seconds:
        case bool():
            return False  # which is an int to Python
        case int() | float() if MIN_INTERVAL_SECONDS <= seconds <= MAX_INTERVAL_SECONDS:
            settings.interval_seconds = float(seconds)
            return True
    return False


def echo(args: dict[str, Json], _settings: Settings) -> Json:
    """The arguments, unchanged."""
    return args


COMMANDS: dict[str, Callable[[dict[str, Json], Settings], Json]] = {
    "identify": identify,
    "set-interval": set_interval,
    "echo": echo,
}


SCHEMAS: dict[str, Json] = {
    "identify": {"type": "object", "additionalProperties": False},
    "set-interval": {
        "type": "object",
        "properties": {"seconds": {"type": "number", "minimum": MIN_INTERVAL_SECONDS, "maximum": MAX_INTERVAL_SECONDS}},
        "required": ["seconds"],
        "additionalProperties": False,
    },
}
"""What arguments they take; `echo` takes any."""


def handlers(settings: Settings) -> dict[str, Handler]:
    """What the agent may ask for."""
    return {name: _bound(command, settings) for name, command in COMMANDS.items()}


def _bound(command: Callable[[dict[str, Json], Settings], Json], settings: Settings) -> Handler:
    return lambda args: command(args, settings)
