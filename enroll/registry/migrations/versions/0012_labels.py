"""Labels of principals."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Create what devices are found by."""
    op.create_table(
        "labels",
        sa.Column("principal", sa.String(64), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("value", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("principal", "name", name="pk_labels"),
        sa.ForeignKeyConstraint(["principal"], ["principals.id"], name="fk_labels_principal"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_labels_name_value_principal", "labels", ["name", "value", "principal"])
