"""Whose session the broker has, what devices said of themselves, and when they came and went."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    """Create the history; of who is there now, only what it said itself is known."""
    for name, kind, default in (
        ("claimed", sa.Boolean(), sa.false()),
        ("said", sa.Text(), ""),
        ("boot", sa.String(64), ""),
        ("session", sa.BigInteger(), sa.text("0")),
        ("address", sa.Text(), ""),
        ("broker", sa.Text(), ""),
        ("changes", sa.BigInteger(), sa.text("0")),
    ):
        op.add_column("presence", sa.Column(name, kind, nullable=False, server_default=default))
    op.execute("UPDATE presence SET claimed = online")
    op.create_table(
        "presence_changes",
        sa.Column("principal", sa.String(64), nullable=False),
        sa.Column("slot", sa.Integer(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("online", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("said", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("broker", sa.Text(), nullable=False),
        sa.Column("before", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("principal", "slot", name="pk_presence_changes"),
        sa.ForeignKeyConstraint(["principal"], ["principals.id"], name="fk_presence_changes_principal"),
        sqlite_with_rowid=False,
    )
