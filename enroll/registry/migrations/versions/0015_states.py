"""What devices are to be, and are."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    """Create the table, and the index of what has to go out."""
    op.create_table(
        "states",
        sa.Column("principal", sa.String(64), nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("desired", sa.Text, nullable=False),
        sa.Column("desired_version", sa.BigInteger, nullable=False),
        sa.Column("desired_at", sa.BigInteger, nullable=True),
        sa.Column("known", sa.Text, nullable=True),
        sa.Column("known_version", sa.BigInteger, nullable=False),
        sa.Column("known_at", sa.BigInteger, nullable=True),
        sa.Column("sent_version", sa.BigInteger, nullable=False),
        sa.Column("reported", sa.Text, nullable=False),
        sa.Column("reported_version", sa.BigInteger, nullable=False),
        sa.Column("reported_tag", sa.String(32), nullable=False),
        sa.Column("reported_at", sa.BigInteger, nullable=True),
        sa.Column("is_due", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.PrimaryKeyConstraint("principal", name="pk_states"),
        sa.ForeignKeyConstraint(["principal"], ["principals.id"], name="fk_states_principal"),
        sqlite_with_rowid=False,
    )
    op.create_index(
        "ix_states_is_due",
        "states",
        ["is_due"],
        sqlite_where=sa.text("is_due = 1"),
        postgresql_where=sa.text("is_due"),
    )
