"""The stub's commands and sensors."""

from pathlib import Path

import pytest

from firmware_stub.agent_client import answer
from firmware_stub.commands import Settings, handlers, take_desired
from firmware_stub.sensors import read_machine, read_simulated


def _command(name: str, args: object) -> dict[str, object]:
    return {"type": "command", "command_id": "c1", "name": name, "args": args}


def test_echo_answers_its_arguments() -> None:
    """A command's output is not what the command gave."""
    settings = Settings(5.0)
    expected = {"type": "result", "command_id": "c1", "state": "done", "output": {"a": [1]}}
    assert answer(_command("echo", {"a": [1]}), handlers(settings)) == expected


def test_set_interval_changes_the_interval() -> None:
    """`set-interval` says done and changes nothing."""
    settings = Settings(5.0)
    assert answer(_command("set-interval", {"seconds": 2}), handlers(settings))["state"] == "done"
    assert settings.interval_seconds == 2.0


@pytest.mark.parametrize("seconds", [None, 0, -1, 1e9, "2", True, [2], float("nan")])
def test_an_interval_that_cannot_be_is_refused(seconds: object) -> None:
    """An admin's typing error stops the measurements."""
    settings = Settings(5.0)
    assert answer(_command("set-interval", {"seconds": seconds}), handlers(settings))["state"] == "failed"
    assert settings.interval_seconds == 5.0


@pytest.mark.parametrize(
    ("wanted", "interval"), [(2, 2), (0.25, 0.25), (0, 5), ("2", 5), (True, 5), (1e9, 5), (None, 5), ([2], 5)]
)
def test_of_the_desired_state_what_can_be_is_taken_and_what_is_reported(wanted: object, interval: float) -> None:
    """A setting of a million devices that is wrong stops them all, or nobody sees that it was not taken."""
    settings = Settings(5.0)
    assert {"interval": interval} == take_desired({"interval": wanted, "unknown": 1}, settings)
    assert interval == settings.interval_seconds
    assert {"interval": interval} == take_desired({"unknown": 1}, settings)


@pytest.mark.parametrize(("name", "args"), [("reboot", {}), ("echo", None), ("echo", [1]), ("", {})])
def test_an_unknown_command_fails(name: str, args: object) -> None:
    """A command that the firmware does not know is left without an answer."""
    assert answer(_command(name, args), handlers(Settings(5.0)))["state"] == "failed"


def test_what_cannot_be_measured_is_left_out(tmp_path: Path) -> None:
    """A machine without a thermal zone reports an invented temperature, or the stub ends."""
    assert set(read_machine(tmp_path, tmp_path / "meminfo")) == {"load_1m"}
    zone = tmp_path / "thermal_zone0"
    zone.mkdir()
    (zone / "temp").write_text("48312\n")
    (tmp_path / "meminfo").write_text("MemTotal: 1000 kB\nMemAvailable: 750 kB\n")
    measured = read_machine(tmp_path, tmp_path / "meminfo")
    assert (measured["temperature_celsius"], measured["memory_used_percent"]) == (48.3, 25.0)


def test_the_simulated_sensor_says_so() -> None:
    """A made-up value is taken for a measurement."""
    assert read_simulated(15.0) == {"pressure_bar": 3.5, "simulated": True}
