"""Who asked for a certificate, which starts of an agent spoke, and alarms of identities that two may use."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Create them. What is not pending counts as confirmed since its issuance: no better date is known."""
    op.create_table(
        "provenance",
        sa.Column("serial", sa.String(40), nullable=False),
        *_texts("address", "hardware", "model"),
        sa.Column("confirmed_at", sa.BigInteger, nullable=True),
        sa.Column("seen_at", sa.BigInteger, nullable=True),
        *_texts("seen_address"),
        sa.Column("kept_at", sa.BigInteger, nullable=True),
        sa.PrimaryKeyConstraint("serial", name="pk_provenance"),
        sa.ForeignKeyConstraint(["serial"], ["certificates.serial"], name="fk_provenance_serial"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "alarms",
        sa.Column("principal", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(24), nullable=False),
        sa.Column("serial", sa.String(40), nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("first_at", sa.BigInteger, nullable=False),
        sa.Column("last_at", sa.BigInteger, nullable=False),
        sa.Column("count", sa.Integer, nullable=False),
        *_texts("address", "hardware", "model"),
        sa.Column("detail", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("principal", "kind", "serial", name="pk_alarms"),
        sa.ForeignKeyConstraint(["principal"], ["principals.id"], name="fk_alarms_principal"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "boots",
        sa.Column("principal", sa.String(64), nullable=False),
        sa.Column("boot", sa.String(64), nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("place", sa.Integer, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("serial", sa.String(40), nullable=False),
        *_texts("hardware"),
        sa.Column("first_at", sa.BigInteger, nullable=False),
        sa.Column("last_at", sa.BigInteger, nullable=False),
        sa.Column("returns", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("principal", "boot", name="pk_boots"),
        sa.ForeignKeyConstraint(["principal"], ["principals.id"], name="fk_boots_principal"),
        sqlite_with_rowid=False,
    )
    op.execute(_CONFIRMED)


def _texts(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.String(64), nullable=False) for name in names]


_CONFIRMED = """
    INSERT INTO provenance (serial, address, hardware, model, confirmed_at, seen_address)
    SELECT serial, '', '', '', created_at, '' FROM certificates
    WHERE parent IS NOT NULL AND state NOT IN ('pending', 'intended')
"""
