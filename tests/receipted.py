"""Tasks whose attempts are over and whose machines are gone, with all that such attempts leave; and their receipts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from orchestrator.artifacts import Artifacts
from orchestrator.domain.outcome import Exited, Outcome, Reason, Usage, judge
from orchestrator.domain.proof import CloseProof, Disks
from orchestrator.domain.task import InputSpec, Stage, TaskSpec
from orchestrator.domain.vm import VmState
from orchestrator.receipts import Keys, issue
from orchestrator.store import (
    Claim,
    Finished,
    Requeued,
    StageEntered,
    Store,
    TaskRow,
    VmMoved,
    VmRequest,
)

ENVIRONMENT: dict[str, Any] = {
    "kernel": "6.1.0",
    "seal": [{"target": "metadata address", "reached": False, "detail": "no answer"}],
    "probed_at": "2026-03-01T12:00:00+00:00",
    "seal_profile": {"name": "sealed", "version": 1},
    "outside": {"nics": [], "holds": True, "looked_at": "2026-03-01T12:00:00+00:00", "complaints": []},
    "trace": {"profile": "audit", "fast_path": True, "detail_bytes": 9, "cut": False, "counts_after_cut": {}},
    "limits": {"timeout_seconds": 3600.0, "memory_bytes": 2**28, "processes": 64},
    "disclosure": "open",
}
PROOF = CloseProof(
    "OpenNebula says DONE",
    7,
    "DONE",
    datetime(2026, 3, 1, 12, tzinfo=UTC),
    Disks("/var/lib/one/datastores/0/7", ("disk.0",)),
)


@dataclass(frozen=True, slots=True)
class Left:
    """What an attempt leaves."""

    outcome: Outcome = field(default_factory=lambda: Exited(0))
    outputs: dict[str, bytes] = field(
        default_factory=lambda: {"table.csv": b"a,b\n1,2\n", "deep/er/note": b"x" * 70_000}
    )
    stdout: bytes = b"one\ntwo\n"
    stderr: bytes = b""
    trace: bytes = b'7 execve("/bin/true")\n'
    environment: dict[str, Any] = field(default_factory=lambda: dict(ENVIRONMENT))


@dataclass(frozen=True, slots=True)
class _Whole:
    """A file as a machine gives it."""

    path: str
    data: bytes
    mode: int = 0o644

    @property
    def entry(self) -> _Whole:
        return self

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


class Receipted:
    """A store, an artifact store and keys, and attempts that are made in them."""

    def __init__(self, store: Store, root: Path) -> None:
        self.store = store
        self.artifacts = Artifacts(root / "artifacts")
        self.keys = Keys(root / "keys" / "receipts")

    def now(self) -> datetime:
        return self.store.clock.now()

    async def submitted(self, *, pool: str = "small", by: str = "ada", code: Path | None = None) -> TaskRow:
        inputs: tuple[InputSpec, ...] = ()
        if code is not None:
            blob = self.artifacts.read_tree(code)
            inputs = (InputSpec(str(code), "code.py", blob, code=True, pinned=f"sha256:{blob}"),)
        spec = TaskSpec(
            pool=pool, command=("python3", "code.py"), inputs=inputs, outputs=("**",), environment={"N": "1"}
        )
        now = self.now()
        return await self.store.tasks.submit(spec, now=now, deadline_at=now + timedelta(days=1), submitted_by=by)

    async def claimed(self, task: TaskRow) -> Claim:
        now = self.now()
        runner = await self.store.runners.register(
            host="here", pid=1, pools=(task.spec.pool,), now=now, name=f"runner {now.isoformat()}"
        )
        [claim] = await self.store.tasks.claim(
            runner.id,
            {task.spec.pool: 1},
            now=now,
            only=task.id,
            max_vms={task.spec.pool: 9},
            lease_seconds=60.0,
            deadline=lambda _: now + timedelta(hours=1),
        )
        return claim

    async def worked(self, claim: Claim, left: Left) -> None:
        """Everything of an attempt but its end: its machine is gone."""
        store, lease = self.store, claim.lease
        now = self.now()
        request = VmRequest(
            claim.task.spec.pool, "debian-12-7", lease.runner_id, now + timedelta(minutes=1), lease=lease
        )
        vm = await store.vms.request(request, now=now)
        assert vm is not None
        for stage in (Stage.PROVISIONING, Stage.EXECUTING, Stage.STAGING_OUT):
            assert await store.tasks.enter_stage(StageEntered(lease, stage), now=self.now())
        logs = self.artifacts.attempt(lease.task_id, lease.attempt)
        for writer, data in ((logs.stdout, left.stdout), (logs.stderr, left.stderr), (logs.trace, left.trace)):
            await writer.write(data)
        async with logs.outputs() as outputs:
            await outputs.put([_Whole(path, data) for path, data in left.outputs.items()])
        await store.attempts.record_environment(lease, left.environment)
        await store.attempts.record_outcome(lease, left.outcome, Usage(1.5, 2**20))
        await store.tasks.enter_stage(StageEntered(lease, Stage.DESTROYING), now=self.now())
        for state, more in (
            (VmState.DESTROYING, {"deadline_at": self.now() + timedelta(minutes=1)}),
            (VmState.DESTROYED, {"close_proof": PROOF.encode()}),
        ):
            assert await store.vms.move(VmMoved(vm.id, state, lease.runner_id, **more), now=self.now())

    async def over(self, task: TaskRow | None = None, left: Left | None = None, **submitted: Any) -> TaskRow:
        """A task whose only, or last, attempt is over."""
        task = task or await self.submitted(**submitted)
        left = left or Left()
        claim = await self.claimed(task)
        await self.worked(claim, left)
        assert await self.store.tasks.finish(Finished.by(claim.lease, judge(left.outcome)), now=self.now())
        return await self.store.tasks.get(task.id)

    async def tried_again(self, task: TaskRow, left: Left) -> None:
        """One attempt of it that was not the last."""
        claim = await self.claimed(task)
        await self.worked(claim, left)
        until = self.now() + timedelta(days=1)
        again = Requeued(claim.lease, Reason.RETRY, "again", not_before=None, deadline_at=until)
        assert await self.store.tasks.requeue(again, now=self.now())

    async def receipt(self, task: TaskRow, number: int = 1) -> Path:
        path = await issue(self.store, self.artifacts, self.keys, task.id, number)
        assert path is not None
        return path
