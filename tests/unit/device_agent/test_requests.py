"""The lines of an application."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent.requests import (
    AskStatus,
    PublishEvent,
    PublishTelemetry,
    Register,
    ReportResult,
    Request,
    parse_request,
)
from fleet.arguments import parse
from fleet.messages import InvalidMessage, ResultState


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            {"type": "register", "app": "pump-control", "commands": ["identify", "echo"]},
            Register("pump-control", ("identify", "echo")),
        ),
        (
            {"type": "register", "app": "a", "commands": ["set", "echo"], "schemas": {"set": {"required": ["n"]}}},
            Register("a", ("set", "echo"), {"set": parse({"required": ["n"]})}),
        ),
        ({"type": "telemetry", "stream": "load", "data": {"l1": 0.5}}, PublishTelemetry("load", {"l1": 0.5}, 0)),
        ({"type": "telemetry", "stream": "load", "data": None, "qos": 1}, PublishTelemetry("load", None, 1)),
        ({"type": "event", "event": "door-opened", "data": []}, PublishEvent("door-opened", [])),
        (
            {"type": "result", "command_id": "c1", "state": "running"},
            ReportResult("c1", ResultState.RUNNING, None, ""),
        ),
        (
            {"type": "result", "command_id": "c1", "state": "done", "output": 3},
            ReportResult("c1", ResultState.DONE, 3, ""),
        ),
        ({"type": "status"}, AskStatus()),
    ],
)
def test_every_documented_line_is_understood(line: dict[str, Any], expected: Request) -> None:
    """Firmware written from docs/application-socket.md would not work."""
    assert expected == parse_request(json.dumps(line).encode())


@pytest.mark.parametrize(
    "line",
    [
        {"type": "telemetry", "stream": "a/b", "data": 1},
        {"type": "telemetry", "stream": "#", "data": 1},
        {"type": "telemetry", "stream": "load"},
        {"type": "telemetry", "stream": "load", "data": 1, "qos": 2},
        {"type": "telemetry", "stream": "load", "data": 1, "qos": True},
        {"type": "telemetry", "stream": 5, "data": 1},
        {"type": "event", "event": "door\n", "data": 1},
        {"type": "register", "app": "a", "commands": "echo"},
        {"type": "register", "app": "a", "commands": ["echo"], "schemas": ["echo"]},
        {"type": "register", "app": "a", "commands": ["echo"], "schemas": {"set": {}}},
        {"type": "register", "app": "a", "commands": ["echo"], "schemas": {"echo": {"pattern": "(a+)+"}}},
        {"type": "register", "app": "a", "commands": ["echo", 1]},
        {"type": "register", "app": "a", "commands": [f"c{n}" for n in range(65)]},
        {"type": "register", "app": "", "commands": []},
        {"type": "result", "command_id": "c1", "state": "accepted"},
        {"type": "result", "command_id": "c1", "state": "expired"},
        {"type": "result", "command_id": "c1", "state": "failed", "error": "e" * 1025},
        {"type": "shutdown"},
        {"type": ["register"]},
        {},
    ],
)
def test_what_is_not_documented_is_refused_with_a_reason(line: dict[str, Any]) -> None:
    """A topic that an application must not reach, or a state that only the agent may claim, would get through."""
    with pytest.raises(InvalidMessage) as caught:
        parse_request(json.dumps(line).encode())
    assert caught.value.message


@given(st.binary(max_size=200))
def test_random_bytes_raise_only_the_peers_kind_of_error(line: bytes) -> None:
    """One line of garbage would end the agent."""
    with contextlib.suppress(InvalidMessage):
        parse_request(line)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_KEYS = st.sampled_from(["app", "commands", "stream", "data", "qos", "event", "command_id", "state", "error", "output"])
_TYPES = st.sampled_from(["register", "telemetry", "event", "result", "status"])


@given(st.builds(lambda kind, rest: {"type": kind} | rest, _TYPES, st.dictionaries(_KEYS, _JSON)))
def test_fields_of_any_type_raise_only_the_peers_kind_of_error(line: dict[str, Any]) -> None:
    """A number where a name belongs would end the agent."""
    with contextlib.suppress(InvalidMessage):
        parse_request(json.dumps(line).encode())
