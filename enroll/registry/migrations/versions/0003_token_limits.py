"""Where a token is taken from, and who approves what comes with it."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Tokens that exist are taken from everywhere and need nobody's approval, as before."""
    op.add_column("tokens", sa.Column("sources", sa.Text, nullable=False, server_default="[]"))
    op.add_column("tokens", sa.Column("approval", sa.String(8), nullable=False, server_default="auto"))
