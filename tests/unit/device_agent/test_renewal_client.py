"""How a running agent has its certificate renewed: the process, and the files."""

from __future__ import annotations

import queue
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from device_agent.core.effects import Confirm, Renew, UsePredecessor, UseSuccessor
from device_agent.core.events import ConfirmationFailed, Event, IdentityChanged, RenewalFailed
from device_agent.renewal_client import Renewer
from device_agent.store import PosixDisk, Store
from fleet.layout import AgentHome
from tests.deadlines import within
from tests.unit.device_agent.clocks import real_clock
from tests.unit.device_agent.test_store import credential

NOWHERE = "https://127.0.0.1:1"


def renewer_of(path: Path, post: Callable[[Event], None]) -> Renewer:
    """Of a home with an identity that no TLS library can load."""
    home = AgentHome(path / "home")
    store = Store(home, PosixDisk())
    store.prepare()
    store.complete(store.begin(credential().device, NOWHERE, b"key"), b"certificate", b"roots", credential())
    return Renewer(home, PosixDisk(), credential(), real_clock(), post)


def test_a_renewal_always_ends_in_a_word(tmp_path: Path) -> None:
    """The core waits for it: a device whose process died without one would never renew again."""
    events = queue.SimpleQueue[Event]()
    renewer = renewer_of(tmp_path, events.put)
    assert None is renewer.perform(Renew(is_paced=True, is_fresh=False))
    failed = events.get(timeout=within(20))
    assert isinstance(failed, RenewalFailed)
    assert "local" == failed.problem.code, failed
    assert None is renewer.perform(Confirm())
    unconfirmed = events.get(timeout=within(20))
    assert isinstance(unconfirmed, ConfirmationFailed)
    assert "local" == unconfirmed.problem.code
    renewer.close()


@pytest.mark.parametrize("program", ["/bin/false", "/bin/echo", "/nowhere/python"])
def test_a_process_that_does_not_do_its_work_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    """A broken installation would stop renewals without a word."""
    events = queue.SimpleQueue[Event]()
    renewer = renewer_of(tmp_path, events.put)
    monkeypatch.setattr(sys, "executable", program)
    renewer.perform(Renew(is_paced=True, is_fresh=False))
    failed = events.get(timeout=within(20))
    assert isinstance(failed, RenewalFailed)
    assert "crashed" == failed.problem.code
    renewer.close()


def test_without_another_generation_the_identity_stays(tmp_path: Path) -> None:
    """`current` would point to nothing."""
    renewer = renewer_of(tmp_path, lambda event: None)
    for order in (UseSuccessor(), UsePredecessor()):
        changed = renewer.perform(order)
        assert isinstance(changed, IdentityChanged)
        assert changed.error
        assert credential().serial == changed.life.serial
    assert "gen-1" == renewer.home.current.readlink().name
