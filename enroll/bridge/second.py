"""The broker that Home Assistant uses, driven by one thread: nothing is queued that the network does not take."""

from __future__ import annotations

import contextlib
import ssl
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.reasoncodes import ReasonCode

from enroll.bridge.house import Publication
from fleet.address import Address
from fleet.errors import Denied, FleetError, InvalidInput, Unreachable, reason_of
from fleet.layout import IdentityFiles

_SECONDS: Final = 10.0
_KEEPALIVE_SECONDS: Final = 30
_MAX_UNCONFIRMED: Final = 20
_WANTS: Final = "does it want a certificate? --cert FILE --key FILE"
_OTHER_NAME: Final = (62, 64)  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
_DATES: Final = (9, 10)  # X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED
ONLINE: Final = b"online"
OFFLINE: Final = b"offline"


class NotTrusted(Unreachable):
    """What answers is not that broker, as far as a certificate can tell."""


@dataclass(frozen=True, slots=True)
class Second:
    """Where it is, and as whom we come. `is_tls`: encrypted; `ca`: whom to believe, if not the system's.

    `identity`: the certificate that we show, for a broker that wants one.
    """

    address: Address
    client_id: str
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    is_tls: bool = False
    ca: Path | None = None
    identity: IdentityFiles | None = None

    def __str__(self) -> str:
        return f"{'mqtts' if self.is_tls else 'mqtt'}://{self.address}"


def read_password(path: Path) -> str:
    """The first line of a file. Raises: InvalidInput."""
    try:
        return path.read_text(encoding="utf-8").partition("\n")[0]
    except (OSError, UnicodeError) as error:
        raise InvalidInput(f"{path} cannot be read: {reason_of(error)}") from error


class SecondConnection:
    """One connection to it, from `open` to `close`. At its end without `close` it says itself that we are offline."""

    def __init__(self, second: Second, availability: str) -> None:
        self._second = second
        self._availability = availability
        self._arrived: deque[tuple[str, bytes, bool]] = deque()
        self._answer: ReasonCode | None = None
        self._ended = False
        self._unconfirmed: set[int] = set()
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            second.client_id,
            clean_session=True,
            protocol=MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
        )
        client.connect_timeout = _SECONDS
        client.will_set(availability, OFFLINE, 1, retain=True)
        if second.user is not None:
            client.username_pw_set(second.user, second.password)
        if second.is_tls:
            client.tls_set_context(_context(second))
        client.on_connect = self._on_connect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_disconnect = self._on_disconnect
        self._client = client

    @classmethod
    def open(cls, second: Second, availability: str, monotonic: Callable[[], float]) -> Self:
        """A connection that is let in. Raises: Unreachable, NotTrusted, Denied, FleetError (our files)."""
        connection = cls(second, availability)
        try:
            connection._client.connect(second.address.host, second.address.port, _KEEPALIVE_SECONDS)
            connection._until(lambda: connection._answer is not None, "no CONNACK", monotonic)
        except (OSError, ValueError) as error:
            connection.close()
            raise _no_connection(second, error) from error
        except BaseException:
            connection.close()
            raise
        answer = connection._answer
        if answer is not None and answer.is_failure:
            connection.close()
            raise Denied(f"{second} refuses: {str(answer).lower()}", hint="--user and --password-file say who we are")
        return connection

    def recall(self, topic_filters: Sequence[str], monotonic: Callable[[], float]) -> list[tuple[str, bytes]]:
        """What is retained there; from now on it shows us as online. Raises: Unreachable."""
        self._client.subscribe([(each, 1) for each in (*topic_filters, self._availability)])
        # Our own word comes behind all that was retained when we subscribed.
        self.publish([Publication(self._availability, ONLINE)], monotonic)
        kept: list[tuple[str, bytes]] = []

        def is_all() -> bool:
            while self._arrived:
                topic, payload, is_retained = self._arrived.popleft()
                if topic == self._availability and not is_retained:
                    return True
                kept.append((topic, payload))
            return False

        self._until(is_all, "it does not send what it is sent", monotonic)
        self._client.unsubscribe([*topic_filters, self._availability])
        return kept

    def publish(self, publications: Iterable[Publication], monotonic: Callable[[], float]) -> None:
        """Send them, as fast as they are taken. Raises: Unreachable."""
        for each in publications:
            info = self._client.publish(each.topic, each.payload, each.qos, retain=True)
            if each.qos:
                self._unconfirmed.add(info.mid)
            if self._client.want_write() or len(self._unconfirmed) >= _MAX_UNCONFIRMED:
                self._until(self._has_room, "it takes nothing", monotonic)

    def settle(self, monotonic: Callable[[], float]) -> None:
        """Wait until it has all that is to be confirmed. Raises: Unreachable."""
        self._until(lambda: not self._unconfirmed and not self._client.want_write(), "it confirms nothing", monotonic)

    def turn(self) -> None:
        """Serve the network, without waiting. Raises: Unreachable at the end of the connection."""
        self._loop(0.0)
        self._arrived.clear()

    def close(self) -> None:
        """Say DISCONNECT if anyone listens, and end."""
        with contextlib.suppress(OSError, ValueError):
            self._client.disconnect()
        sock = self._client.socket()
        if sock is not None:
            sock.close()

    def _has_room(self) -> bool:
        return not self._client.want_write() and len(self._unconfirmed) < _MAX_UNCONFIRMED

    def _until(self, is_so: Callable[[], bool], why_not: str, monotonic: Callable[[], float]) -> None:
        deadline = monotonic() + _SECONDS
        while not is_so():
            if monotonic() > deadline:
                raise Unreachable(f"{self._second}: {why_not} within {_SECONDS:.0f} s")
            self._loop(0.1)

    def _loop(self, seconds: float) -> None:
        if self._ended or self._client.loop(seconds) != paho.MQTT_ERR_SUCCESS:
            if self._answer is not None and self._answer.is_failure:
                return  # the refusal says more than the end that comes with it
            hint = "" if self._answer is not None or not self._second.is_tls else _WANTS
            raise Unreachable(f"{self._second}: the connection has ended", hint=hint)

    def _on_connect(self, client: paho.Client, data: Any, flags: Any, reason: ReasonCode, properties: Any) -> None:
        self._answer = reason

    def _on_message(self, client: paho.Client, data: Any, message: paho.MQTTMessage) -> None:
        with contextlib.suppress(UnicodeDecodeError):
            self._arrived.append((message.topic, bytes(message.payload), message.retain))

    def _on_publish(self, client: paho.Client, data: Any, mid: int, reason: ReasonCode, properties: Any) -> None:
        self._unconfirmed.discard(mid)

    def _on_disconnect(self, client: paho.Client, data: Any, flags: Any, reason: ReasonCode, properties: Any) -> None:
        self._ended = True


