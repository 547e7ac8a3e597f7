"""Indexes for a million devices, and groups as rows."""

import json

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Most devices are active and of role device: only the others are indexed by that, so enrolling costs nothing."""
    op.create_table(
        "memberships",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("principal", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("name", "principal", name="pk_memberships"),
        sa.ForeignKeyConstraint(["principal"], ["principals.id"], name="fk_memberships_principal"),
        sqlite_with_rowid=False,
    )
    for column, usual in (("state", "active"), ("role", "device")):
        unusual = sa.text(f"{column} != '{usual}'")
        name = f"ix_principals_{column}"
        op.create_index(name, "principals", [column], sqlite_where=unusual, postgresql_where=unusual)
    op.create_index("ix_presence_online_principal", "presence", ["online", "principal"])
    op.create_index("ix_tokens_device", "tokens", ["device"])
    op.create_index("ix_tokens_created_at", "tokens", ["created_at"])
    _fill_memberships()


def _fill_memberships() -> None:
    connection = op.get_bind()
    found = connection.exec_driver_sql("SELECT id, groups FROM principals WHERE groups != '[]'").all()
    for principal, groups in found:
        for name in dict.fromkeys(json.loads(groups)):
            connection.execute(
                sa.text("INSERT INTO memberships (name, principal) VALUES (:name, :principal)"),
                {"name": name, "principal": principal},
            )
