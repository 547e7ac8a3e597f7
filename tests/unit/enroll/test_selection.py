"""Which devices a line means: the grammar against its own formatter, the SQL against a naive oracle."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import assert_never

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enroll import selection
from enroll.registry import Registry, identity, labels, messaging, overview
from enroll.registry.records import PresenceRecord, PrincipalRecord
from enroll.selection import Every, Has, Is, Not, Selection, Some
from fleet.errors import InvalidInput
from fleet.identity import DeviceId, Principal, Role, State

NOW = datetime(2026, 11, 21, 8, 0, tzinfo=UTC)


@dataclass(frozen=True)
class Device:
    """One device as the oracle knows it."""

    id: str
    state: State
    groups: tuple[str, ...]
    labels: Mapping[str, str]
    is_online: bool
    agent: str


names = st.sampled_from(["site", "floor", "x_y", "xzy"])
values = st.sampled_from(["a", "ab", "abc", "b_c", "bxc", "b-1.2"])
patterns = st.one_of(values, st.sampled_from(["*", "a*", "*c", "b_*", "*b*", "b?".replace("?", "*c")]))
fleets = st.lists(
    st.builds(
        Device,
        st.sampled_from([f"{kind}-{number}" for kind in ("pump", "valve") for number in range(4)]),
        st.sampled_from([State.ACTIVE, State.SUSPENDED]),
        st.lists(values.filter(lambda value: "." not in value), max_size=2, unique=True).map(tuple),
        st.dictionaries(names, values, max_size=3),
        st.booleans(),
        values,
    ),
    max_size=6,
    unique_by=lambda device: device.id,
)
comparisons = st.one_of(
    st.builds(Is, st.one_of(names, st.sampled_from(["group", "agent"])), patterns),
    st.builds(Is, st.just("id"), st.sampled_from(["pump-1", "pump-*", "*-2", "*"])),
    st.builds(Is, st.just("state"), st.sampled_from(["active", "suspended"])),
    st.builds(Is, st.just("role"), st.sampled_from(["device", "operator"])),
)


def _joined(inner: st.SearchStrategy[Selection]) -> st.SearchStrategy[Selection]:
    parts = st.lists(inner, min_size=2, max_size=3).map(tuple)
    return st.one_of(st.builds(Not, inner), st.builds(Every, parts), st.builds(Some, parts))


selections: st.SearchStrategy[Selection] = st.recursive(
    st.one_of(st.builds(Has, st.one_of(names, st.just("online"))), comparisons), _joined, max_leaves=6
)


def formatted(meant: Selection) -> str:
    """A selection as a line, with more parentheses than it needs."""
    match meant:
        case Has(name):
            return name
        case Is(name, pattern):
            return f"{name}={pattern}"
        case Not(Is(name, pattern)):
            return f"{name}!={pattern}"
        case Not(inner):
            return f"not ({formatted(inner)})"
        case Every(parts):
            return " and ".join(f"({formatted(part)})" for part in parts)
        case Some(parts):
            return "(" + ") or (".join(map(formatted, parts)) + ")"
        case _:
            assert_never(meant)


def is_meant(meant: Selection, device: Device) -> bool:
    """The oracle."""
    match meant:
        case Has("online"):
            return device.is_online
        case Has(name):
            return name in device.labels
        case Is(name, pattern):
            return any(matches(pattern, value) for value in _values(device, name))
        case Not(inner):
            return not is_meant(inner, device)
        case Every(parts):
            return all(is_meant(part, device) for part in parts)
        case Some(parts):
            return any(is_meant(part, device) for part in parts)
        case _:
            assert_never(meant)


def _values(device: Device, name: str) -> tuple[str, ...]:
    fields = {
        "id": (device.id,),
        "state": (device.state.value,),
        "role": ("device",),
        "group": device.groups,
        "agent": (device.agent,),
    }
    return fields.get(name, (device.labels[name],) if name in device.labels else ())


def matches(pattern: str, value: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), value) is not None


@contextmanager
def registry_of(fleet: list[Device]) -> Iterator[Registry]:
    with TemporaryDirectory() as folder, Registry.open(Path(folder) / "registry.db") as registry:
        with registry.write() as transaction:
            for device in fleet:
                id_ = DeviceId(device.id)
                record = PrincipalRecord(Principal(Role.DEVICE, id_), device.state, 1, device.groups, NOW)
                identity.add_principal(transaction, record)
                labels.set_labels(transaction, id_, device.labels)
                heard = PresenceRecord(device.is_online, "", device.agent, NOW, NOW)
                messaging.set_presence(transaction, id_, heard)
        yield registry


@given(selections)
def test_a_line_means_what_it_says(meant: Selection) -> None:
    """What an admin wrote is read as something else."""
    assert meant == selection.parse(formatted(meant))


@given(fleets, selections)
def test_those_are_found_who_are_meant(fleet: list[Device], meant: Selection) -> None:
    """A command goes to a device that it was not meant for."""
    with registry_of(fleet) as registry, registry.read() as transaction:
        found = overview.page(transaction, overview.Filter(where=meant), None, 100)
    assert sorted(device.id for device in fleet if is_meant(meant, device)) == [each.record.id for each in found]


@given(st.text(max_size=60) | st.text(alphabet="ab =!()*ornotandline-", max_size=60))
def test_any_line_is_read_or_refused_in_words(text: str) -> None:
    """A slip of the finger ends in a traceback."""
    try:
        selection.parse(text)
    except InvalidInput as refused:
        assert refused.hint  # noqa: PT017 # most lines are refused, and some are not


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("", "not understood at its end"),
        ("site=", "not understood at its end"),
        ("site=a b", "not understood at 'b'"),
        ("site==a", "not understood at '=a'"),
        ("(site=a", "not understood at its end"),
        ("site=a)", "not understood at ')'"),
        ("site=a and", "not understood at its end"),
        ("Site=a", "not understood at 'Site=a'"),
        ("site=Berlin", "not understood at 'Berlin'"),
        ("state=lost", "'lost' is not a state"),
        ("role=king", "'king' is not a role"),
        ("group", "group is compared with something"),
        ("online=yes", "online stands alone"),
        ("not " * 20 + "online", "nested too deeply"),
        ("(" * 3000, "2000 characters at most"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(line: str, complaint: str) -> None:
    """An admin is told that something is wrong somewhere."""
    with pytest.raises(InvalidInput, match=re.escape(complaint)):
        selection.parse(line)


def test_and_binds_more_than_or() -> None:
    """`a or b and c` would mean others than everywhere else."""
    expected = Some((Has("a"), Every((Has("b"), Not(Has("c"))))))
    assert expected == selection.parse("a or b and not c")
