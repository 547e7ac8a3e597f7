"""Requests of devices whose certificate has expired."""

from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Requests that wait came with a token or as pairings, as before."""
    # Alembic adds no reference to a table of SQLite but by copying it; both databases can.
    op.execute(
        "ALTER TABLE approvals ADD COLUMN recovers VARCHAR(40) "
        "CONSTRAINT fk_approvals_recovers REFERENCES certificates (serial)"
    )
