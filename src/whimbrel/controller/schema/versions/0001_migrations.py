"""The records of migrations: the record as JSON beside the columns that are searched by."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    if sa.inspect(op.get_bind()).has_table("migrations"):
        return  # made by a version that knew no steps; it is the same table
    op.create_table(
        "migrations",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("service", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("destination", sa.Text, nullable=False),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("started_unix_s", sa.Float(53), nullable=False),
        sa.Column("record", sa.Text, nullable=False),
    )
    op.create_index("migrations_by_service", "migrations", ["service", "started_unix_s"])
    op.create_index("migrations_by_outcome", "migrations", ["outcome"])
    op.create_index("migrations_by_start", "migrations", ["started_unix_s"])
