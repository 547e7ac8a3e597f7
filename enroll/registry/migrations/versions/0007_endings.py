"""Predecessors of confirmed certificates, and when they end."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Create what ends a renewed certificate after its grace."""
    op.create_table(
        "endings",
        sa.Column("serial", sa.String(40), nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("serial", name="pk_endings"),
        sa.ForeignKeyConstraint(["serial"], ["certificates.serial"], name="fk_endings_serial"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_endings_at", "endings", ["at"])
