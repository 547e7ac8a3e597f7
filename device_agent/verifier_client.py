"""The process that looks at signatures: started for the first message, ended when none has come for a while.

Whatever becomes of it, the core gets a word for each message: one that hangs is killed, and one that dies or says
something else has failed. Only the word `good` is acted on, and only for the message that it was said of.
"""

from __future__ import annotations

import base64
import contextlib
import json
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Final

from device_agent.core.effects import Verify
from device_agent.core.events import Event, Verified
from device_agent.verdicts import Verdict
from fleet import messages, signers
from fleet.errors import FleetError
from fleet.layout import AgentHome
from fleet.signers import Chain

if TYPE_CHECKING:
    import subprocess

IDLE_SECONDS: Final = 30.0
# It loads `cryptography` first: a second or two on the smallest Pi, more while that swaps.
ANSWER_SECONDS: Final = 60.0
_MAX_ANSWER_BYTES: Final = 4096


class _NoAnswer(FleetError):
    """The process gave no word, or another one."""


@dataclass(slots=True)
class VerifierClient:
    """Performs `Verify`, in the order they come in; what it has to say is posted. Any thread may call it."""

    home: AgentHome
    post: Callable[[Event], None]
    idle_seconds: float = IDLE_SECONDS
    answer_seconds: float = ANSWER_SECONDS
    _orders: deque[tuple[Verify, tuple[Chain, ...]]] = field(default_factory=deque)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _thread: threading.Thread | None = None
    _child: subprocess.Popen[bytes] | None = None
    _believes: tuple[Chain, ...] = ()
    _is_closed: bool = False

    def verify(self, order: Verify, chains: tuple[Chain, ...]) -> Verified | None:
        """Look whether the message is signed by one of these. Returns at once: `Verified` comes of it, or is returned.

        What came on an earlier connection comes again, and is not looked at any more.
        """
        with self._changed:
            if self._thread is None and (problem := self._start_thread()):
                return Verified(order.number, Verdict.FAILED, problem)
            self._orders = deque(each for each in self._orders if each[0].epoch == order.epoch)
            self._orders.append((order, chains))
            self._changed.notify()
        return None

    def _start_thread(self) -> str:
        """Why none can be started, if so: memory, or the number of threads, is at its end."""
        thread = threading.Thread(target=self._run, name="verifier", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            return str(error)
        self._thread = thread
        return ""

    def close(self) -> None:
        """End what is under way."""
        with self._changed:
            self._is_closed = True
            self._orders.clear()
            child, thread = self._child, self._thread
            self._changed.notify()
        if child is not None and child.poll() is None:
            child.kill()
        if thread is not None:
            thread.join(2)

    def _run(self) -> None:
        while (taken := self._next()) is not None:
            self.post(self._judged(*taken))

    def _next(self) -> tuple[Verify, tuple[Chain, ...]] | None:
        """The next order; None once this thread is to end, and another is started for what comes later."""
        with self._changed:
            self._changed.wait_for(lambda: self._orders or self._is_closed, self.idle_seconds)
            if self._orders and not self._is_closed:
                return self._orders.popleft()
        # Not under the lock, for which the agent's main thread would wait. `_thread` still stands, so no other
        # thread starts a process of its own meanwhile.
        self._end_child()
        with self._changed:
            if self._orders and not self._is_closed:
                return self._orders.popleft()
            self._thread = None
            return None

    def _judged(self, order: Verify, chains: tuple[Chain, ...]) -> Verified:
        try:
            return Verified(order.number, self._ask(order, chains))
        except Exception as error:  # no memory, no thread for the watch: whatever it is, there is a word
            self._end_child()
            detail = error.message if isinstance(error, FleetError) else str(error) or type(error).__name__
            return Verified(order.number, Verdict.FAILED, detail)

    def _ask(self, order: Verify, chains: tuple[Chain, ...]) -> Verdict:
        """Raises: OSError, _NoAnswer, ValueError, InvalidInput."""
        source, sink = self._pipes(chains)
        child = self._child
        assert child is not None
        question = {
            "number": order.number,
            "topic": order.topic,
            "now": messages.format_time(order.now),
            "payload": base64.b64encode(order.payload).decode(),
        }
        # A write waits as well as a read where it hangs; killed, both end.
        watch = threading.Timer(self.answer_seconds, child.kill)
        watch.daemon = True
        watch.start()
        try:
            sink.write(json.dumps(question).encode() + b"\n")
            sink.flush()
            answer = source.readline(_MAX_ANSWER_BYTES)
        finally:
            watch.cancel()
        if not answer:
            raise _NoAnswer("the process that looks at signatures ended without a word")
        fields = messages.decode_object(answer)
        if fields.get("number") != order.number:
            raise _NoAnswer("the process that looks at signatures answered something else")
        return Verdict(str(fields.get("verdict")))

    def _pipes(self, chains: tuple[Chain, ...]) -> tuple[IO[bytes], IO[bytes]]:
        """From and to a process that believes just these. Raises: OSError."""
        if self._child is None or self._believes != chains:
            self._end_child()
            self._start_child(chains)
        assert self._child is not None
        assert self._child.stdout is not None
        assert self._child.stdin is not None
        return self._child.stdout, self._child.stdin

    def _start_child(self, chains: tuple[Chain, ...]) -> None:
        """`-P`: nothing of the folder that the agent was started in is loaded."""
        import subprocess  # here, as it is: most of the time nothing is looked at

        command = [sys.executable, "-P", "-m", "device_agent.verifier_child", "--home", str(self.home.path)]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        with self._changed:
            self._child, self._believes = child, chains
            if self._is_closed:
                child.kill()
        assert child.stdin is not None
        child.stdin.write(json.dumps({"signers": signers.to_json(chains)}).encode() + b"\n")

    def _end_child(self) -> None:
        """Nothing that it does is worth waiting for."""
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what was not written is for nobody
                    pipe.close()
