"""How the launch of a VM went; queues that are drained, and since when their machines are to be new ones; an index that
both planners take.

As in those before, the words in the CHECKs are those of that day.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

LAUNCH = (
    "(launch IS NULL AND launch_at IS NULL) OR "
    "(launch IS NOT NULL AND launch IN ('ok', 'failed') AND launch_at IS NOT NULL)"
)
PENDING = "state = 'QUEUED' AND admitted_at IS NULL"
SPARE = "task_id IS NULL"
INDEXES = (
    ("tasks", "ix_tasks_pending", ("state", "not_before"), PENDING),
    ("vms", "ix_vms_launch_at", ("launch_at",), "launch_at IS NOT NULL"),
    ("vms", "ix_vms_destroyed_at", ("destroyed_at",), f"{SPARE} AND destroyed_at IS NOT NULL"),
)


def upgrade() -> None:
    with op.batch_alter_table("vms") as table:
        table.add_column(sa.Column("launch", sa.String(), nullable=True))
        table.add_column(sa.Column("launch_message", sa.Text(), nullable=True))
        table.add_column(sa.Column("launch_seconds", sa.Float(), nullable=True))
        table.add_column(sa.Column("launch_at", sa.DateTime(timezone=True), nullable=True))
        table.create_check_constraint(op.f("ck_vms_launch"), LAUNCH)
    with op.batch_alter_table("queues") as table:
        table.add_column(sa.Column("drained_at", sa.DateTime(timezone=True), nullable=True))
        table.add_column(sa.Column("drained_because", sa.Text(), nullable=True))
        table.add_column(sa.Column("rotated_at", sa.DateTime(timezone=True), nullable=True))
    op.execute("UPDATE queues SET drained_because = ''")
    with op.batch_alter_table("queues") as table:
        table.alter_column("drained_because", existing_type=sa.Text(), nullable=False)
        table.create_check_constraint(op.f("ck_queues_drained"), "drained_at IS NULL OR paused_at IS NOT NULL")
    op.drop_index("ix_tasks_pending", table_name="tasks")
    for table_name, name, columns, where in INDEXES:
        _index(table_name, name, columns, where)


def _index(table_name: str, name: str, columns: tuple[str, ...], where: str) -> None:
    words = sa.text(where)
    op.create_index(name, table_name, list(columns), unique=False, postgresql_where=words, sqlite_where=words)


def downgrade() -> None:
    """What only this schema knows is lost: how launches went. A queue that is drained stays paused."""
    for table_name, name, *_ in reversed(INDEXES):
        op.drop_index(name, table_name=table_name)
    _index("tasks", "ix_tasks_pending", ("not_before",), PENDING)
    with op.batch_alter_table("queues") as table:
        table.drop_constraint(op.f("ck_queues_drained"), type_="check")
        for column in ("rotated_at", "drained_because", "drained_at"):
            table.drop_column(column)
    with op.batch_alter_table("vms") as table:
        table.drop_constraint(op.f("ck_vms_launch"), type_="check")
        for column in ("launch_at", "launch_seconds", "launch_message", "launch"):
            table.drop_column(column)