def _no_connection(second: Second, error: OSError | ValueError) -> Unreachable:
    if not isinstance(error, ssl.SSLCertVerificationError):
        hint = "does it speak TLS on that port?" if isinstance(error, ssl.SSLError) else "is it the right address?"
        return Unreachable(f"{second}: {reason_of(error)}", hint=hint)
    said = error.verify_message.rstrip(".").lower()
    if error.verify_code in _DATES:  # ours, or theirs, may be set yet
        return Unreachable(f"{second}: {said}", hint="is the time right, here and there?")
    if error.verify_code in _OTHER_NAME:
        return NotTrusted(f"{second}: its certificate is another's: {said}", hint="connect to a name that it has")
    by = "the system's CAs" if second.ca is None else str(second.ca)
    return NotTrusted(f"{second}: its certificate is not good by {by}: {said}", hint="--ca FILE: who has issued it")


class _Socket(ssl.SSLSocket):
    """One that is closed if the handshake fails: paho leaves it to the garbage collector, and we try for ever."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise


def _context(second: Second) -> ssl.SSLContext:
    """Raises: FleetError."""
    try:
        context = ssl.create_default_context(cafile=None if second.ca is None else str(second.ca))
        context.sslsocket_class = _Socket
    except (OSError, ValueError) as error:
        raise FleetError(f"{second.ca} cannot be used: {error}", hint="the CA's certificate in PEM") from error
    if second.identity is not None:
        files = second.identity
        try:
            # An encrypted key would have OpenSSL ask whoever is at the terminal.
            context.load_cert_chain(files.certificate, files.key, password=lambda: b"")
        except (OSError, ValueError) as error:
            what = f"{files.certificate} with {files.key} cannot be used: {reason_of(error)}"
            raise FleetError(what, hint="a certificate and its key in PEM, not encrypted") from error
    return context
