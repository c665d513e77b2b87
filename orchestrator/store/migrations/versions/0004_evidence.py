"""Who submitted a task, and what its packages make; layers, reviews and receipts; bytes read and written.

As in those before, the words in the CHECKs are those of that day.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

PENDING = "state = 'QUEUED' AND admitted_at IS NULL"
INDEXES = (
    ("tasks", "ix_tasks_unlaid", ("state", "id"), f"{PENDING} AND brings_packages AND layer IS NULL"),
    ("tasks", "ix_tasks_layer", ("layer",), "layer IS NOT NULL"),
    ("attempts", "ix_attempts_unstated", ("task_id", "number"), "finished_at IS NOT NULL AND receipt_sha256 IS NULL"),
    ("layers", "ix_layers_unready", ("key",), "ready_at IS NULL"),
)
RECEIPT = (
    "(receipt_sha256 IS NULL AND receipt_at IS NULL) OR "
    "(receipt_sha256 IS NOT NULL AND receipt_at IS NOT NULL AND finished_at IS NOT NULL)"
)
READY = (
    "(ready_at IS NULL AND blob IS NULL AND resolved IS NULL) OR "
    "(ready_at IS NOT NULL AND blob IS NOT NULL AND resolved IS NOT NULL)"
)


def upgrade() -> None:
    with op.batch_alter_table("tasks") as table:
        table.add_column(sa.Column("submitted_by", sa.String(), server_default="", nullable=False))
        table.add_column(sa.Column("brings_packages", sa.Boolean(), server_default=sa.false(), nullable=False))
        table.add_column(sa.Column("layer", sa.String(), nullable=True))
    with op.batch_alter_table("attempts") as table:
        table.add_column(sa.Column("read_bytes", sa.BigInteger(), nullable=True))
        table.add_column(sa.Column("written_bytes", sa.BigInteger(), nullable=True))
        table.add_column(sa.Column("receipt_sha256", sa.String(), nullable=True))
        table.add_column(sa.Column("receipt_at", sa.DateTime(timezone=True), nullable=True))
        table.create_check_constraint(op.f("ck_attempts_receipt"), RECEIPT)
    op.create_table(
        "layers",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("image_version", sa.String(), nullable=False),
        sa.Column("task_id", sa.String(), nullable=False),
        sa.Column("blob", sa.String(), nullable=True),
        sa.Column("resolved", sa.JSON(), nullable=True),
        sa.Column("made_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ready_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(READY, name=op.f("ck_layers_ready")),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name=op.f("fk_layers_task_id")),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_layers")),
    )
    op.create_index("ix_layers_task_id", "layers", ["task_id"], unique=True)
    op.create_table(
        "reviews",
        sa.Column("task_id", sa.String(), nullable=False),
        sa.Column("decision", sa.String(), nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("decision IN ('released', 'rejected')", name=op.f("ck_reviews_decision")),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name=op.f("fk_reviews_task_id")),
        sa.PrimaryKeyConstraint("task_id", name=op.f("pk_reviews")),
    )
    for table_name, name, columns, where in INDEXES:
        words = sa.text(where)
        op.create_index(name, table_name, list(columns), unique=False, postgresql_where=words, sqlite_where=words)
    _find_packages()


def _find_packages() -> None:
    """Of tasks that wait since before this database was taken back to an older schema."""
    names = ("id", "state", "brings_packages", "admitted_at")
    tasks = sa.table("tasks", *map(sa.column, names), sa.column("spec", sa.JSON))
    waits = sa.select(tasks.c.id, tasks.c.spec).where(tasks.c.state.in_(("NEW", "QUEUED")))
    named = sa.cast(tasks.c.spec, sa.Text).like('%"packages"%')
    bind = op.get_bind()
    for task_id, spec in bind.execute(waits.where(named)).all():
        if any(spec["packages"].values()):
            found = sa.update(tasks).where(tasks.c.id == task_id)
            bind.execute(found.values(brings_packages=sa.true(), admitted_at=None))


def downgrade() -> None:
    """What only this schema knows is lost: who submitted a task and who reviewed it, layers, receipts. A task that
    waits for a layer depends on its builder as on any other task."""
    for table_name, name, *_ in reversed(INDEXES):
        op.drop_index(name, table_name=table_name)
    op.drop_table("reviews")
    op.drop_index("ix_layers_task_id", table_name="layers")
    op.drop_table("layers")
    with op.batch_alter_table("attempts") as table:
        table.drop_constraint(op.f("ck_attempts_receipt"), type_="check")
        for column in ("receipt_at", "receipt_sha256", "written_bytes", "read_bytes"):
            table.drop_column(column)
    with op.batch_alter_table("tasks") as table:
        for column in ("layer", "brings_packages", "submitted_by"):
            table.drop_column(column)
