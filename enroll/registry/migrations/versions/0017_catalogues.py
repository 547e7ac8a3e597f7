"""Which commands devices take."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    """Create what commands are checked against before they are given."""
    op.create_table(
        "catalogues",
        sa.Column("principal", sa.String(64), nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("commands", sa.Text, nullable=False),
        sa.Column("changed_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("principal", name="pk_catalogues"),
        sa.ForeignKeyConstraint(["principal"], ["principals.id"], name="fk_catalogues_principal"),
    )
