"""The lines of CRLs, and which of their shards have changed."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Create them; what had ended before is on the list since its issuance, because no better date is known."""
    op.create_table(
        "revocations",
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("serial", sa.String(40), nullable=False),
        sa.Column("issuer", sa.String(16), nullable=False),
        sa.Column("shard", sa.Integer, nullable=False),
        sa.Column("not_after", sa.BigInteger, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.String(24), nullable=True),
        sa.PrimaryKeyConstraint("number", name="pk_revocations"),
        sa.ForeignKeyConstraint(["number"], ["certificates.number"], name="fk_revocations_number"),
    )
    op.create_index("ix_revocations_shard", "revocations", ["shard"])
    op.create_index("ix_revocations_issuer_not_after", "revocations", ["issuer", "not_after"])
    op.create_table(
        "crl_shards",
        sa.Column("shard", sa.Integer, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("shard", name="pk_crl_shards"),
    )
    op.execute(_ENDED)
    op.execute("INSERT INTO crl_shards (shard, revision) SELECT DISTINCT shard, 1 FROM revocations")


_ENDED = """
    INSERT INTO revocations (number, serial, issuer, shard, not_after, at, reason)
    SELECT c.number, c.serial, c.issuer, c.shard, c.not_after, c.created_at,
           CASE WHEN c.state = 'superseded' THEN 'superseded' WHEN c.state = 'revoked' THEN NULL
                ELSE 'certificateHold' END
    FROM certificates c LEFT JOIN principals p ON p.id = c.principal
    WHERE c.state IN ('superseded', 'revoked') OR (p.state = 'suspended' AND c.state IN ('pending', 'confirmed'))
"""
