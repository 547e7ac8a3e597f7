"""Requests that an admin has to approve."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Create what waits for an admin."""
    op.create_table(
        "approvals",
        sa.Column("id", sa.String(16), nullable=False),
        sa.Column("token", sa.String(16), nullable=True),
        sa.Column("device", sa.String(64), nullable=False),
        sa.Column("key", sa.LargeBinary(32), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("address", sa.String(64), nullable=False),
        sa.Column("network", sa.String(64), nullable=False),
        sa.Column("hardware_serial", sa.String(64), nullable=False),
        sa.Column("model", sa.String(64), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("decided_by", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("certificate", sa.Integer, nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_approvals"),
        sa.ForeignKeyConstraint(["token"], ["tokens.id"], name="fk_approvals_token"),
        sa.ForeignKeyConstraint(["certificate"], ["certificates.number"], name="fk_approvals_certificate"),
        sqlite_with_rowid=False,
    )
    for column in ("key", "device", "token", "expires_at"):
        op.create_index(f"ix_approvals_{column}", "approvals", [column])
