"""What planning needs to outlive the controller: applications, users' sessions, decisions, the planner's setting."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "applications",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("record", sa.Text, nullable=False),
    )
    op.create_table(
        "sessions",
        sa.Column("user_name", sa.Text, primary_key=True),  # `user` is a word of SQL's own
        sa.Column("record", sa.Text, nullable=False),
    )
    op.create_table(
        "decisions",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("user_name", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("made_unix_s", sa.Float(53), nullable=False),
        sa.Column("record", sa.Text, nullable=False),
    )
    op.create_index("decisions_by_user", "decisions", ["user_name", "made_unix_s"])
    op.create_index("decisions_by_state", "decisions", ["state"])
    op.create_index("decisions_by_time", "decisions", ["made_unix_s"])
    op.create_table(
        "settings",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("record", sa.Text, nullable=False),
    )
