"""A running agent's renewal: a short-lived process makes the successor, this swaps `current` and tells the service."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, assert_never

from device_agent import https, tls
from device_agent.clock import Clock
from device_agent.core.effects import Confirm, ForgetPredecessor, Renew, RenewalOrder, UsePredecessor, UseSuccessor
from device_agent.core.events import (
    ConfirmationFailed,
    Confirmed,
    Event,
    IdentityChanged,
    RenewalFailed,
    RenewalPutOff,
    SuccessorReady,
)
from device_agent.failures import Cause, Failure
from device_agent.refusals import refusal_of
from device_agent.renewal import Code, Life, Problem, life_of, problem_of
from device_agent.store import Disk
from device_agent.succession import Succession
from fleet import messages
from fleet.errors import FleetError, InvalidInput
from fleet.identity import Server
from fleet.layout import AgentHome, Credential, decode_credential

if TYPE_CHECKING:
    import subprocess

CONFIRM_PATH: Final = "/v1/confirm"  # fleet.est.CONFIRM, which `run` may not load: a test compares them
# Longer than all time-outs of its requests together.
CHILD_SECONDS: Final = 240.0
_MAX_OUTPUT_BYTES: Final = 65_536
_NOTHING: Final = Problem(Code.CRASHED, "the process that renews ended without a word", "its words are in the log")


@dataclass(slots=True)
class Renewer:
    """Performs the core's orders. `life` is the certificate's that is in use."""

    home: AgentHome
    disk: Disk
    credential: Credential
    clock: Clock
    post: Callable[[Event], None]
    _child: subprocess.Popen[bytes] | None = None
    _threads: list[threading.Thread] = field(default_factory=list)

    def perform(self, order: RenewalOrder) -> Event | None:
        """Do it, or begin it on a thread; the event that must come before any other, if there is one."""
        match order:
            case Renew():
                self._start(lambda: self._prepare(order), RenewalFailed(_NOTHING))
            case Confirm():
                self._start(self._confirm, ConfirmationFailed(_NOTHING))
            case UseSuccessor():
                return self._change(Succession(self.home, self.disk).promote_candidate)
            case UsePredecessor():
                return self._change(Succession(self.home, self.disk).fall_back)
            case ForgetPredecessor():
                with contextlib.suppress(OSError, FleetError):  # the next renewal removes it
                    Succession(self.home, self.disk).forget_previous()
            case _:
                assert_never(order)
        return None

    def close(self) -> None:
        """End what is under way; what it had written is gone on from."""
        child = self._child
        if child is not None and child.poll() is None:
            child.kill()
        for thread in self._threads:
            thread.join(2)

    def _change(self, change: Callable[[], Credential]) -> Event:
        try:
            self.credential = change()
        except OSError as error:
            return IdentityChanged(life_of(self.credential), error.strerror or str(error))
        except FleetError as error:
            return IdentityChanged(life_of(self.credential), error.message)
        return IdentityChanged(life_of(self.credential))

    def _start(self, work: Callable[[], Event], otherwise: Event) -> None:
        """Post what becomes of it; `otherwise` if it raises: the core waits for a word."""

        def run() -> None:
            event = otherwise
            try:
                event = work()
            finally:
                self.post(event)

        self._threads = [thread for thread in self._threads if thread.is_alive()]
        thread = threading.Thread(target=run, name="renewal", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _prepare(self, order: Renew) -> Event:
        import subprocess  # here, as it is: most of the time nothing is renewed

        options = ["--paced"] * order.is_paced + ["--fresh"] * order.is_fresh
        try:
            return self._read(self._run_child(options))
        except subprocess.TimeoutExpired:
            return RenewalFailed(Problem(Code.OVERDUE, "a renewal was not over in time", "check the network"))
        except (OSError, InvalidInput, KeyError, TypeError, ValueError) as error:
            return RenewalFailed(Problem(Code.CRASHED, f"{_NOTHING.message}: {error}", _NOTHING.hint))

    def _run_child(self, options: Sequence[str]) -> bytes:
        """What it prints. `-P`: nothing of the folder that the agent was started in is loaded."""
        import subprocess

        command = [sys.executable, "-P", "-m", "device_agent.renewal_child", "--home", str(self.home.path), *options]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as child:
            self._child = child
            try:
                return child.communicate(timeout=CHILD_SECONDS)[0]
            except BaseException:
                child.kill()
                raise

    @staticmethod
    def _read(output: bytes) -> Event:
        """The event in what the process printed. Raises: InvalidInput, KeyError, TypeError, ValueError."""
        if not output:
            return RenewalFailed(_NOTHING)
        fields: dict[str, Any] = messages.decode_object(output, max_bytes=_MAX_OUTPUT_BYTES)
        match fields["outcome"]:
            case "ready":
                return SuccessorReady(_life_in(output))
            case "later":
                return RenewalPutOff(float(fields["wait_seconds"]))
            case _:
                retry = float(fields["retry_seconds"])
                return RenewalFailed(Problem(fields["code"], fields["message"], fields["hint"], retry))

    def _confirm(self) -> Event:
        failure = confirm(self.home, self.credential.enroll_url, self.clock)
        if failure is None:
            return Confirmed()
        return ConfirmationFailed(problem_of(failure, self.credential.device, self.credential.not_after))


def _life_in(output: bytes) -> Life:
    return life_of(decode_credential(output))


def confirm(home: AgentHome, url: str, clock: Clock) -> Failure | None:
    """Tell the service that the certificate in use is; None once it knows, else why it does not."""
    peer = https.peer_of(url)
    try:
        context = tls.context_for(Server.ENROLL, home.trust.read_text(), clock, home.identity)
        answer = https.send(https.Request(url, CONFIRM_PATH, "POST", body=b""), context)
    except https.RequestFailed as error:
        return error.failure
    except (OSError, ValueError) as error:
        return Failure(Cause.LOCAL, peer, str(error))
    if (refused := refusal_of(answer)) is not None:
        return Failure(refused, peer, f"HTTP {answer.status}")
    return None if answer.status == 200 else Failure(Cause.BAD_ANSWER, peer, f"HTTP {answer.status}")
