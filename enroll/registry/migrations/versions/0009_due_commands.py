"""Which commands may go out now, so that those which wait for who is away are not looked at."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Mark them; what a device that is no more was to be sent is given up, as from now on at once."""
    op.add_column("commands", sa.Column("is_due", sa.Boolean, nullable=False, server_default=sa.false()))
    op.create_index(
        "ix_commands_is_due",
        "commands",
        ["is_due"],
        sqlite_where=sa.text("is_due = 1"),
        postgresql_where=sa.text("is_due"),
    )
    op.execute(_ORPHANED)
    op.execute(_DUE)


_ORPHANED = """
    UPDATE commands SET state = 'expired'
    WHERE state IN ('queued', 'sent') AND EXISTS (
        SELECT 1 FROM principals p
        WHERE p.id = commands.device AND (p.epoch != commands.epoch OR p.state IN ('revoked', 'removed'))
    )
"""
_DUE = """
    UPDATE commands SET is_due = 1
    WHERE state = 'queued' AND device IN (SELECT principal FROM presence WHERE online)
"""
