"""The process that looks at signatures: a real one."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import pytest

from device_agent.core.effects import Verify
from device_agent.core.events import Event, Verified
from device_agent.verdicts import Verdict
from device_agent.verifier_client import VerifierClient
from fleet.layout import AgentHome
from tests.deadlines import within
from tests.unit.device_agent.authority import Issued
from tests.unit.device_agent.test_verifying import ACME, BODY, NOW, TOPIC, chain_of, signed_by, signer_of


@dataclass
class Desk:
    """A client, and what it posts."""

    home: AgentHome
    client: VerifierClient
    ours: Issued
    posted: queue.Queue[Event] = field(default_factory=queue.Queue)

    def ask(self, payload: bytes, number: int = 1, *others: Issued) -> None:
        chains = tuple(map(chain_of, (self.ours, *others)))
        self.client.verify(Verify(number, TOPIC, payload, NOW), chains)

    def answer(self) -> Verified:
        found = self.posted.get(timeout=within(60))
        assert isinstance(found, Verified)
        return found

    @property
    def pid(self) -> int:
        assert self.client._child is not None
        return self.client._child.pid


@contextmanager
def desk(folder: Path, idle_seconds: float = 300) -> Iterator[Desk]:
    home, posted = AgentHome(folder), queue.Queue[Event]()
    home.trust.write_text(ACME.roots_pem)
    client = VerifierClient(home, posted.put, idle_seconds, within(60))
    try:
        yield Desk(home, client, signer_of(), posted)
    finally:
        client.close()


def test_each_message_gets_its_own_word_in_order(tmp_path: Path) -> None:
    """A good word for one message would be taken for another's."""
    with desk(tmp_path) as found:
        good = signed_by(found.ours, tmp_path / "signer")
        for number, payload in enumerate([good, BODY, good.replace(b"hi", b"ho"), good]):
            found.ask(payload, number)
        expected = [Verdict.GOOD, Verdict.UNSIGNED, Verdict.BAD_SIGNATURE, Verdict.GOOD]
        assert list(map(Verified, range(4), expected)) == [found.answer() for _ in range(4)]


def test_whom_to_believe_is_what_was_told_last(tmp_path: Path) -> None:
    """A key that the service has withdrawn would be good until a restart, or a new one bad."""
    with desk(tmp_path) as found:
        other = signer_of()
        payload = signed_by(other, tmp_path / "other")
        verdicts = []
        for others in ((), (other,), ()):
            found.ask(payload, 1, *others)
            verdicts.append(found.answer().verdict)
        assert [Verdict.UNKNOWN_SIGNER, Verdict.GOOD, Verdict.UNKNOWN_SIGNER] == verdicts


def test_one_that_dies_or_hangs_is_a_failure_and_the_next_is_another(tmp_path: Path) -> None:
    """A message would be taken unseen, or nothing be taken any more."""
    with desk(tmp_path) as found:
        good = signed_by(found.ours, tmp_path / "signer")
        found.ask(good)
        assert Verdict.GOOD is found.answer().verdict
        os.kill(found.pid, signal.SIGSTOP)
        found.client.answer_seconds = 0.2
        found.ask(good)
        assert Verdict.FAILED is found.answer().verdict
        found.client.answer_seconds = within(60)
        found.ask(good)
        assert Verdict.GOOD is found.answer().verdict
        os.kill(found.pid, signal.SIGKILL)
        found.ask(good)
        assert Verdict.FAILED is found.answer().verdict


def no_thread(*_: object) -> NoReturn:
    raise RuntimeError("can't start new thread")


def test_where_no_thread_can_be_started_each_message_has_its_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that was once short of memory would take no command until its restart."""
    with desk(tmp_path) as found:
        good = signed_by(found.ours, tmp_path / "signer")
        order, chains = Verify(1, TOPIC, good, NOW), (chain_of(found.ours),)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_thread)
            assert Verified(1, Verdict.FAILED, "can't start new thread") == found.client.verify(order, chains)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Timer, "start", no_thread)
            assert found.client.verify(order, chains) is None
            assert Verified(1, Verdict.FAILED, "can't start new thread") == found.answer()
        found.ask(good, 2)
        assert Verified(2, Verdict.GOOD) == found.answer()


def test_a_process_that_ends_slowly_keeps_nobody_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent would stand still; or two processes look at once; or what an ended connection left go first."""
    ends, may_end, wait = threading.Event(), threading.Event(), subprocess.Popen.wait

    def slow_wait(process: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        ends.set()
        may_end.wait(within(60))
        return wait(process, timeout)

    with desk(tmp_path, idle_seconds=0) as found:
        good = signed_by(found.ours, tmp_path / "signer")
        monkeypatch.setattr(subprocess.Popen, "wait", slow_wait)
        found.ask(good)
        assert Verdict.GOOD is found.answer().verdict
        assert ends.wait(within(20))
        thread = found.client._thread
        try:
            for number, epoch in ((2, 1), (3, 2), (4, 2)):
                order = Verify(number, TOPIC, good, NOW, epoch)
                asking = threading.Thread(target=found.client.verify, args=(order, (chain_of(found.ours),)))
                asking.start()
                asking.join(within(20))
                assert not asking.is_alive()
            assert thread is found.client._thread
        finally:
            may_end.set()
        assert [Verified(3, Verdict.GOOD), Verified(4, Verdict.GOOD)] == [found.answer() for _ in range(2)]


def test_without_roots_nothing_is_good(tmp_path: Path) -> None:
    """A home that lost its trust would trust everybody, or take the agent with it."""
    with desk(tmp_path) as found:
        found.home.trust.unlink()
        found.ask(signed_by(found.ours, tmp_path / "signer"))
        answer = found.answer()
        assert Verdict.FAILED is answer.verdict
        assert "without a word" in answer.detail or "pipe" in answer.detail.lower()


def test_it_is_gone_when_nothing_comes(tmp_path: Path) -> None:
    """A Pi would give 30 MB for ever to a command that came once."""
    with desk(tmp_path, idle_seconds=0) as found:
        good = signed_by(found.ours, tmp_path / "signer")
        found.ask(good)
        assert Verdict.GOOD is found.answer().verdict
        thread = found.client._thread
        if thread is not None:
            thread.join(within(20))
        assert found.client._child is None
        found.ask(good)
        assert Verdict.GOOD is found.answer().verdict
