"""Queues, shares, dependencies, leaders, schedules; deadlines for all; the order of events on PostgreSQL.

As in the first, the words in the CHECKs are those of that day.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

READY = "state = 'QUEUED' AND admitted_at IS NOT NULL"
PENDING = "state = 'QUEUED' AND admitted_at IS NULL"
HELD = "state IN ('RUNNING', 'WAITING')"
OPEN = "state NOT IN ('FINISHED', 'FAILED', 'CANCELED')"
VM_OPEN = "state <> 'DESTROYED'"
INDEXES = (
    ("tasks", "ix_tasks_ready", ("pool", "priority", "frontend", "id"), READY, False),
    ("tasks", "ix_tasks_pending", ("not_before",), PENDING, False),
    ("tasks", "ix_tasks_held", ("pool", "frontend"), HELD, False),
    ("tasks", "ix_tasks_held_by", ("runner_id",), HELD, False),
    ("tasks", "ix_tasks_deadline_at", ("deadline_at",), OPEN, False),
    ("tasks", "ix_tasks_pool_finished_at", ("pool", "finished_at"), "finished_at IS NOT NULL", False),
    ("tasks", "ix_tasks_idempotency_key", ("frontend", "idempotency_key"), "idempotency_key IS NOT NULL", True),
    ("vms", "ix_vms_open", ("pool",), VM_OPEN, False),
    ("attempts", "ix_attempts_vm_id", ("vm_id",), "vm_id IS NOT NULL", False),
    ("events", "ix_events_vm_id", ("vm_id",), "vm_id IS NOT NULL", False),
)
GRACE = timedelta(days=30)
"""How long what had no deadline may still take."""

# Held in common by those who write events, to the end of their transactions, and alone by a reader for a moment:
# a number that was taken is then either there or never will be. The number is that of `orchestrator.store.events`.
ORDER = """
CREATE FUNCTION mayfly_event_order() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN PERFORM pg_advisory_xact_lock_shared(5577006791947779410); RETURN NULL; END $$;
CREATE TRIGGER mayfly_event_order BEFORE INSERT ON events FOR EACH STATEMENT EXECUTE FUNCTION mayfly_event_order()
"""


def upgrade() -> None:
    op.drop_index("ix_vms_state", table_name="vms")
    with op.batch_alter_table("runners") as table:
        table.add_column(sa.Column("name", sa.String(), nullable=True))
        table.add_column(sa.Column("draining_at", sa.DateTime(timezone=True), nullable=True))
    op.execute("UPDATE runners SET name = host || '-' || pid")
    with op.batch_alter_table("runners") as table:
        table.alter_column("name", existing_type=sa.String(), nullable=False)
    with op.batch_alter_table("vms") as table:
        table.add_column(sa.Column("host_public_key", sa.String(), nullable=True))
        table.add_column(sa.Column("host", sa.String(), nullable=True))
    with op.batch_alter_table("attempts") as table:
        table.add_column(sa.Column("verdict", sa.JSON(), nullable=True))
        table.add_column(sa.Column("host", sa.String(), nullable=True))
    _upgrade_tasks()
    _make_tables()
    op.execute(
        "INSERT INTO queues (pool, paused_because, blocked_message, turn) SELECT DISTINCT pool, '', '', 0 FROM tasks"
    )
    for table_name, name, columns, where, unique in INDEXES:
        words = sa.text(where)
        op.create_index(name, table_name, list(columns), unique=unique, postgresql_where=words, sqlite_where=words)
    if op.get_bind().dialect.name == "postgresql":
        op.execute(ORDER)


def _upgrade_tasks() -> None:
    with op.batch_alter_table("tasks") as table:
        table.add_column(sa.Column("frontend", sa.String(), server_default="local", nullable=False))
        table.add_column(sa.Column("priority", sa.Integer(), nullable=True))
        table.add_column(sa.Column("admitted_at", sa.DateTime(timezone=True), nullable=True))
        table.add_column(sa.Column("not_before", sa.DateTime(timezone=True), nullable=True))
        table.add_column(sa.Column("idempotency_key", sa.String(), nullable=True))
        table.add_column(sa.Column("delivery", sa.String(), nullable=True))
        table.add_column(sa.Column("deadline_at", sa.DateTime(timezone=True), nullable=True))
        table.add_column(sa.Column("avoid", sa.JSON(), nullable=True))
    tasks = sa.table("tasks", sa.column("state", sa.String), sa.column("deadline_at", sa.DateTime(timezone=True)))
    op.execute("UPDATE tasks SET priority = 0, delivery = 'at_least_once', avoid = '[]'")
    op.execute("UPDATE tasks SET admitted_at = submitted_at WHERE state = 'QUEUED'")
    late = datetime.now(UTC) + GRACE
    op.get_bind().execute(sa.update(tasks).where(sa.text(OPEN)).values(deadline_at=late))
    with op.batch_alter_table("tasks") as table:
        table.alter_column("priority", existing_type=sa.Integer(), nullable=False)
        table.alter_column("delivery", existing_type=sa.String(), nullable=False)
        table.alter_column("avoid", existing_type=sa.JSON(), nullable=False)
        table.create_check_constraint(op.f("ck_tasks_delivery"), "delivery IN ('at_least_once', 'at_most_once')")
        table.create_check_constraint(
            op.f("ck_tasks_deadline"), "state IN ('FINISHED', 'FAILED', 'CANCELED') OR deadline_at IS NOT NULL"
        )


def _make_tables() -> None:
    op.create_table(
        "dependencies",
        sa.Column("task_id", sa.String(), nullable=False),
        sa.Column("on_task_id", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name=op.f("fk_dependencies_task_id")),
        sa.ForeignKeyConstraint(["on_task_id"], ["tasks.id"], name=op.f("fk_dependencies_on_task_id")),
        sa.PrimaryKeyConstraint("task_id", "on_task_id", name=op.f("pk_dependencies")),
    )
    op.create_index("ix_dependencies_on_task_id", "dependencies", ["on_task_id"], unique=False)
    op.create_table(
        "queues",
        sa.Column("pool", sa.String(), nullable=False),
        sa.Column("paused_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("paused_because", sa.Text(), nullable=False),
        sa.Column("blocked_reason", sa.String(), nullable=True),
        sa.Column("blocked_message", sa.Text(), nullable=False),
        sa.Column("blocked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("turn", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("pool", name=op.f("pk_queues")),
    )
    op.create_table(
        "shares",
        sa.Column("pool", sa.String(), nullable=False),
        sa.Column("frontend", sa.String(), nullable=False),
        sa.Column("turn", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("pool", "frontend", name=op.f("pk_shares")),
    )
    op.create_table(
        "leaders",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("holder", sa.String(), nullable=False),
        sa.Column("term", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_leaders")),
    )
    op.create_table(
        "schedules",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("frontend", sa.String(), nullable=False),
        sa.Column("cron", sa.String(), nullable=True),
        sa.Column("interval_seconds", sa.Float(), nullable=True),
        sa.Column("time_zone", sa.String(), nullable=False),
        sa.Column("catch_up", sa.Boolean(), nullable=False),
        sa.Column("next_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("paused_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_task_id", sa.String(), nullable=True),
        sa.Column("made_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("(cron IS NULL) <> (interval_seconds IS NULL)", name=op.f("ck_schedules_rule")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_schedules")),
    )


def downgrade() -> None:
    """What only this schema knows is lost: who waits for whom, what is to be kept waiting, recurring tasks."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP TRIGGER mayfly_event_order ON events; DROP FUNCTION mayfly_event_order()")
    for table_name, name, *_ in reversed(INDEXES):
        op.drop_index(name, table_name=table_name)
    for name in ("schedules", "leaders", "shares", "queues"):
        op.drop_table(name)
    op.drop_index("ix_dependencies_on_task_id", table_name="dependencies")
    op.drop_table("dependencies")
    with op.batch_alter_table("tasks") as table:
        table.drop_constraint(op.f("ck_tasks_deadline"), type_="check")
        table.drop_constraint(op.f("ck_tasks_delivery"), type_="check")
        for column in (
            "avoid", "deadline_at", "delivery", "idempotency_key", "not_before", "admitted_at", "priority", "frontend"
        ):  # fmt: skip
            table.drop_column(column)
    with op.batch_alter_table("attempts") as table:
        table.drop_column("host")
        table.drop_column("verdict")
    with op.batch_alter_table("vms") as table:
        table.drop_column("host")
        table.drop_column("host_public_key")
    with op.batch_alter_table("runners") as table:
        table.drop_column("draining_at")
        table.drop_column("name")
    op.create_index("ix_vms_state", "vms", ["state"], unique=False)
