"""The first schema: tasks, attempts, VMs, events, runners.

The words in the CHECKs are those of that day, spelt out: a migration never follows later changes of the enums.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "installation",
        sa.Column("single", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("made_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("single = 1", name=op.f("ck_installation_single")),
        sa.PrimaryKeyConstraint("single", name=op.f("pk_installation")),
    )
    op.create_table(
        "runners",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("pools", sa.JSON(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("heartbeat_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("left_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runners")),
    )
    op.create_table(
        "tasks",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("pool", sa.String(), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("stage", sa.String(), nullable=True),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("runner_id", sa.String(), nullable=True),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("cancel_requested_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("submitted_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(state IN ('FINISHED', 'FAILED', 'CANCELED') AND finished_at IS NOT NULL) OR "
            "(state NOT IN ('FINISHED', 'FAILED', 'CANCELED') AND finished_at IS NULL)",
            name=op.f("ck_tasks_over"),
        ),
        sa.CheckConstraint(
            "(state IN ('RUNNING', 'WAITING') AND runner_id IS NOT NULL AND lease_expires_at IS NOT NULL) OR "
            "(state NOT IN ('RUNNING', 'WAITING') AND runner_id IS NULL AND lease_expires_at IS NULL "
            "AND stage IS NULL)",
            name=op.f("ck_tasks_held"),
        ),
        sa.CheckConstraint(
            "stage IS NULL OR stage IN ('PROVISIONING', 'CONNECTING', 'PREPARING', 'SEALING', "
            "'STAGING_IN', 'EXECUTING', 'STAGING_OUT', 'DESTROYING')",
            name=op.f("ck_tasks_stage"),
        ),
        sa.CheckConstraint(
            "state IN ('NEW', 'QUEUED', 'RUNNING', 'WAITING', 'FINISHED', 'FAILED', 'CANCELED')",
            name=op.f("ck_tasks_state"),
        ),
        sa.CheckConstraint("attempt >= 0", name=op.f("ck_tasks_attempt")),
        sa.ForeignKeyConstraint(["runner_id"], ["runners.id"], name=op.f("fk_tasks_runner_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tasks")),
    )
    op.create_index("ix_tasks_state_pool_id", "tasks", ["state", "pool", "id"], unique=False)
    op.create_table(
        "vms",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("cloud_id", sa.Integer(), nullable=True),
        sa.Column("pool", sa.String(), nullable=False),
        sa.Column("image_version", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("host_key", sa.String(), nullable=True),
        sa.Column("address", sa.String(), nullable=True),
        sa.Column("task_id", sa.String(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=True),
        sa.Column("runner_id", sa.String(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("moved_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deadline_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("destroyed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("close_proof", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "(state = 'DESTROYED' AND destroyed_at IS NOT NULL AND close_proof IS NOT NULL) OR "
            "(state <> 'DESTROYED' AND destroyed_at IS NULL AND deadline_at IS NOT NULL)",
            name=op.f("ck_vms_closed_on_proof"),
        ),
        sa.CheckConstraint("state <> 'IN_USE' OR task_id IS NOT NULL", name=op.f("ck_vms_in_use_by")),
        sa.CheckConstraint(
            "state IN ('REQUESTED', 'BOOTING', 'READY', 'IN_USE', 'DESTROYING', 'DESTROYED')", name=op.f("ck_vms_state")
        ),
        sa.CheckConstraint(
            "(task_id IS NULL AND attempt IS NULL) OR (task_id IS NOT NULL AND attempt IS NOT NULL)",
            name=op.f("ck_vms_attempt"),
        ),
        sa.ForeignKeyConstraint(["runner_id"], ["runners.id"], name=op.f("fk_vms_runner_id")),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name=op.f("fk_vms_task_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_vms")),
    )
    op.create_index("ix_vms_state", "vms", ["state"], unique=False)
    op.create_index("ix_vms_task_id_attempt", "vms", ["task_id", "attempt"], unique=False)
    op.create_table(
        "attempts",
        sa.Column("task_id", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("runner_id", sa.String(), nullable=False),
        sa.Column("vm_id", sa.String(), nullable=True),
        sa.Column("stage", sa.String(), nullable=True),
        sa.Column("timings", sa.JSON(), nullable=False),
        sa.Column("outcome", sa.JSON(), nullable=True),
        sa.Column("cpu_seconds", sa.Float(), nullable=True),
        sa.Column("memory_peak_bytes", sa.BigInteger(), nullable=True),
        sa.Column("artifacts", sa.JSON(), nullable=False),
        sa.Column("environment", sa.JSON(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "stage IS NULL OR stage IN ('PROVISIONING', 'CONNECTING', 'PREPARING', 'SEALING', "
            "'STAGING_IN', 'EXECUTING', 'STAGING_OUT', 'DESTROYING')",
            name=op.f("ck_attempts_stage"),
        ),
        sa.CheckConstraint("number >= 1", name=op.f("ck_attempts_number")),
        sa.ForeignKeyConstraint(["runner_id"], ["runners.id"], name=op.f("fk_attempts_runner_id")),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name=op.f("fk_attempts_task_id")),
        sa.ForeignKeyConstraint(["vm_id"], ["vms.id"], name=op.f("fk_attempts_vm_id")),
        sa.PrimaryKeyConstraint("task_id", "number", name=op.f("pk_attempts")),
    )
    op.create_table(
        "events",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("task_id", sa.String(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=True),
        sa.Column("vm_id", sa.String(), nullable=True),
        sa.Column("runner_id", sa.String(), nullable=True),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name=op.f("fk_events_task_id")),
        sa.ForeignKeyConstraint(["vm_id"], ["vms.id"], name=op.f("fk_events_vm_id")),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_events")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_events_task_id_number", "events", ["task_id", "number"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_events_task_id_number", table_name="events")
    op.drop_table("events")
    op.drop_table("attempts")
    op.drop_index("ix_vms_task_id_attempt", table_name="vms")
    op.drop_index("ix_vms_state", table_name="vms")
    op.drop_table("vms")
    op.drop_index("ix_tasks_state_pool_id", table_name="tasks")
    op.drop_table("tasks")
    op.drop_table("runners")
    op.drop_table("installation")
