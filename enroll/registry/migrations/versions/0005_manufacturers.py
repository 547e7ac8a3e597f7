"""Manufacturers' CAs, and which hardware is which device."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Create what devices with a manufacturer's certificate enrol by."""
    op.create_table(
        "manufacturer_cas",
        sa.Column("fingerprint", sa.LargeBinary(32), nullable=False),
        sa.Column("manufacturer", sa.String(64), nullable=False),
        sa.Column("der", sa.LargeBinary, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("fingerprint", name="pk_manufacturer_cas"),
    )
    op.create_table(
        "claims",
        sa.Column("manufacturer", sa.String(64), nullable=False),
        sa.Column("hardware_serial", sa.String(64), nullable=False),
        sa.Column("device", sa.String(64), nullable=False),
        sa.Column("groups", sa.Text, nullable=False),
        sa.Column("profile", sa.String(16), nullable=False),
        sa.Column("replace", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("certificate", sa.Integer, nullable=True),
        sa.PrimaryKeyConstraint("manufacturer", "hardware_serial", name="pk_claims"),
        sa.UniqueConstraint("device", name="uq_claims_device"),
        sa.ForeignKeyConstraint(["certificate"], ["certificates.number"], name="fk_claims_certificate"),
        sqlite_with_rowid=False,
    )
