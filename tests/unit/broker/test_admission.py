"""Who is let in, as a table: certificate, directory, claimed client id, role, state."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from broker.engine import Reason
from broker.engines.amqtt.admission import Admitted, Rejected, decide
from broker.engines.amqtt.identity import PeerIdentity
from broker.engines.amqtt.packets import Connect, Will
from fleet.directory import Entry
from fleet.identity import DeviceId, Principal, Role, Serial, State
from fleet.policy import DEFAULT_POLICY

PUMP, VALVE = DeviceId("pump-07"), DeviceId("valve-1")
SERIAL, OTHER = Serial("aa"), Serial("bb")
PEER = PeerIdentity(PUMP, SERIAL, datetime(2027, 1, 1, tzinfo=UTC))
ENTRY = Entry(1, Principal(Role.DEVICE, PUMP), State.ACTIVE, 1, frozenset({SERIAL}))
CONNECT = Connect("pump-07", True, 60, None)


def with_role(role: Role) -> Entry:
    return replace(ENTRY, principal=Principal(role, PUMP))


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("listed", [SERIAL, OTHER])
@pytest.mark.parametrize("client_id", ["pump-07", "", "pump-07:x", "valve-1", "pump-07:", "pump-07x:y"])
def test_only_the_listed_holder_of_the_name_gets_in(role: Role, state: State, listed: Serial, client_id: str) -> None:
    """One cell of the table that lets in too many is a way in."""
    entry = replace(with_role(role), state=state, serials=frozenset({listed}))
    decision = decide(replace(CONNECT, client_id=client_id), PEER, entry, DEFAULT_POLICY, is_fresh=True)
    may_suffix = role in (Role.OPERATOR, Role.SERVICE)
    is_own = client_id in ("pump-07", "") or (client_id == "pump-07:x" and may_suffix)
    if state is not State.ACTIVE or listed != SERIAL:
        assert decision == Rejected(5, Reason.NOT_ADMITTED, "serial aa")
    elif not is_own:
        assert decision == Rejected(2, Reason.FOREIGN_CLIENT_ID, client_id)
    else:
        assert isinstance(decision, Admitted)
        assert (client_id or "pump-07", role) == (decision.client_id, decision.entry.principal.role)


def test_nobody_is_let_in_without_an_entry_or_with_anothers() -> None:
    """A directory that mixes up its rows would lend an identity."""
    anothers = replace(ENTRY, principal=Principal(Role.DEVICE, VALVE))
    for entry in (None, anothers):
        decision = decide(CONNECT, PEER, entry, DEFAULT_POLICY, is_fresh=True)
        assert isinstance(decision, Rejected)
        assert (5, Reason.NOT_ADMITTED) == (decision.return_code, decision.reason)


@pytest.mark.parametrize("role", [Role.OPERATOR, Role.SERVICE])
def test_a_name_that_is_given_is_nobodys_yet(role: Role) -> None:
    """MQTT-3.1.3-6: a person's second window would end the first, or empty a session that is kept."""
    taken = {"pump-07", "pump-07:2"}
    unnamed = replace(CONNECT, client_id="")
    decision = decide(unnamed, PEER, with_role(role), DEFAULT_POLICY, is_fresh=True, has_session=taken.__contains__)
    assert isinstance(decision, Admitted)
    assert "pump-07:3" == decision.client_id


def test_a_device_without_a_name_is_given_its_own() -> None:
    """A device has one connection: a suffix would give it a second one."""
    unnamed = replace(CONNECT, client_id="")
    decision = decide(unnamed, PEER, ENTRY, DEFAULT_POLICY, is_fresh=True, has_session=lambda _: True)
    assert isinstance(decision, Admitted)
    assert "pump-07" == decision.client_id


def test_no_client_id_needs_a_clean_session() -> None:
    """MQTT-3.1.3-8."""
    decision = decide(Connect("", False, 60, None), PEER, ENTRY, DEFAULT_POLICY, is_fresh=True)
    assert decision == Rejected(2, Reason.NO_CLIENT_ID)


@pytest.mark.parametrize(
    ("topic", "is_let_in"),
    [("devices/pump-07/up/status", True), ("devices/valve-1/up/status", False), ("devices/pump-07/down/x", False)],
)
def test_a_will_is_decided_like_a_publish(topic: str, is_let_in: bool) -> None:
    """A device would speak as another by dying (hole 3)."""
    decision = decide(replace(CONNECT, will=Will(topic, b"", 1, True)), PEER, ENTRY, DEFAULT_POLICY, is_fresh=True)
    assert is_let_in == isinstance(decision, Admitted)


def test_the_grants_are_those_of_the_directorys_role() -> None:
    """The role in the certificate's SAN would count."""
    decision = decide(CONNECT, PEER, with_role(Role.BROKER), DEFAULT_POLICY, is_fresh=True)
    assert isinstance(decision, Admitted)
    assert ((), ()) == (decision.grants.publish, decision.grants.subscribe)


@pytest.mark.parametrize("role", Role)
def test_with_a_stale_directory_only_who_commands_nobody_gets_in(role: Role) -> None:
    """A stolen operator would be let in by a broker that was cut off from its revocation."""
    decision = decide(CONNECT, PEER, with_role(role), DEFAULT_POLICY, is_fresh=False)
    expected = Reason.STALE_DIRECTORY if role in (Role.OPERATOR, Role.SERVICE) else None
    assert expected == (decision.reason if isinstance(decision, Rejected) else None)
