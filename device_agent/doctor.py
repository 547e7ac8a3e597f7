"""`device-agent doctor`: looks at everything that keeps a device offline, and says what to do, with a code for each.

Codes are stable: scripts and the documentation (docs/agent.md) name them. What it looks at, it only looks at.
"""

from __future__ import annotations

import functools
import os
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from device_agent import config_client, https, status, storage, tls, waiting
from device_agent.clock import Clock
from device_agent.failures import Cause, Failure, words
from device_agent.mqtt import CONNECT_SECONDS, KEEPALIVE_SECONDS, connect_packet
from device_agent.store import Store, check_private
from fleet.address import Address
from fleet.clock import HINT
from fleet.errors import FleetError, InvalidInput, NotFound, printable
from fleet.identity import DeviceId, Server
from fleet.layout import AgentHome, Credential

# Below it nothing is certain: a spool, a journal and a new generation of keys want room.
_FREE_BYTES: Final = 16 << 20
_LATE: Final = 0.15  # of a certificate's life (DESIGN section 8)


class Outcome(StrEnum):
    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


class Code(StrEnum):
    """What can be wrong beside the connections, whose codes are `service-` and `broker-` and a `Cause`."""

    OK = "ok"
    NOT_ENROLLED = "not-enrolled"
    WAITING_FOR_APPROVAL = "waiting-for-approval"
    IDENTITY_DAMAGED = "identity-damaged"
    IDENTITY_OPEN = "identity-open"
    IDENTITY_EXPIRED = "identity-expired"
    IDENTITY_EXPIRES = "identity-expires"
    CLOCK_WRONG = "clock-wrong"
    AGENT_NOT_RUNNING = "agent-not-running"
    AGENT_HANGS = "agent-hangs"
    AGENT_OFFLINE = "agent-offline"
    NO_APPLICATION = "no-application"
    DISK_FULL = "disk-full"
    STORAGE_READ_ONLY = "storage-read-only"
    SPOOL_FAILED = "spool-failed"
    SPOOL_DAMAGED = "spool-damaged"
    MESSAGES_DROPPED = "messages-dropped"
    RENEWAL_FAILS = "renewal-fails"
    MESSAGES_REFUSED = "messages-refused"
    MESSAGES_UNSIGNED = "messages-unsigned"
    VERIFIER_FAILED = "verifier-failed"
    IDENTITY_USED_TWICE = Cause.USED_TWICE.value


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `hint` is what to do, if anything."""

    subject: str
    outcome: Outcome
    code: str
    message: str
    hint: str = ""

    def fields(self) -> dict[str, str]:
        return {
            "subject": self.subject,
            "outcome": self.outcome.value,
            "code": self.code,
            "message": self.message,
            "hint": self.hint,
        }


@dataclass(frozen=True, slots=True)
class Doctor:
    """Looks at one home."""

    home: AgentHome
    store: Store
    clock: Clock

    @property
    def now(self) -> datetime:
        return self.clock.reading().utc

    def examine(self) -> list[Finding]:
        """Everything, in the order in which a device needs it."""
        credential, findings = self._identity()
        findings += self._disk()
        if credential is None:
            return findings
        agent = list(self._agent())
        is_online = any((each.subject, each.outcome) == ("agent", Outcome.OK) for each in agent)
        brokers, found = self._service(credential)  # who answers may know better than our clock what time it is
        findings += [self._clock(), *self._validity(credential)]
        return [*findings, *agent, *found, *self._brokers(credential, brokers, is_online)]

    def _identity(self) -> tuple[Credential | None, list[Finding]]:
        try:
            credential = self.store.credential()
        except NotFound as error:
            note = waiting.read_note(self.home)
            if note is not None:
                waits = note.fields()
                return None, [_failed("identity", Code.WAITING_FOR_APPROVAL, waits["words"], waits["hint"])]
            return None, [_failed("identity", Code.NOT_ENROLLED, error.message, error.hint)]
        except FleetError as error:
            return None, [_failed("identity", Code.IDENTITY_DAMAGED, error.message, error.hint)]
        try:
            check_private(self.home.path)
            check_private(self.home.identity.key)
            roots = self.home.trust.read_text()
            tls.context_for(Server.BROKER, roots, self.clock, self.home.identity)
        except FleetError as error:
            return credential, [_failed("identity", Code.IDENTITY_OPEN, error.message, error.hint)]
        except (OSError, ValueError) as error:
            said = words(Failure(Cause.LOCAL, "", str(error)), credential.device)
            return credential, [_failed("identity", Code.IDENTITY_DAMAGED, said.message, said.hint)]
        return credential, [_ok("identity", f"{credential.device} ({credential.role.value}), {credential.serial}")]

    def _clock(self) -> Finding:
        found = self.clock.reading()
        if found.words:
            return _warning("clock", Code.CLOCK_WRONG, found.words, HINT)
        return _ok("clock", f"{found.utc:%Y-%m-%d %H:%M} UTC")

    def _validity(self, credential: Credential) -> list[Finding]:
        date = f"{credential.not_after:%Y-%m-%d %H:%M} UTC"
        if self.now > credential.not_after:
            said = words(Failure(Cause.OWN_EXPIRED), credential.device, credential.not_after)
            return [_failed("certificate", Code.IDENTITY_EXPIRED, said.message, said.hint)]
        left = (credential.not_after - self.now) / (credential.not_after - credential.not_before)
        if left < _LATE:
            hint = "renew it, or hear why not: device-agent renew"
            return [_warning("certificate", Code.IDENTITY_EXPIRES, f"it ends soon, on {date}", hint)]
        return [_ok("certificate", f"valid until {date}")]

    def _disk(self) -> Iterator[Finding]:
        folder = next(path for path in (self.home.path, *self.home.path.parents) if path.exists())
        found = os.statvfs(folder)
        free = found.f_bavail * found.f_frsize
        if storage.is_read_only(folder):
            text = f"{folder} is {status.READ_ONLY_WORDS}"
            yield _failed("disk", Code.STORAGE_READ_ONLY, text, status.READ_ONLY_HINT)
        elif free < _FREE_BYTES:
            text = f"{free >> 10} KiB are free at {folder}: what waits may be lost with the power"
            yield _failed("disk", Code.DISK_FULL, text, "make room: journalctl --vacuum-size=20M, df -h")
        else:
            yield _ok("disk", f"{free >> 20} MiB are free")
        damaged = self.home.path / "spool.damaged"
        if damaged.exists():
            text = f"a damaged spool was kept aside as {damaged}"
            yield _warning(
                "spool", Code.SPOOL_DAMAGED, text, "a worn card does this; remove the file once it is seen to"
            )

    def _agent(self) -> Iterator[Finding]:
        try:
            fields = status.ask_agent(self.home)
        except (FileNotFoundError, ConnectionRefusedError):
            yield _failed("agent", Code.AGENT_NOT_RUNNING, "the agent is not running", "start it: device-agent run")
            return
        except (OSError, InvalidInput) as error:
            yield _failed("agent", Code.AGENT_HANGS, f"the agent does not answer: {error}", "restart it")
            return
        if fields["state"] == "online":
            yield _ok("agent", str(fields["words"]))
        else:
            yield _failed("agent", Code.AGENT_OFFLINE, str(fields["words"]), str(fields.get("hint", "")))
        if not fields.get("applications"):
            yield _warning(
                "application",
                Code.NO_APPLICATION,
                "no application has registered: this device sends nothing and obeys no command",
                f"start the firmware; it connects to {self.home.path / 'run' / 'app.sock'}",
            )
        yield from _spool(fields)
        yield from _downlink(fields.get("downlink", {}))
        renewal = fields.get("renewal", {})
        if renewal.get("code") == Code.WAITING_FOR_APPROVAL:
            words_, hint = str(renewal.get("words")), str(renewal.get("hint", ""))
            yield _failed("renewal", Code.WAITING_FOR_APPROVAL, words_, hint)
        elif renewal.get("failures"):
            text = f"the certificate was not renewed ({renewal.get('code')}): {renewal.get('words')}"
            yield _warning("renewal", Code.RENEWAL_FAILS, text, str(renewal.get("hint", "")))

    def _service(self, credential: Credential) -> tuple[tuple[Address, ...], list[Finding]]:
        url, device = credential.enroll_url, credential.device
        try:
            found = config_client.fetch(self.home, url, self.clock)
        except https.RequestFailed as error:
            brokers = config_client.known_brokers(self.home)
            twice = [_used_twice(error.failure, device)] if error.failure.cause is Cause.USED_TWICE else []
            return brokers, [*twice, _unreachable("service", error.failure, credential, self.now)]
        twice = [_used_twice(Failure(Cause.USED_TWICE, https.peer_of(url)), device)] if found.is_used_twice else []
        if not found.brokers:
            failure = Failure(Cause.NO_BROKER, https.peer_of(url))
            return (), [*twice, _unreachable("service", failure, credential, self.now)]
        named = f"{printable(url)} answers, and names {', '.join(map(str, found.brokers))}"
        return found.brokers, [*twice, _ok("service", named)]

    def _brokers(self, credential: Credential, brokers: tuple[Address, ...], is_online: bool) -> Iterator[Finding]:
        """A connection to each; no CONNECT while the agent is online, whose connection it would take away."""
        for broker in brokers:
            try:
                context = tls.context_for(Server.BROKER, self.home.trust.read_text(), self.clock, self.home.identity)
                with context.in_time(functools.partial(tls.connect, context, broker, CONNECT_SECONDS)) as secure:
                    if not is_online:
                        _be_admitted(secure, str(credential.device))
                    yield _ok("broker", f"{broker} is ours and lets us in, {secure.version()}")
            except PermissionError as error:
                yield _unreachable("broker", Failure(Cause.REFUSED, str(broker), str(error)), credential, self.now)
            except (OSError, ValueError) as error:
                yield _unreachable("broker", tls.failure_of(error, str(broker)), credential, self.now)


def _be_admitted(connection: ssl.SSLSocket, device: str) -> None:
    """CONNECT, as the agent does, and take leave. Raises: OSError if the broker does not let us in."""
    connection.settimeout(CONNECT_SECONDS)
    connection.sendall(connect_packet(device, KEEPALIVE_SECONDS))
    answer = connection.recv(4)
    if not answer:
        raise ConnectionResetError("it closed the connection instead of an answer")
    if answer[:1] != b"\x20" or answer[3:4] != b"\0":
        raise PermissionError(f"CONNACK: return code {answer[-1]}")
    connection.sendall(b"\xe0\x00")


def codes() -> list[str]:
    """Every code that a finding can have."""
    return [*Code, *(f"{subject}-{cause}" for subject in ("service", "broker") for cause in Cause)]


def as_lines(findings: list[Finding]) -> Iterator[str]:
    """For a person."""
    for each in findings:
        mark = {Outcome.OK: "ok", Outcome.WARNING: "WARN", Outcome.FAILED: "FAIL"}[each.outcome]
        code = "" if each.outcome is Outcome.OK else f" [{each.code}]"
        yield f"{mark:<5}{each.subject:<12}{printable(each.message)}{code}"
        if each.hint:
            yield f"     {'':<12}do: {printable(each.hint)}"


def is_well(findings: list[Finding]) -> bool:
    return not any(each.outcome is Outcome.FAILED for each in findings)


def _spool(fields: dict[str, Any]) -> Iterator[Finding]:
    spool = fields.get("spool", {})
    waiting_messages, dropped = fields.get("waiting_messages", 0), fields.get("dropped_messages", 0)
    if spool.get("error"):
        text = f"what waits cannot be written: {spool['error']}"
        yield _failed("spool", Code.SPOOL_FAILED, text, "make room on the disk, and check that it is not read-only")
    if dropped:
        text = f"{dropped} messages were dropped since the agent started"
        yield _warning("spool", Code.MESSAGES_DROPPED, text, "send less, or keep more: device-agent run --spool MIB")
    if not spool.get("error") and not dropped:
        yield _ok("spool", f"{waiting_messages} messages wait, {spool.get('bytes', 0) >> 10} KiB on disk")


def _downlink(fields: dict[str, Any]) -> Iterator[Finding]:
    """Nothing of an agent that is older than signatures."""
    last, problem = fields.get("refused"), fields.get("problem")
    if problem:
        text = f"signatures cannot be looked at, and no command is taken: {problem}"
        yield _failed("down-link", Code.VERIFIER_FAILED, text, "its words are in the log; is there memory left?")
    if last:
        text = f"{fields['refused_count']} refused since the agent started, the last on {last['topic']}"
        yield _warning("down-link", Code.MESSAGES_REFUSED, f"{text}: {last['words']} ({last['code']})", last["hint"])
    if fields.get("trust") == "unsigned":
        text = "the service signs nothing: whoever can publish on the broker commands this device"
        yield _warning("down-link", Code.MESSAGES_UNSIGNED, text, "update the enrollment service")
    elif fields.get("trust") == "signed" and not last and not problem:
        yield _ok("down-link", f"{fields.get('verified_count', 0)} messages were taken, each signed by the fleet")


def _unreachable(subject: str, failure: Failure, credential: Credential, now: datetime) -> Finding:
    if failure.cause in (Cause.REFUSED, Cause.CLOSED) and now > credential.not_after:
        failure = Failure(Cause.OWN_EXPIRED, failure.peer, failure.detail)
    said = words(failure, credential.device, credential.not_after)
    return Finding(subject, Outcome.FAILED, f"{subject}-{failure.cause.value}", said.message, said.hint)


def _used_twice(failure: Failure, device: DeviceId) -> Finding:
    said = words(failure, device)
    return _failed("identity", Code.IDENTITY_USED_TWICE, said.message, said.hint)


def _ok(subject: str, message: str) -> Finding:
    return Finding(subject, Outcome.OK, Code.OK.value, message)


def _warning(subject: str, code: Code, message: str, hint: str) -> Finding:
    return Finding(subject, Outcome.WARNING, code.value, message, hint)


def _failed(subject: str, code: Code, message: str, hint: str) -> Finding:
    return Finding(subject, Outcome.FAILED, code.value, message, hint)


def public_files(home: AgentHome) -> list[Path]:
    """What may leave the device: no key, no message, no argument or answer of a command."""
    return [home.meta, home.identity.certificate, home.trust, home.path / "config.json"]
