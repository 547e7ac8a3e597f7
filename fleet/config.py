"""`HOME/fleet.toml`: one frozen value, every problem reported at once, an unknown key an error."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import timedelta
from ipaddress import ip_address
from typing import Any, Final, TypeVar

from fleet.address import Address as Address  # noqa: PLC0414 - part of this module, too
from fleet.address import parse_address as parse_address  # noqa: PLC0414
from fleet.errors import FleetError, InvalidInput
from fleet.identity import DeviceId, Role, TrustDomain
from fleet.limits import Limits
from fleet.policy import DEFAULT_RULES, Action, Policy, Rule
from fleet.uploads import UploadLimits

DEFAULT_ENROLL_LISTEN: Final = "0.0.0.0:8443"
DEFAULT_BROKER_LISTEN: Final = "0.0.0.0:8883"
DEFAULT_CRL_LISTEN: Final = "0.0.0.0:8080"
DEFAULT_RECOVERY_GRACE: Final = timedelta(days=180)
DEFAULT_SESSION_EXPIRY: Final = timedelta(days=14)
DEFAULT_PRESENCE_GRACE: Final = timedelta(seconds=150)  # an agent tries again every two minutes at the latest
DEFAULT_UPLOADS: Final = UploadLimits()
OFF: Final = "off"

_LIFE: Final = re.compile(r"([1-9][0-9]{0,6})([smhd])")
_ENROLL_KEYS: Final = {"listen", "pairing", "life", "crl_listen", "recovery_grace", "uploads", "presence_grace"}
_BROKER_KEYS: Final = {"listen", "limits", "metrics", "durable", "session_expiry"}
_UNITS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_Bounds = TypeVar("_Bounds", Limits, UploadLimits)


@dataclass(frozen=True, slots=True)
class CrlListen:
    """Where CRLs are served; None: nowhere. Nobody asked for the default: if it is taken, the service does without."""

    address: Address | None
    is_default: bool = False

    def __str__(self) -> str:
        return OFF if self.address is None else str(self.address)


DEFAULT_CRL: Final = CrlListen(parse_address(DEFAULT_CRL_LISTEN), is_default=True)


def parse_crl_listen(text: str) -> CrlListen:
    """`HOST:PORT`, or `off`. Raises: InvalidInput."""
    return CrlListen(None if text == OFF else parse_address(text))


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True, slots=True)
class FleetConfig:
    """What `enroll` and `broker` read from `fleet.toml`. `hosts` are the DNS names and IP addresses of both servers.

    `enroll_life`: by profile, how long a client's certificate lives; the profile's own life where it says nothing.
    `recovery_grace`: for how long after its end a device's certificate recovers without an admin.
    `session_expiry`: how long the broker keeps the session of a client that does not come.
    `uploads`: how much devices may send on request.
    `presence_grace`: how long after a start of the broker its devices may take to come back before they are offline.
    """

    trust_domain: TrustDomain
    hosts: tuple[str, ...]
    crl_url: str
    enroll_listen: Address
    broker_listen: Address
    broker_limits: Limits
    policy: Policy
    enroll_pairing: bool = False
    broker_metrics: Address | None = None
    enroll_life: Mapping[str, timedelta] = field(default_factory=dict)
    crl_listen: CrlListen = DEFAULT_CRL
    recovery_grace: timedelta = DEFAULT_RECOVERY_GRACE
    broker_durable: bool = True
    session_expiry: timedelta = DEFAULT_SESSION_EXPIRY
    uploads: UploadLimits = DEFAULT_UPLOADS
    presence_grace: timedelta = DEFAULT_PRESENCE_GRACE


def load(text: str) -> FleetConfig:
    """The configuration in `text`. Raises: InvalidInput that names every problem."""
    import tomllib  # not for the device agent, which reads no configuration: a megabyte until it is imported

    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"fleet.toml is not TOML: {error}") from error
    reader = _Reader(table, [])
    config = reader.read()
    if reader.problems or config is None:
        raise InvalidInput("fleet.toml: " + "; ".join(reader.problems), hint="docs/operations.md lists every key")
    return config


@dataclass(slots=True)
class _Reader:
    """Reads one table and keeps what is wrong with it."""

    table: Mapping[str, Any]
    problems: list[str]

    def read(self) -> FleetConfig | None:
        self._refuse_unknown("", self.table, {"trust_domain", "hosts", "crl_url", "enroll", "broker", "policy"})
        domain = self._trust_domain()
        hosts = tuple(self._texts("hosts", self.table.get("hosts", [])))
        if not hosts:
            self.problems.append("hosts names no host")
        crl_url = self._text("crl_url", self.table.get("crl_url"))
        enroll_listen = self._listen("enroll", _ENROLL_KEYS, DEFAULT_ENROLL_LISTEN)
        broker_listen = self._listen("broker", _BROKER_KEYS, DEFAULT_BROKER_LISTEN)
        rules = tuple(self._rules())
        if domain is None or enroll_listen is None or broker_listen is None:
            return None
        limits = self._limits("broker", "limits", Limits)
        policy = Policy(DEFAULT_RULES + rules)
        pairing, metrics, life = self._switch("enroll", "pairing"), self._metrics(), dict(self._lives())
        first = (domain, hosts, crl_url, enroll_listen, broker_listen, limits, policy)
        found = FleetConfig(*first, pairing, metrics, life, self._crl_listen(), self._recovery_grace())
        is_durable = self._switch("broker", "durable", default=True)
        uploads = self._limits("enroll", "uploads", UploadLimits)
        expiry = self._lasting("broker", "session_expiry", DEFAULT_SESSION_EXPIRY)
        grace = self._lasting("enroll", "presence_grace", DEFAULT_PRESENCE_GRACE)
        return replace(found, broker_durable=is_durable, session_expiry=expiry, uploads=uploads, presence_grace=grace)

    def _trust_domain(self) -> TrustDomain | None:
        try:
            return TrustDomain(self._text("trust_domain", self.table.get("trust_domain")))
        except InvalidInput as error:
            self.problems.append(f"trust_domain: {error}")
            return None

    def _listen(self, section: str, known: set[str], default: str) -> Address | None:
        table = self._section(section, known)
        try:
            return parse_address(self._text(f"{section}.listen", table.get("listen", default)))
        except InvalidInput as error:
            self.problems.append(f"{section}.listen: {error}")
            return None

    def _crl_listen(self) -> CrlListen:
        table = self.table.get("enroll", {})
        if not isinstance(table, dict) or "crl_listen" not in table:
            return DEFAULT_CRL
        try:
            return parse_crl_listen(self._text("enroll.crl_listen", table["crl_listen"]))
        except InvalidInput as error:
            self.problems.append(f"enroll.crl_listen: {error}")
            return DEFAULT_CRL

    def _metrics(self) -> Address | None:
        """Where to serve metrics; nobody has to show who they are there, so it is an address of this host."""
        table = self.table.get("broker", {})
        if not isinstance(table, dict) or "metrics" not in table:
            return None
        try:
            found = parse_address(self._text("broker.metrics", table["metrics"]))
        except InvalidInput as error:
            self.problems.append(f"broker.metrics: {error}")
            return None
        if not _is_loopback(found.host):
            self.problems.append(f"broker.metrics: {found} can be reached from outside; say so with --metrics {found}")
        return found

    def _lasting(self, section: str, name: str, default: timedelta) -> timedelta:
        table = self.table.get(section, {})
        text = table.get(name) if isinstance(table, dict) else None
        found = self._duration(f"{section}.{name}", text) if text is not None else None
        return found or default

    def _switch(self, section: str, name: str, *, default: bool = False) -> bool:
        """What that key says; off is the default of everything that is switched on."""
        table = self.table.get(section, {})
        value = table.get(name, default) if isinstance(table, dict) else default
        if not isinstance(value, bool):
            self.problems.append(f"{section}.{name} is not true or false")
        return value is True

    def _lives(self) -> Iterator[tuple[str, timedelta]]:
        table = self.table.get("enroll", {})
        lives = table.get("life", {}) if isinstance(table, dict) else {}
        if not isinstance(lives, dict):
            self.problems.append("enroll.life is not a table")
            return
        for profile, text in lives.items():
            if (life := self._duration(f"enroll.life.{profile}", text)) is not None:
                yield profile, life

    def _recovery_grace(self) -> timedelta:
        table = self.table.get("enroll", {})
        text = table.get("recovery_grace") if isinstance(table, dict) else None
        if text is None:
            return DEFAULT_RECOVERY_GRACE
        if text == OFF:
            return timedelta(0)
        return self._duration("enroll.recovery_grace", text) or DEFAULT_RECOVERY_GRACE

    def _duration(self, name: str, text: object) -> timedelta | None:
        found = _LIFE.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            self.problems.append(f"{name} is not a duration like 90d, 24h or 60s")
            return None
        return timedelta(seconds=int(found[1]) * _UNITS[found[2]])

    def _limits(self, section: str, name: str, kind: type[_Bounds]) -> _Bounds:
        """The numbers of one table, each above 0; a default where it has none."""
        known = {field.name: type(field.default) for field in fields(kind)}
        above, where = self.table.get(section, {}), f"{section}.{name}"
        table = above.get(name, {}) if isinstance(above, dict) else {}
        if not isinstance(table, dict):
            self.problems.append(f"{where} is not a table")
            return kind()
        self._refuse_unknown(f"{where}.", table, set(known))
        good = {key: value for key, value in table.items() if key in known}
        for key, value in list(good.items()):
            is_whole = isinstance(value, int) and not isinstance(value, bool)
            if not (is_whole or (known[key] is float and isinstance(value, float))) or not 0 < value < 2**53:
                self.problems.append(f"{where}.{key} is not a {'whole ' * (known[key] is int)}number above 0")
                del good[key]
        return kind(**good)

    def _rules(self) -> Iterator[Rule]:
        table = self._section("policy", {"rules"})
        rules = table.get("rules", [])
        if not isinstance(rules, list):
            self.problems.append("policy.rules is not a list of tables")
            return
        for number, rule in enumerate(rules):
            yield from self._rule(f"policy.rules[{number}]", rule)

    def _rule(self, where: str, rule: object) -> Iterator[Rule]:
        if not isinstance(rule, dict):
            self.problems.append(f"{where} is not a table")
            return
        self._refuse_unknown(f"{where}.", rule, {"name", "role", "id", "publish", "subscribe"})
        name = self._text(f"{where}.name", rule.get("name"))
        try:
            role = Role(self._text(f"{where}.role", rule.get("role")))
            device = DeviceId(self._text(f"{where}.id", rule["id"])) if "id" in rule else None
            for action in Action:
                for pattern in self._texts(f"{where}.{action}", rule.get(action.value, [])):
                    yield Rule(name, role, action, pattern, device)
        except (FleetError, ValueError) as error:
            self.problems.append(f"{where}: {error}")

    def _section(self, name: str, known: set[str]) -> Mapping[str, Any]:
        table = self.table.get(name, {})
        if not isinstance(table, dict):
            self.problems.append(f"{name} is not a table")
            return {}
        self._refuse_unknown(f"{name}.", table, known)
        return table

    def _refuse_unknown(self, prefix: str, table: Mapping[str, Any], known: set[str]) -> None:
        self.problems.extend(f"unknown key {prefix}{key}" for key in table if key not in known)

    def _text(self, name: str, value: object) -> str:
        if isinstance(value, str) and value:
            return value
        self.problems.append(f"{name} is missing" if value is None else f"{name} is not a text")
        return ""

    def _texts(self, name: str, value: object) -> Iterator[str]:
        if not isinstance(value, list):
            self.problems.append(f"{name} is not a list of texts")
            return
        for item in value:
            if text := self._text(name, item):
                yield text
