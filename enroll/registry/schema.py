"""The registry's tables. Migrations create them; a test compares the two.

A table whose key is no number is one tree in SQLite (`sqlite_with_rowid`): a page less to write in every commit.

Times are microseconds since 1970 in UTC (`Instant`), so that every database orders and keeps them alike.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    false,
    text,
)

metadata: Final = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class Instant(TypeDecorator[datetime]):
    """A moment: an aware datetime in Python, microseconds since 1970 in the database."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        return None if value is None else (value - _EPOCH) // _MICROSECOND

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        return None if value is None else _EPOCH + timedelta(microseconds=value)


meta: Final = Table(
    "meta",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("value", Text, nullable=False),
)
"""`feed`: the id that changes when the registry is made anew or restored."""

principals: Final = Table(
    "principals",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("role", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("groups", Text, nullable=False),  # a JSON list of names
    Column("created_at", Instant, nullable=False),
    CheckConstraint("epoch >= 1", name="epoch"),
    # for PostgreSQL only the migrations say so: named here, its dialect is loaded at the start of every command
    Index(None, "state", sqlite_where=text("state != 'active'")),
    Index(None, "role", sqlite_where=text("role != 'device'")),
    sqlite_with_rowid=False,
)
"""Whoever holds a client certificate. An id keeps its role for ever; `epoch` counts enrolments by token."""

memberships: Final = Table(
    "memberships",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("principal", ForeignKey("principals.id"), primary_key=True),
    sqlite_with_rowid=False,
)
"""Who is in which group: what `principals.groups` says, to be asked the other way round."""

labels: Final = Table(
    "labels",
    metadata,
    Column("principal", ForeignKey("principals.id"), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("value", String(64), nullable=False),
    Index(None, "name", "value", "principal"),
    sqlite_with_rowid=False,
)
"""What admins note of a principal, to find it by. A label belongs to the name: a successor has it too."""

keys: Final = Table(
    "keys",
    metadata,
    Column("spki_sha256", LargeBinary(32), primary_key=True),
    Column("principal", ForeignKey("principals.id"), nullable=True),
    Column("created_at", Instant, nullable=False),
    sqlite_with_rowid=False,
)
"""Each public key that was ever certified, and whose it is for ever; NULL is a server of the fleet."""

certificates: Final = Table(
    "certificates",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("serial", String(40), nullable=False, unique=True),
    Column("issuer", String(16), nullable=False),
    Column("profile", String(16), nullable=False),
    Column("principal", ForeignKey("principals.id"), nullable=True),
    Column("key", ForeignKey("keys.spki_sha256"), nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("parent", ForeignKey("certificates.serial"), nullable=True),
    Column("state", String(16), nullable=False),
    Column("shard", Integer, nullable=True),
    Column("not_before", Instant, nullable=True),
    Column("not_after", Instant, nullable=True),
    Column("der", LargeBinary, nullable=True),
    Column("created_at", Instant, nullable=False),
    CheckConstraint("state = 'intended' OR der IS NOT NULL", name="result"),
    Index(None, "principal", "state"),
)
"""What was signed. `parent` is the serial that it renewed.

A row is whole from its first moment on; columns that may be NULL, and the state `intended`, are from when it was not.
"""

tokens: Final = Table(
    "tokens",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("digest", LargeBinary(32), nullable=False),
    Column("device", String(64), nullable=True),
    Column("pattern", String(64), nullable=True),
    Column("role", String(16), nullable=False),
    Column("groups", Text, nullable=False),  # a JSON list of names
    Column("profile", String(16), nullable=False),
    Column("replace", Boolean, nullable=False),
    Column("uses", Integer, nullable=False),
    Column("uses_left", Integer, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("expires_at", Instant, nullable=False),
    Column("revoked_at", Instant, nullable=True),
    Column("sources", Text, nullable=False, server_default="[]"),  # a JSON list of networks
    Column("approval", String(8), nullable=False, server_default="auto"),
    CheckConstraint("uses_left >= 0 AND uses_left <= uses", name="uses"),
    CheckConstraint("(device IS NULL) != (pattern IS NULL)", name="names"),
    Index(None, "device"),
    Index(None, "created_at"),
    sqlite_with_rowid=False,
)
"""Enrolment tokens; of the secret only its digest."""

requests: Final = Table(
    "requests",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("token", ForeignKey("tokens.id"), nullable=False),
    Column("key", ForeignKey("keys.spki_sha256"), nullable=False),
    Column("certificate", ForeignKey("certificates.number"), nullable=False),
    Column("created_at", Instant, nullable=False),
    UniqueConstraint("token", "key"),
)
"""Each redemption of a token: the same token and key get the same certificate again."""

approvals: Final = Table(
    "approvals",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("token", ForeignKey("tokens.id"), nullable=True),
    Column("device", String(64), nullable=False),
    Column("key", LargeBinary(32), nullable=False),
    Column("state", String(16), nullable=False),
    Column("address", String(64), nullable=False),
    Column("network", String(64), nullable=False),
    Column("hardware_serial", String(64), nullable=False),
    Column("model", String(64), nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("expires_at", Instant, nullable=False),
    Column("decided_by", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("certificate", ForeignKey("certificates.number"), nullable=True),
    Column("recovers", ForeignKey("certificates.serial"), nullable=True),
    Index(None, "key"),
    Index(None, "device"),
    Index(None, "token"),
    Index(None, "expires_at"),
    sqlite_with_rowid=False,
)
"""Requests that an admin has to approve: with a token that says so, by the key of a certificate that expired, or
neither (pairing)."""

manufacturer_cas: Final = Table(
    "manufacturer_cas",
    metadata,
    Column("fingerprint", LargeBinary(32), primary_key=True),  # SHA-256 of the certificate
    Column("manufacturer", String(64), nullable=False),
    Column("der", LargeBinary, nullable=False),
    Column("created_at", Instant, nullable=False),
)
"""The CAs whose certificates prove hardware (IDevID, IEEE 802.1AR); a manufacturer may have several."""

claims: Final = Table(
    "claims",
    metadata,
    Column("manufacturer", String(64), primary_key=True),
    Column("hardware_serial", String(64), primary_key=True),
    Column("device", String(64), nullable=False, unique=True),
    Column("groups", Text, nullable=False),  # a JSON list of names
    Column("profile", String(16), nullable=False),
    Column("replace", Boolean, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("certificate", ForeignKey("certificates.number"), nullable=True),
    sqlite_with_rowid=False,
)
"""Which hardware may have which id: one each. `certificate` is what it was given; with `replace` it may come again."""

outbox: Final = Table(
    "outbox",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("principal", ForeignKey("principals.id"), nullable=False),
    Index(None, "principal", "seq"),
    sqlite_autoincrement=True,
)
"""What brokers have to hear of, numbered in commit order."""

audit: Final = Table(
    "audit",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("at", Instant, nullable=False),
    Column("event", String(64), nullable=False),
    Column("fields", Text, nullable=False),  # canonical JSON
    Column("digest", LargeBinary(32), nullable=False),
    sqlite_autoincrement=True,
)
"""What was done, each entry's digest over the one before it (`enroll/audit.py`)."""

presence: Final = Table(
    "presence",
    metadata,
    Column("principal", ForeignKey("principals.id"), primary_key=True),
    Column("online", Boolean, nullable=False),
    Column("reason", Text, nullable=False),
    Column("agent", Text, nullable=False),
    Column("changed_at", Instant, nullable=False),
    Column("last_seen", Instant, nullable=False),
    Column("claimed", Boolean, nullable=False, server_default=false()),
    Column("said", Text, nullable=False, server_default=""),
    Column("boot", String(64), nullable=False, server_default=""),
    Column("session", BigInteger, nullable=False, server_default=text("0")),
    Column("address", Text, nullable=False, server_default=""),
    Column("broker", Text, nullable=False, server_default=""),
    Column("changes", BigInteger, nullable=False, server_default=text("0")),
    Index(None, "online", "principal"),
)
"""Who is connected, as dispatch heard. `last_seen` moves with each status, hello and result, not with telemetry.

`claimed` and `said` are the device's own word, its last status; `boot`, `session` and `address` are the broker's, of
the session that it has or had. `changes` counts what went into the history.
"""

presence_changes: Final = Table(
    "presence_changes",
    metadata,
    Column("principal", ForeignKey("principals.id"), primary_key=True),
    Column("slot", Integer, primary_key=True, autoincrement=False),
    Column("number", BigInteger, nullable=False),
    Column("at", Instant, nullable=False),
    Column("online", Boolean, nullable=False),
    Column("reason", Text, nullable=False),
    Column("said", Text, nullable=False),
    Column("address", Text, nullable=False),
    Column("broker", Text, nullable=False),
    Column("before", Instant, nullable=True),
    sqlite_with_rowid=False,
)
"""How each came and went, the last so many: a new one takes the slot of the oldest, so nothing grows.

`before`: since when it had been what it then ceased to be. A gap between numbers: so many were not worth a line.
"""

_OF_A_JOB: Final = "job IS NOT NULL"
UNCOUNTED: Final = f"{_OF_A_JOB} AND counted != state AND state NOT IN ('queued', 'sent', 'accepted', 'running')"
"""What a job has not heard of yet: the condition of an index, word for word, and of no other."""

commands: Final = Table(
    "commands",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("device", ForeignKey("principals.id"), nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("name", String(64), nullable=False),
    Column("args", Text, nullable=False),  # a JSON object
    Column("state", String(16), nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("deadline", Instant, nullable=False),
    Column("changed_at", Instant, nullable=False),
    Column("output", Text, nullable=True),  # a JSON value
    Column("error", Text, nullable=False),
    Column("is_due", Boolean, nullable=False, server_default=false()),
    Column("job", Integer, nullable=True),
    Column("counted", String(16), nullable=False, server_default=""),
    Index(None, "state", "deadline"),
    Index(None, "device", "state"),
    Index(None, "is_due", sqlite_where=text("is_due = 1")),
    Index(None, "job", "state", "counted", sqlite_where=text(_OF_A_JOB)),
    Index(None, "counted", sqlite_where=text(UNCOUNTED)),
    sqlite_autoincrement=True,
)
"""Orders to devices, in the order they were given. `epoch`: who takes over an id does not inherit its commands.

`is_due`: queued, and its device is online. Those for who is away may be a million, and are not looked at.
`job`: the number of the job that it is part of, which has counted it as `counted`; not yet if that is empty.
"""
