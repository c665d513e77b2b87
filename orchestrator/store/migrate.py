"""The schema, brought to this version of the program, or back."""

from __future__ import annotations

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Connection

from orchestrator.domain.errors import NotPossible


def configuration(connection: Connection) -> Config:
    """Alembic's configuration, with our scripts and `connection`, whose transaction is the caller's."""
    config = Config()
    config.set_main_option("script_location", "orchestrator.store:migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def revision(connection: Connection) -> str | None:
    """The schema's version; None: there is no schema."""
    current: str | None = MigrationContext.configure(connection).get_current_revision()
    return current


def upgrade(connection: Connection) -> None:
    """Bring the schema to the newest version, data included. Raises NotPossible if it is newer than this program."""
    config = configuration(connection)
    scripts = ScriptDirectory.from_config(config)
    current = MigrationContext.configure(connection).get_current_revision()
    if current == scripts.get_current_head():
        return
    if current is not None and current not in {script.revision for script in scripts.walk_revisions()}:
        raise NotPossible(
            "MAYFLY_DATABASE_URL",
            f"this database is of a newer Mayfly: its schema is {current}, this one knows {scripts.get_current_head()}",
            "use the newer version, or another MAYFLY_HOME",
        )
    command.upgrade(config, "head")


def downgrade(connection: Connection, revision: str) -> None:
    """Take the schema back to `revision`; "base": to nothing."""
    command.downgrade(configuration(connection), revision)
