"""What Alembic runs: our connection, our transaction."""

from __future__ import annotations

from alembic import context

from orchestrator.store.schema import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    # SQLite rolls DDL back as well as it does rows, once its transactions are begun by hand, as ours are.
    transactional_ddl=True,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
