"""`device-agent renew`: a new certificate now, by the running agent, or by this process where none runs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from device_agent.clock import Clock
from device_agent.hardware import UNKNOWN, Hardware
from device_agent.renewal_client import confirm
from device_agent.renewing import Later, NotRenewed, Order, Renewing
from device_agent.status import ask_agent
from device_agent.store import Disk, Store, only_one
from device_agent.succession import Succession
from fleet.errors import Denied, FleetError, InvalidInput, TimedOut, Unreachable
from fleet.identity import Serial
from fleet.layout import AgentHome
from fleet.messages import parse_time

# A successor, a connection with it, and if that fails the way back.
_AGENT_SECONDS: Final = 300.0
_DENIED: Final = (
    "renewal-refused",
    "not-admitted",
    "broker-refuses",
    "refused",
    "own-expired",
    "recovery-refused",
    "approval-denied",
    "identity-used-twice",
)
_OURS: Final = ("disk", "under-way", "crashed", "local", "too-soon")
_LATER: Final = ("waiting-for-approval",)


@dataclass(frozen=True, slots=True)
class Renewed:
    """The certificate that is in use now. `warning`: what is left to do, and is done later."""

    serial: Serial
    not_after: datetime
    warning: str = ""


@dataclass(frozen=True, slots=True)
class RenewCommand:
    """One run of the command."""

    home: AgentHome
    disk: Disk
    clock: Clock
    hardware: Hardware = UNKNOWN

    def run(self) -> Renewed:
        """Raises: Denied, Unreachable, TimedOut, FleetError."""
        Store(self.home, self.disk).credential()
        try:
            return _told(ask_agent(self.home, "renew", _AGENT_SECONDS))
        except (FileNotFoundError, ConnectionRefusedError):
            return self._renew()
        except (OSError, InvalidInput) as error:
            raise TimedOut(f"the agent does not answer: {error}", hint="device-agent status tells more") from error

    @property
    def _renewing(self) -> Renewing:
        return Renewing(self.home, self.disk, self.clock, self.hardware)

    def _renew(self) -> Renewed:
        """With no agent there is no connection to lose: what proves the certificate is all that can be had."""
        succession = Succession(self.home, self.disk)
        with only_one(self.home):
            try:
                found = self._renewing.prepare(Order(is_paced=True))
                assert not isinstance(found, Later)
                credential = succession.promote_candidate()
            except NotRenewed as error:
                problem = error.problem
                raise error_of(problem.code, problem.message, problem.hint) from error
            except OSError as error:
                raise FleetError(f"the home cannot be written: {error.strerror or error}") from error
            failure = confirm(self.home, credential.enroll_url, self.clock)
            if failure is None:
                succession.forget_previous()
            warning = (
                "" if failure is None else f"the service does not know it yet ({failure.cause}): the agent tells it"
            )
            return Renewed(credential.serial, credential.not_after, warning)


def _told(line: dict[str, Any]) -> Renewed:
    """What the running agent says. Raises: FleetError."""
    if line.get("state") == "renewed":
        return Renewed(Serial(str(line.get("serial"))), parse_time(line.get("not_after")))
    raise error_of(str(line.get("code")), str(line.get("message")), str(line.get("hint")))


def error_of(code: str, message: str, hint: str) -> FleetError:
    """A failed renewal as the command line ends with it; the certificate before is in use."""
    kind = Denied if code in _DENIED else FleetError if code in _OURS else TimedOut if code in _LATER else Unreachable
    return kind(f"not renewed ({code}): {message}", hint=hint)
