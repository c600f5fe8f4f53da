"""The steps by which the database's schema grows (`schema/versions`, Alembic's): whoever adds one names it in
`database.NEWEST`."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from whimbrel.model.errors import WhimbrelError

SCRIPTS = Path(__file__).parent / "schema"


def upgrade(connection: sa.Connection, name: str) -> None:
    """Take the steps that are lacking. Raises WhimbrelError for a schema that this version does not know."""
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    scripts = ScriptDirectory.from_config(config)
    present = MigrationContext.configure(connection).get_current_heads()
    known = {revision.revision for revision in scripts.walk_revisions()}
    if not known.issuperset(present):
        raise WhimbrelError(
            f"the database {name} has schema {', '.join(present)}, this version of Whimbrel writes "
            f"{scripts.get_current_head()}: use the version that wrote it, or another `database`"
        )
    command.upgrade(config, "head")
