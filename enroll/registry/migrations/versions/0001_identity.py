"""Principals, keys, certificates, tokens, requests, outbox, audit."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the tables of issue 2."""
    op.create_table(
        "meta",
        sa.Column("name", sa.String(32), nullable=False),
        sa.Column("value", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_meta"),
    )
    op.create_table(
        "principals",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("groups", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_principals"),
        sa.CheckConstraint("epoch >= 1", name="ck_principals_epoch"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "keys",
        sa.Column("spki_sha256", sa.LargeBinary(32), nullable=False),
        sa.Column("principal", sa.String(64), nullable=True),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("spki_sha256", name="pk_keys"),
        sa.ForeignKeyConstraint(["principal"], ["principals.id"], name="fk_keys_principal"),
        sqlite_with_rowid=False,
    )
    _create_certificates()
    _create_tokens()
    op.create_table(
        "outbox",
        sa.Column("seq", sa.Integer, nullable=False),
        sa.Column("principal", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_outbox"),
        sa.ForeignKeyConstraint(["principal"], ["principals.id"], name="fk_outbox_principal"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_outbox_principal_seq", "outbox", ["principal", "seq"])
    op.create_table(
        "audit",
        sa.Column("seq", sa.Integer, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("event", sa.String(64), nullable=False),
        sa.Column("fields", sa.Text, nullable=False),
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_audit"),
        sqlite_autoincrement=True,
    )


def _create_certificates() -> None:
    op.create_table(
        "certificates",
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("serial", sa.String(40), nullable=False),
        sa.Column("issuer", sa.String(16), nullable=False),
        sa.Column("profile", sa.String(16), nullable=False),
        sa.Column("principal", sa.String(64), nullable=True),
        sa.Column("key", sa.LargeBinary(32), nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("parent", sa.String(40), nullable=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("shard", sa.Integer, nullable=True),
        sa.Column("not_before", sa.BigInteger, nullable=True),
        sa.Column("not_after", sa.BigInteger, nullable=True),
        sa.Column("der", sa.LargeBinary, nullable=True),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_certificates"),
        sa.UniqueConstraint("serial", name="uq_certificates_serial"),
        sa.ForeignKeyConstraint(["principal"], ["principals.id"], name="fk_certificates_principal"),
        sa.ForeignKeyConstraint(["key"], ["keys.spki_sha256"], name="fk_certificates_key"),
        sa.ForeignKeyConstraint(["parent"], ["certificates.serial"], name="fk_certificates_parent"),
        sa.CheckConstraint("state = 'intended' OR der IS NOT NULL", name="ck_certificates_result"),
    )
    op.create_index("ix_certificates_principal_state", "certificates", ["principal", "state"])


def _create_tokens() -> None:
    op.create_table(
        "tokens",
        sa.Column("id", sa.String(16), nullable=False),
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
        sa.Column("device", sa.String(64), nullable=True),
        sa.Column("pattern", sa.String(64), nullable=True),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("groups", sa.Text, nullable=False),
        sa.Column("profile", sa.String(16), nullable=False),
        sa.Column("replace", sa.Boolean, nullable=False),
        sa.Column("uses", sa.Integer, nullable=False),
        sa.Column("uses_left", sa.Integer, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("revoked_at", sa.BigInteger, nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_tokens"),
        sa.CheckConstraint("uses_left >= 0 AND uses_left <= uses", name="ck_tokens_uses"),
        sa.CheckConstraint("(device IS NULL) != (pattern IS NULL)", name="ck_tokens_names"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "requests",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("token", sa.String(16), nullable=False),
        sa.Column("key", sa.LargeBinary(32), nullable=False),
        sa.Column("certificate", sa.Integer, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_requests"),
        sa.ForeignKeyConstraint(["token"], ["tokens.id"], name="fk_requests_token"),
        sa.ForeignKeyConstraint(["key"], ["keys.spki_sha256"], name="fk_requests_key"),
        sa.ForeignKeyConstraint(["certificate"], ["certificates.number"], name="fk_requests_certificate"),
        sa.UniqueConstraint("token", "key", name="uq_requests_token_key"),
    )
