"""Jobs: a command brought to many devices in waves."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    """Create jobs and whom they are for; a command may be of a job from now on."""
    op.create_table(
        "jobs",
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("id", sa.String(16), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("args", sa.Text, nullable=False),
        sa.Column("asked", sa.Text, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("is_active", sa.Boolean, nullable=False),
        sa.Column("waves", sa.Text, nullable=False),
        sa.Column("wave_ends_at", sa.BigInteger, nullable=True),
        *(sa.Column(name, sa.Integer, nullable=False) for name in _NUMBERS),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("created_by", sa.Text, nullable=False),
        sa.Column("ended_at", sa.BigInteger, nullable=True),
        sa.Column("reason", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_jobs"),
        sa.UniqueConstraint("id", name="uq_jobs_id"),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_jobs_is_active",
        "jobs",
        ["is_active"],
        sqlite_where=sa.text("is_active = 1"),
    )
    op.create_table(
        "job_targets",
        sa.Column("job", sa.Integer, nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("device", sa.String(64), nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("command", sa.String(64), nullable=True),
        sa.Column("skipped", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("job", "position", name="pk_job_targets"),
        sa.ForeignKeyConstraint(["job"], ["jobs.number"], name="fk_job_targets_job"),
        sa.ForeignKeyConstraint(["device"], ["principals.id"], name="fk_job_targets_device"),
        sa.UniqueConstraint("job", "device", name="uq_job_targets_job_device"),
        sqlite_with_rowid=False,
    )
    op.add_column("commands", sa.Column("job", sa.Integer, nullable=True))
    op.add_column("commands", sa.Column("counted", sa.String(16), nullable=False, server_default=""))
    for name, columns, condition in (
        ("ix_commands_job_state_counted", ["job", "state", "counted"], "job IS NOT NULL"),
        ("ix_commands_counted", ["counted"], _UNCOUNTED),
    ):
        op.create_index(name, "commands", columns, sqlite_where=sa.text(condition))


_UNCOUNTED = "job IS NOT NULL AND counted != state AND state NOT IN ('queued', 'sent', 'accepted', 'running')"
_NUMBERS = (
    *("canary", "max_failures", "wave_seconds", "command_seconds", "wave"),
    *("total", "reached", "done", "failed", "missed", "silent", "skipped"),
)
